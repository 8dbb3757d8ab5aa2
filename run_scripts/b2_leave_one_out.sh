#!/usr/bin/env bash
# Scenario (b-2) of the paper: as (b-1), leaving each task out in turn. Nine trainings.
#
#   bash run_scripts/b2_leave_one_out.sh OUT DATA [OPTION OF `s3prl-mtl study` ...]
#
# OUT is the folder of the study, the same for all scripts; DATA the folder of the corpora. Start the
# script again to resume. Useful options: --jobs 4 (trainings at once, one a GPU), --print (show the
# commands), --status, --slurm.
set -euo pipefail
source "$(dirname "$0")/paper_settings.sh"

exec s3prl-mtl study "$out" --data "$data" "${settings[@]}" --scenario b2 "${options[@]}"
