#!/usr/bin/env bash
# Demo, 10 to 15 minutes on two cores: synthesise a spoken corpus in the layouts of nine real ones,
# load a fairseq HuBERT checkpoint, and train the encoder on nine tasks at once.
#
#   bash run_scripts/demo.sh [FOLDER]      # default: .demo; run it again to resume or to see the table
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh demo

exec s3prl-mtl demo "$@"
