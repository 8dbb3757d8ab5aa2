"""The SLURM script with a minimal fake SLURM, and real torchrun, ranks and signals."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from tests.launcher import (
    ROOT,
    Started,
    descendants,
    environment,
    free_port,
    reached,
    same_weights,
    training,
    until,
)

SCRIPT = ROOT / "run_scripts" / "slurm.sh"
STEPS = 40
INTERRUPTED = 75

# As srun does: a task on every machine, SIGUSR1 forwarded to all of them, the highest exit code.
SRUN = """#!/usr/bin/env bash
echo "$@" | head -1 >> "$CALLS/srun"
while [[ $1 == --* ]]; do shift; done
trap 'kill -USR1 "${tasks[@]}"' USR1
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2> /dev/null; do wait "$task"; done
    wait "$task"
    code=$?
    worst=$((code > worst ? code : worst))
done
exit "$worst"
"""

SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") printf '127.0.0.1\\nnever-the-second\\n' ;;
    "show job") echo "JobId=$3 JobState=$(cat "$CALLS/state") Reason=None" ;;
    requeue*) echo "$2" >> "$CALLS/requeue" ;;
    *) exit 64 ;;
esac
"""


class Cluster:
    """A SLURM of one machine that pretends to be several."""

    def __init__(self, folder: Path, corpus: Path, cache: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        commands = folder / "commands"
        for made in (self.calls, commands):
            made.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        # What a user sources: here the interpreter that runs the tests.
        activate = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"\n'
        (folder / "activate").write_text(activate)
        self.variables = environment(
            corpus,
            cache,
            PATH=f"{commands}:{os.environ['PATH']}",
            CALLS=str(self.calls),
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_JOB_NODELIST="node[1-2]",
        )
        self.state("RUNNING")

    def state(self, name: str) -> None:
        """What `scontrol show job` says from now on."""
        (self.calls / "state").write_text(name)

    def requeued(self) -> list[str]:
        """The jobs that the script has put back into the queue."""
        file = self.calls / "requeue"
        return file.read_text().split() if file.is_file() else []

    def batch(self, words: list[str], machines: int = 1, restarts: int = 0) -> Started:
        """Run the script as its user has edited it, with two ranks in all."""
        edited = SCRIPT.read_text()
        for name, value in [
            ("words", f"({shlex.join(words)})"),
            ("environment", shlex.quote(str(self.folder / "activate"))),
            ("restarts", str(restarts)),
        ]:
            edited, count = re.subn(rf"(?m)^{name}=.*$", lambda _: f"{name}={value}", edited)  # noqa: B023
            assert count == 1, name
        job = self.folder / "job.sh"
        job.write_text(edited)
        variables = {
            "SLURM_JOB_ID": str(free_port() - 20000 + 120000),
            "SLURM_JOB_NUM_NODES": str(machines),
            "SLURM_GPUS_ON_NODE": str(2 // machines),
            "SLURM_RESTART_COUNT": str(len(self.requeued())),
            "SLURM_CPUS_PER_TASK": "2",
        }
        output = self.folder / f"job-{len(self.requeued())}.out"
        return Started(["bash", str(job)], output, {**self.variables, **variables})


@pytest.fixture
def cluster(tmp_path: Path, tiny_corpus: Path, manifest_cache: Path) -> Cluster:
    return Cluster(tmp_path, tiny_corpus, manifest_cache)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, manifest_cache: Path
) -> tuple[Path, Cluster, int, str]:
    """A run that nobody interrupts."""
    cluster = Cluster(tmp_path_factory.mktemp("whole"), tiny_corpus, manifest_cache)
    folder = cluster.folder / "run"
    with cluster.batch(training(folder, STEPS)) as job:
        code = job.wait()
    return folder, cluster, code, job.text()


def ask_by_usr1(job: Started) -> None:
    """Two minutes before the time limit: the shell of the script and nothing else."""
    job.process.send_signal(signal.SIGUSR1)


def ask_by_term(job: Started) -> None:
    """Preemption: all processes of the step, wherever SLURM does not keep to the first ones."""
    for pid in children_of_the_tasks(job):
        os.kill(pid, signal.SIGTERM)


def children_of_the_tasks(job: Started) -> list[int]:
    """All processes of the job but its shell and srun, which do not belong to the step."""
    below = []
    for pid in descendants(job.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if not any(word.endswith(b"/srun") for word in words[:2]):
            below.append(pid)
    return below


def finish(cluster: Cluster, folder: Path, machines: int) -> str:
    """Run the job again, as SLURM does with one in the queue, and return what it printed."""
    before = cluster.requeued()
    with cluster.batch(training(folder, STEPS), machines) as job:
        assert job.wait() == 0, job.text()
    assert cluster.requeued() == before
    return job.text()


def test_slurm_reads_every_sbatch_line():
    lines = SCRIPT.read_text().splitlines()
    command = next(n for n, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    asked = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(asked) > 8 and max(asked) < command


@pytest.mark.slow
def test_an_uninterrupted_run_completes_and_is_not_requeued(
    whole: tuple[Path, Cluster, int, str],
):
    folder, cluster, code, text = whole
    assert code == 0, text
    assert (folder / f"states-{STEPS}.ckpt").is_file()
    assert (folder / "log-rank1.txt").is_file()
    assert cluster.requeued() == []
    assert "--cpus-per-task=2 " in (cluster.calls / "srun").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
@pytest.mark.parametrize("ask", [ask_by_usr1, ask_by_term])
def test_an_interrupted_run_is_requeued_once_and_ends_with_the_same_result(
    whole: tuple[Path, Cluster, int, str],
    cluster: Cluster,
    ask: Callable[[Started], None],
    machines: int,
):
    folder = cluster.folder / "run"
    with cluster.batch(training(folder, STEPS), machines) as job:
        until(lambda: reached(folder, 3), job.text)
        ask(job)
        assert job.wait() == 0, job.text()
    assert len(cluster.requeued()) == 1, job.text()
    (saved,) = checkpoints.states_files(folder)
    assert 3 <= checkpoints.load(saved).step < STEPS
    assert saved.name in finish(cluster, folder, machines)
    name = f"states-{STEPS}.ckpt"
    assert same_weights(whole[0] / name, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("ask", [ask_by_usr1, ask_by_term])
def test_a_warning_before_the_ranks_are_ready_is_not_lost(
    cluster: Cluster, ask: Callable[[Started], None]
):
    folder = cluster.folder / "run"
    with cluster.batch(training(folder, 100_000)) as job:
        until(job.ranks, job.text)
        ask(job)
        assert job.wait() == 0, job.text()
    assert len(cluster.requeued()) == 1, job.text()


@pytest.mark.slow
def test_a_cancelled_run_is_saved_and_not_requeued(cluster: Cluster):
    folder = cluster.folder / "run"
    with cluster.batch(training(folder, 100_000)) as job:
        until(lambda: reached(folder, 1), job.text)
        cluster.state("COMPLETING")
        ask_by_term(job)
        assert job.wait() == INTERRUPTED, job.text()
    assert cluster.requeued() == []
    assert len(checkpoints.states_files(folder)) == 1


@pytest.mark.slow
def test_a_run_that_fails_is_not_requeued(cluster: Cluster):
    words = [word if word != "ks,er" else "ks,ar" for word in training(cluster.folder / "run", 1)]
    with cluster.batch(words) as job:
        assert job.wait() not in (0, INTERRUPTED), job.text()
    assert "'ar'" in job.text()
    assert cluster.requeued() == []
