#!/usr/bin/env bash
# Everything that only a GPU can show, in under 8 minutes: correctness, then the measurements of
# docs/performance.md. Needs a checkout, torch, and the packages of setup.py.
#
#   bash benchmarks/gpu_check.sh [DEVICE] [LOG]     # cuda; results.jsonl gets a line for each row
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=${1:-cuda} log=${2:-results.jsonl}
size=base scales=1,4,16 quick=(--quick) tasks=() few=() corpus=mini steps=300
if [ "$device" = cpu ]; then  # That it runs.
    size=tiny scales=1 quick=(--repeats 1) tasks=(--tasks ks,ic) few=(--repeats 1 --steps 1)
    corpus=tiny steps=6
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

failed=0
python benchmarks/gpu_check.py --device "$device" || failed=1
python benchmarks/step.py --device "$device" --size "$size" --scale "$scales" --log "$log" \
    "${quick[@]}" "${tasks[@]}"
python -m s3prl_mtl make-corpus "$folder/corpus" --size "$corpus"
python benchmarks/loading.py --device "$device" --size "$size" --data "$folder/corpus" --log "$log" \
    "${tasks[@]}" "${few[@]}"
python benchmarks/precision.py --device "$device" --steps "$steps" --data "$folder/corpus" \
    --log "$log" "${tasks[@]}"
exit "$failed"
