#!/usr/bin/env bash
# Everything that only a GPU can show, in under 8 minutes: correctness, then the measurements of
# docs/performance.md. Needs a checkout, torch, and the packages of setup.py.
#
#   bash benchmarks/gpu_check.sh [DEVICE] [LOG]     # cuda; results.jsonl gets a line for each row
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=${1:-cuda} log=${2:-results.jsonl} quick=(--quick)
size=base scales=1,4,16
if [ "$device" = cpu ]; then  # That it runs.
    size=tiny scales=1 quick=(--repeats 1 --tasks ks,ic)
fi

failed=0
python benchmarks/gpu_check.py --device "$device" || failed=1
python benchmarks/step.py --device "$device" --size "$size" --scale "$scales" --log "$log" "${quick[@]}"
exit "$failed"
