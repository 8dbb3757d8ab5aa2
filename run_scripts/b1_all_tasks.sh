#!/usr/bin/env bash
# Scenario (b-1) of the paper: all nine tasks at once, the encoder trained, with the settings of s3prl's
# multi-task branch; the heads start from scenario (a), which is trained first where it is missing.
# One training.
#
#   bash run_scripts/b1_all_tasks.sh OUT DATA [OPTION OF `s3prl-mtl study` ...]
#
# OUT is the folder of the study, the same for all scripts; DATA the folder of the corpora. Start the
# script again to resume. Useful options: --jobs 4 (trainings at once, one a GPU), --print (show the
# commands), --status, --slurm.
set -euo pipefail
source "$(dirname "$0")/paper_settings.sh"

exec s3prl-mtl study "$out" --data "$data" "${settings[@]}" --scenario b1 "${options[@]}"
