"""Write a study as SLURM job arrays: one for each stage of the graph, each after the one before."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.study.plan import StudyRun, depth
from s3prl_mtl.study.record import RunStatus
from s3prl_mtl.training.run_dir import FINISHED

FOLDER = "slurm"

JOB = """\
#!/usr/bin/env bash
# One run of a study: an element of a job array, submitted by submit.sh. Before the time limit the
# run is saved, and the element is requeued and resumes. Edit the lines below; options of sbatch
# after `bash submit.sh` override them.
#SBATCH --job-name=study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output={folder}/%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
cd {cwd}
{activate}
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {folder}/"$1")

study=""
timed_out=""
tell() {{ [ -z "$study" ] || kill -TERM "$study" 2> /dev/null || true; }}
trap 'timed_out=yes; tell' USR1
trap tell TERM
s3prl-mtl study {out} --run "$run" &
study=$!
[ -z "$timed_out" ] || tell
# A signal interrupts `wait`. After the study has exited, `wait` returns its exit code.
while kill -0 "$study" 2> /dev/null; do wait "$study" || true; done
wait "$study" && code=0 || code=$?
if [ -n "$timed_out" ] && [ ! -e {out}/"$run"/{finished} ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""

SUBMIT = """\
#!/usr/bin/env bash
# Submit the runs of a study that were not done when this file was written.
#
#   bash {folder}/submit.sh [OPTION OF SBATCH ...]     such as --partition=gpu --time=48:00:00
#
# A stage starts when all runs of the one before have ended. A run whose needs failed ends at once;
# the others go on. Afterwards write the files again and submit what is left.
set -euo pipefail
cd {folder}
"""


def write_slurm(
    runs: Sequence[StudyRun], states: Mapping[str, RunStatus], out: Path, jobs: int | None
) -> Path:
    """Write the scripts for all runs that are not done.

    The dependency is `afterany`: a failed run must not hold back those that do not need it. Each
    run checks its own needs when it starts.

    Args:
        runs: each after those that it needs.
        states: from `survey`.
        out: absolute path of the folder of the study, on a file system that all machines share.
        jobs: how many runs of a stage at once; None for as many as SLURM allows.

    Returns:
        the script that submits the others.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("runs-*.txt"):
        old.unlink()
    environment = os.environ.get("VIRTUAL_ENV")
    activate = f"source {shlex.quote(environment)}/bin/activate" if environment else ""
    quoted = {"folder": shlex.quote(str(folder)), "out": shlex.quote(str(out))}
    job = JOB.format(**quoted, cwd=shlex.quote(os.getcwd()), activate=activate, finished=FINISHED)
    replace_text(folder / "job.sh", job)
    lines = [SUBMIT.format(**quoted)]
    depths = depth(runs)
    before = None
    for stage in sorted(set(depths.values())):
        names = [
            r.name for r in runs if depths[r.name] == stage and states[r.name].status != "done"
        ]
        if not names:
            continue
        replace_text(folder / f"runs-{stage}.txt", "".join(f"{name}\n" for name in names))
        array = f"--array=0-{len(names) - 1}" + (f"%{jobs}" if jobs else "")
        # --parsable prints the number of the job, and on some clusters ;name.
        after = f' --dependency=afterany:"${{stage{before}%%;*}}"' if before is not None else ""
        words = f'--parsable {array}{after} "$@" job.sh runs-{stage}.txt'
        lines.append(f"stage{stage}=$(sbatch {words})\n")
        lines.append(f'echo "stage {stage}: {len(names)} runs, job ${{stage{stage}%%;*}}"\n')
        before = stage
    replace_text(folder / "submit.sh", "".join(lines))
    return folder / "submit.sh"
