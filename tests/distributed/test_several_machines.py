"""Two torchrun agents, one for each machine: on loopback, and in two networks joined by a cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from agents import (
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

from s3prl_mtl import checkpoint as checkpoints

STEPS = 30


def meeting_at(host: str, machine: int, *words: str, port: int) -> list[str]:
    """torchrun's words on one of two machines with a rank each; the first hosts the rendezvous."""
    return [
        *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "test"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{port}"),
        *("--rdzv-conf", f"is_host={int(machine == 0)}", *words, "run_mtl.py"),
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
def test_two_machines_train_as_one_with_as_many_ranks(
    variables: dict[str, str], one_machine: Path, tmp_path: Path
):
    folder, port = tmp_path / "run", free_port()
    with ExitStack() as stack:
        machines = [
            stack.enter_context(
                Started(
                    [
                        *TORCHRUN,
                        *meeting_at("127.0.0.1", machine, port=port),
                        *training(folder, STEPS),
                    ],
                    tmp_path / f"out-{machine}",
                    variables,
                )
            )
            for machine in range(2)
        ]
        assert [run.wait() for run in machines] == [0, 0], story(machines)
    assert same_weights(one_machine, folder / f"states-{STEPS}.ckpt")
    assert steps_logged(folder) == list(range(1, STEPS + 1))
    assert (folder / "log-rank1.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_on_one_machine_takes_both_back_to_the_last_checkpoint(
    variables: dict[str, str], one_machine: Path, tmp_path: Path, victim: int
):
    folder, port = tmp_path / "run", free_port()
    words = training(folder, STEPS, save_step=2)
    with ExitStack() as stack:
        machines = [
            stack.enter_context(
                Started(
                    [
                        *TORCHRUN,
                        *meeting_at("127.0.0.1", machine, "--max-restarts", "1", port=port),
                        *words,
                    ],
                    tmp_path / f"out-{machine}",
                    variables,
                )
            )
            for machine in range(2)
        ]
        until(lambda: reached(folder, 5), lambda: story(machines))
        # Which machine has which rank is up to the agents.
        os.kill(next(run.ranks()[victim] for run in machines if victim in run.ranks()), 9)
        assert [run.wait() for run in machines] == [0, 0], story(machines)
    assert "Resuming" in (folder / "log.txt").read_text()
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
def test_machines_that_lose_each_other_stop_and_say_so(
    network: Network, variables: dict[str, str], tmp_path: Path
):
    folder, port, timeout = tmp_path / "run", 29500, 15
    first = network.addresses[0]
    words = training(folder, 100_000, "--timeout", str(timeout), save_step=2)
    with ExitStack() as stack:
        machines = [
            stack.enter_context(
                Started(
                    [
                        *network.on(machine),
                        *TORCHRUN,
                        *meeting_at(
                            first, machine, "--local-addr", network.addresses[machine], port=port
                        ),
                        *words,
                    ],
                    tmp_path / f"out-{machine}",
                    variables | {"GLOO_SOCKET_IFNAME": network.cable},
                )
            )
            for machine in range(2)
        ]
        until(lambda: reached(folder, 5), lambda: story(machines))
        processes = {rank: (run, pid) for run in machines for rank, pid in run.ranks().items()}
        assert sorted(processes) == [0, 1]
        network.cut()
        for rank, (run, _) in processes.items():
            # The timeout, and what it takes to find out who is to blame.
            until(lambda: rank not in run.ranks(), lambda: story(machines), timeout + 30)  # noqa: B023
        assert all(run.wait() == 1 for run in machines), story(machines)
    logs = [(folder / name).read_text() for name in ("log.txt", "log-rank1.txt")]
    for log in logs:
        assert "ERROR" in log
    assert checkpoints.states_files(folder)
