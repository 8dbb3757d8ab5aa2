#!/usr/bin/env bash
# Demo, 10 to 15 minutes on two cores: synthesise a spoken corpus in the layouts of nine real ones,
# load a fairseq HuBERT checkpoint, and train the encoder on nine tasks at once.
#
#   bash run_scripts/demo.sh [FOLDER]      # default: .demo; run it again to resume or to see the table
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh demo

# Two processes of one thread, whatever the environment says: the matrix products of the demo are too
# small for two threads, which wait for each other during half of a step.
export OMP_NUM_THREADS=1

folder=${1:-.demo}
python -m s3prl_mtl make-corpus "$folder/corpus" --size mini
python -m torch.distributed.run --standalone --nproc_per_node 2 run_mtl.py \
    -u hubert_tiny -d all --data "$folder/corpus" --cache_dir "$folder/cache" \
    -c run_scripts/demo.yaml -p "$folder/run" -a
