#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, tests.
#
#   bash run_scripts/test.sh               # arguments go to pytest: `-m slow`, `-k hubert`, a file
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh dev

ruff check .
ruff format --check .
mypy
python -m pytest "$@"
