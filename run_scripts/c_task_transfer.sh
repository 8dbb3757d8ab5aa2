#!/usr/bin/env bash
# Scenario (c) of the paper: the head of each task on the frozen encoder that was trained on the eight
# others (b-2), with SUPERB's settings. Nine trainings.
#
#   bash run_scripts/c_task_transfer.sh OUT DATA [OPTION OF `s3prl-mtl study` ...]
#
# OUT is the folder of the study, the same for all scripts; DATA the folder of the corpora. Start the
# script again to resume. Useful options: --jobs 4 (trainings at once, one a GPU), --print (show the
# commands), --status, --slurm.
set -euo pipefail
source "$(dirname "$0")/paper_settings.sh"

exec s3prl-mtl study "$out" --data "$data" "${settings[@]}" --scenario c "${options[@]}"
