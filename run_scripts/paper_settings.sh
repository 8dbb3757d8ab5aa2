# Sourced by the scripts of the paper's scenarios with their arguments, OUT DATA [OPTION ...]: sets out,
# data, settings and options.
out=${1:?the folder of the study}
data=${2:?the folder of the corpora}
options=("${@:3}")

settings=(
    -u hubert                # HuBERT Base
    -d all                   # SUPERB's nine tasks
    # Frozen encoder: SUPERB's settings of each task (run_scripts/superb/), the default, with
    # these learning rates.
    --learning-rates "$(dirname "${BASH_SOURCE[0]}")/hubert_base_rates.yaml"
    --joint_config branch    # of b1 and b2: the settings of s3prl's multi-task branch
)
