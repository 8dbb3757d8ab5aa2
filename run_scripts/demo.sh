#!/usr/bin/env bash
# Demo, 5 to 10 minutes on two cores: synthesise a spoken corpus in the layouts of nine real ones, and run
# the paper's experiments with a small HuBERT: each head on the frozen encoder (a), all tasks with the
# encoder trained (b-1), all but one (b-2), and the head of that one on the resulting encoder (c).
# Ends with the table and the path of report.html.
#
#   bash run_scripts/demo.sh [FOLDER]          # default: .demo; run it again to resume or to see the table
#   bash run_scripts/demo.sh [FOLDER] --full   # every task is left out in turn
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh demo

exec s3prl-mtl demo "$@"
