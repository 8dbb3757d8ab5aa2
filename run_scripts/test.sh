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
# Two workers on two cores; `-n 0` for a debugger or a single test.
passed=0
python -m pytest -n "${PYTEST_WORKERS:-auto}" --dist loadscope --durations=25 "$@" || passed=$?
wait "$mypy" || passed=1
cat "$types"
exit "$passed"
