#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, tests.
#
#   bash run_scripts/test.sh               # arguments go to pytest: `-m slow`, `-k hubert`, a file
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh dev

# Small models, and often several processes at once: more threads would only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

ruff check .
ruff format --check .
mypy
# Two workers on two cores; `-n 0` for a debugger or a single test.
python -m pytest -n "${PYTEST_WORKERS:-auto}" --dist loadscope --durations=25 "$@"
