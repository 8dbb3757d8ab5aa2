#!/usr/bin/env bash
# Scenario (a) of the paper: each head alone on the frozen HuBERT Base, with SUPERB's settings of its
# task (run_scripts/superb/). Nine trainings.
#
#   bash run_scripts/a_ssl.sh OUT DATA [OPTION OF `s3prl-mtl study` ...]
#
# OUT is the folder of the study, the same for all scripts; DATA the folder of the corpora. Start the
# script again to resume. Useful options: --jobs 4 (trainings at once, one a GPU), --print (show the
# commands), --status, --slurm.
set -euo pipefail
source "$(dirname "$0")/paper_settings.sh"

exec s3prl-mtl study "$out" --data "$data" "${settings[@]}" --scenario a "${options[@]}"
