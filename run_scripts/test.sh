#!/usr/bin/env bash
# Style, types and tests: required before a change is merged.
#
#   bash run_scripts/test.sh               # arguments go to pytest: `-m slow`, `-k hubert`, a file
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh dev

# The models are small, and several processes run at once: more threads would be slower.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

ruff check .
ruff format --check .
# One thread for 40 s: beside the tests.
types=$(mktemp)
mypy > "$types" 2>&1 &
mypy=$!
trap 'rm -f "$types"' EXIT
# One worker more than cores: many tests wait for other processes. `-n 0` for a debugger or a single
# test. tests/conftest.py sorts the files.
passed=0
workers="${PYTEST_WORKERS:-$(($(env -u OMP_NUM_THREADS nproc) + 1))}"
distribution=(-n "$workers" --dist loadscope --no-loadscope-reorder)
python -m pytest "${distribution[@]}" --durations=25 "$@" || passed=$?
wait "$mypy" || passed=1
cat "$types"
exit "$passed"
