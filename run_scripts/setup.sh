# Sourced by the other scripts: installs the project into the active environment.
#
#   source run_scripts/setup.sh "demo"     # the extras to install
#
# Creates and activates .venv unless a virtual environment is active. Installs under constraints.txt,
# and only when setup.py, constraints.txt or the extras have changed.
set -euo pipefail

# Waiting threads sleep. By default they spin, and one other busy program on two cores makes a step
# with two threads several times slower. With many small operations sleeping is slow too; use one
# thread per process there (OMP_NUM_THREADS=1).
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

# Images of containers often set it. Each process would compile all modules that it imports again,
# torch's alone in 1.7 s.
unset PYTHONDONTWRITEBYTECODE

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=$1

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$project/.venv/bin/python" ]; then
        interpreter=${PYTHON:-python3}
        "$interpreter" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
            echo "s3prl-mtl needs Python 3.10 to 3.13; $interpreter is $("$interpreter" -V 2>&1)." \
                 "Set PYTHON to another one." >&2
            exit 2
        }
        echo "Creating a virtual environment in .venv"
        "$interpreter" -m venv "$project/.venv"
    fi
    # shellcheck disable=SC1091
    source "$project/.venv/bin/activate"
fi

stamp="$(python -c 'import sys; print(sys.prefix)')/s3prl-mtl-$extras.installed"
wanted=$(cat "$project/setup.py" "$project/constraints.txt" <(echo "$project") | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "Installing s3prl-mtl and its dependencies (extras: $extras)"
    python -m pip install --quiet --upgrade pip
    # Compiling all modules takes longer than the rest; Python compiles the ones it imports.
    python -m pip install --quiet --no-compile -c "$project/constraints.txt" -e "$project[$extras]"
    echo "$wanted" > "$stamp"
fi
