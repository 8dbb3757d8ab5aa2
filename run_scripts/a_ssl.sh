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
out=${1:?the folder of the study}
data=${2:?the folder of the corpora}
shift 2

settings=(
    -u hubert                # HuBERT Base
    -d all                   # SUPERB's nine tasks
    # Frozen encoder: SUPERB's settings of each task (run_scripts/superb/), the default, with
    # these learning rates.
    --learning-rates "$(dirname "$0")/hubert_base_rates.yaml"
    --joint_config branch    # of b1 and b2: the settings of s3prl's multi-task branch
)
exec s3prl-mtl study "$out" --data "$data" "${settings[@]}" --scenario a "$@"
