#!/usr/bin/env bash
# The table of the paper on HuBERT Base: scenarios (a), (b-1), (b-2) and (c), 28 trainings.
#
#   bash run_scripts/reproduce_paper.sh OUT DATA [OPTION OF `s3prl-mtl study` ...]
#
# Start it again to resume. The scripts that it calls say what they train; each ends with the table of
# all runs so far, and writes OUT/report.html. --seeds 3 repeats it all with three seeds, --jobs 4
# trains on four GPUs.
set -euo pipefail
scripts=$(dirname "$0")

bash "$scripts/a_ssl.sh" "$@"
bash "$scripts/b1_all_tasks.sh" "$@"
bash "$scripts/b2_leave_one_out.sh" "$@"
bash "$scripts/c_task_transfer.sh" "$@"
