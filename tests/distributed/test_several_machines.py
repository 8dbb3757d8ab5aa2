"""Two torchrun agents, one for each machine: on loopback, and in two networks joined by a cable."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from tests.launcher import (
    TORCHRUN,
    Started,
    environment,
    free_port,
    reached,
    same_weights,
    steps_logged,
    training,
    until,
)

STEPS = 30


def c10d(machine: int, port: int, *words: str, host: str = "127.0.0.1") -> list[str]:
    """torchrun's words on one of two machines with a rank each; the first hosts the rendezvous."""
    return [
        *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "test"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{port}"),
        *("--rdzv-conf", f"is_host={int(machine == 0)}", *words, "run_mtl.py"),
    ]


def static(machine: int, port: int, *words: str) -> list[str]:
    """The same where every machine is told its number."""
    return [
        *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(machine)),
        *("--master-addr", "127.0.0.1", "--master-port", str(port), *words, "run_mtl.py"),
    ]


@pytest.fixture
def variables(tiny_corpus: Path, manifest_cache: Path) -> dict[str, str]:
    return environment(tiny_corpus, manifest_cache)


@pytest.fixture(scope="module")
def one_machine(
    tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, manifest_cache: Path
) -> Path:
    """The last checkpoint of the run with both ranks under one torchrun."""
    top = tmp_path_factory.mktemp("one")
    words = [*TORCHRUN, "--nproc-per-node", "2", "--master-port", str(free_port()), "run_mtl.py"]
    variables = environment(tiny_corpus, manifest_cache)
    with Started([*words, *training(top / "run", STEPS)], top / "out", variables) as run:
        assert run.wait() == 0, run.text()
    return top / "run" / f"states-{STEPS}.ckpt"


def story(machines: list[Started]) -> str:
    return "\n".join(f"--- machine {n} ---\n{run.text()}" for n, run in enumerate(machines, 1))


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", [c10d, static])
def test_two_machines_give_the_result_of_one_with_as_many_ranks(
    rendezvous: Callable[..., list[str]],
    variables: dict[str, str],
    one_machine: Path,
    tmp_path: Path,
):
    folder, port = tmp_path / "run", free_port()
    words = training(folder, STEPS)
    with ExitStack() as stack:
        machines = []
        for machine in range(2):
            line = [*TORCHRUN, *rendezvous(machine, port), *words]
            run = Started(line, tmp_path / f"out-{machine}", variables)
            machines.append(stack.enter_context(run))
        assert [run.wait() for run in machines] == [0, 0], story(machines)
    assert same_weights(one_machine, folder / f"states-{STEPS}.ckpt")
    assert steps_logged(folder) == list(range(1, STEPS + 1))
    assert (folder / "log-rank1.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("rendezvous", "victim"), [(c10d, 0), (static, 1)])
def test_a_killed_rank_restarts_both_machines_from_the_last_checkpoint(
    rendezvous: Callable[..., list[str]],
    victim: int,
    variables: dict[str, str],
    one_machine: Path,
    tmp_path: Path,
):
    folder, port = tmp_path / "run", free_port()
    words = training(folder, STEPS, save_step=2)
    with ExitStack() as stack:
        machines = []
        for machine in range(2):
            line = [*TORCHRUN, *rendezvous(machine, port, "--max-restarts", "1"), *words]
            run = Started(line, tmp_path / f"out-{machine}", variables)
            machines.append(stack.enter_context(run))
        until(lambda: reached(folder, 5), lambda: story(machines))
        # Which machine has which rank is up to the agents.
        pids = {rank: pid for run in machines for rank, pid in run.ranks().items()}
        os.kill(pids[victim], signal.SIGKILL)
        assert [run.wait() for run in machines] == [0, 0], story(machines)
    assert re.search(r"states-(\d+)\.ckpt\b.*\b\1\b", (folder / "log.txt").read_text())
    assert same_weights(one_machine, folder / f"states-{STEPS}.ckpt")
    assert steps_logged(folder) == list(range(1, STEPS + 1))


class Network:
    """Two machines that are alone in the world: network namespaces, joined by a veth pair."""

    cable = "cable"
    addresses = ("10.77.0.1", "10.77.0.2")

    def __init__(self, holders: list[subprocess.Popen[bytes]]) -> None:
        self._holders = holders
        self._ip(0, "link", "add", self.cable, "type", "veth", "peer", "name", self.cable,
                 "netns", str(holders[1].pid))  # fmt: skip
        for machine, address in enumerate(self.addresses):
            self._ip(machine, "address", "add", f"{address}/24", "dev", self.cable)
            for link in ("lo", self.cable):
                self._ip(machine, "link", "set", link, "up")

    def on(self, machine: int) -> list[str]:
        """Begins a command line that runs on one of the machines."""
        pid = str(self._holders[machine].pid)
        # The second machine's network belongs to the user namespace of the first.
        return ["nsenter", "--preserve-credentials", "--user", "--net", "--target", pid]

    def cut(self) -> None:
        """Pull the cable out."""
        self._ip(0, "link", "set", self.cable, "down")

    def _ip(self, machine: int, *words: str) -> None:
        program = shutil.which("ip") or "/usr/sbin/ip"
        subprocess.run([*self.on(machine), program, *words], check=True)


def hold_namespace(words: list[str]) -> subprocess.Popen[bytes]:
    """A process that keeps a namespace; it has entered it when it says so."""
    holder = subprocess.Popen(
        [*words, "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stderr is not None
    if holder.stdout.readline() != b"ready\n":
        reason = holder.stderr.read().decode().strip()
        holder.wait()
        pytest.skip(f"this kernel gives us no network of our own: {reason}")
    return holder


@pytest.fixture
def network() -> Iterator[Network]:
    holders: list[subprocess.Popen[bytes]] = []
    try:
        # Root in a user namespace of its own, as anybody may be, may make networks in it.
        holders.append(hold_namespace(["unshare", "--user", "--map-root-user", "--net"]))
        inside = ["nsenter", "--preserve-credentials", "--user", "--target", str(holders[0].pid)]
        holders.append(hold_namespace([*inside, "unshare", "--net"]))
        yield Network(holders)
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


@pytest.mark.slow
def test_disconnected_machines_stop_and_name_the_lost_rank(
    network: Network, variables: dict[str, str], tmp_path: Path
):
    folder, timeout_seconds = tmp_path / "run", 15
    words = training(folder, 100_000, "--timeout", str(timeout_seconds), save_step=2)
    variables |= {"GLOO_SOCKET_IFNAME": network.cable}
    with ExitStack() as stack:
        machines = []
        for machine, address in enumerate(network.addresses):
            meeting = c10d(machine, 29500, "--local-addr", address, host=network.addresses[0])
            line = [*network.on(machine), *TORCHRUN, *meeting, *words]
            run = Started(line, tmp_path / f"out-{machine}", variables)
            machines.append(stack.enter_context(run))
        until(lambda: reached(folder, 5), lambda: story(machines))
        (first,), (second,) = (run.ranks().items() for run in machines)
        assert (first[0], second[0]) == (0, 1)
        network.cut()
        # Beyond the timeout: the search for the rank at fault, and the end of the processes.
        until(
            lambda: not any(run.ranks() for run in machines),
            lambda: story(machines),
            timeout_seconds + 30,
        )
        # The second agent lost its store, and waits until the kernel closes the connection.
        assert machines[0].wait() == 1, story(machines)
    (there,) = errors(folder / "log.txt")
    assert str(second[1]) in re.findall(r"\d+", there)
    (here,) = errors(folder / "log-rank1.txt")
    is_named = str(first[1]) in re.findall(r"\d+", here)
    assert not is_named, "it cannot know: the store is on the other machine"
    assert checkpoints.states_files(folder)


def errors(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if " ERROR " in line]
