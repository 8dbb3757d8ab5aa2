"""Effects of the signals of a scheduler, by moment and process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from s3prl_mtl.training.signals import STOP_SIGNALS, Stopped, StopSignals


def handlers() -> list:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_outside_a_deferred_context_a_signal_stops_at_once(number: signal.Signals):
    names: list[str] = []
    with StopSignals(names.append) as stop:
        with pytest.raises(Stopped, match=number.name):
            signal.raise_signal(number)
        assert names == [number.name] and stop.requested == number.name


def test_inside_a_signal_is_deferred_and_a_second_one_has_no_effect():
    names: list[str] = []
    done = []
    with StopSignals(names.append) as stop:
        with stop.deferred():
            assert stop.requested is None
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
                signal.raise_signal(number)
            done.append("the step")
        # Leaving it does not raise: the run decides, and saves before.
        assert stop.requested == "SIGTERM"
        with pytest.raises(Stopped, match="SIGTERM"), stop.deferred():
            done.append("another step")
    assert names == ["SIGTERM"] and done == ["the step"]


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("torchrun", [True, False])
def test_another_interrupt_ends_the_run_at_once(deferred: bool, torchrun: bool, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    done = []
    with (
        StopSignals() as stop,
        pytest.raises(KeyboardInterrupt) as ended,
        stop.deferred() if deferred else contextlib.nullcontext(),
    ):
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGINT)
            done.append("continued")
        if torchrun:  # the agent passes it on
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(ended.value, Stopped)
    assert stop.requested == "SIGINT" and done == ["continued"] * deferred


def test_the_error_states_the_signal():
    before = signal.getsignal(signal.SIGINT)  # A background process of a shell ignores it.
    with pytest.raises(Stopped) as ended, StopSignals():
        signal.raise_signal(signal.SIGINT)
    assert ended.value.signal == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is before


def test_nested_deferred_contexts_are_not_interrupted():
    with StopSignals() as stop, stop.deferred():
        signal.raise_signal(signal.SIGUSR1)
        with stop.deferred():
            inner = stop.requested
        signal.raise_signal(signal.SIGTERM)
        assert inner == stop.requested == "SIGUSR1"


def test_an_error_inside_ends_the_deferral():
    with StopSignals() as stop:
        with pytest.raises(KeyError), stop.deferred():
            raise KeyError
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_does_not_interrupt_the_cleanup_after_the_first():
    tidied = []
    with StopSignals(), pytest.raises(Stopped, match="SIGTERM"):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            tidied.append(True)
    assert tidied == [True]


def test_previous_handlers_are_restored():
    before = handlers()
    with StopSignals():
        assert all(new is not old for new, old in zip(handlers(), before, strict=True))
        with StopSignals() as inner:
            assert handlers() == [inner._handle] * len(STOP_SIGNALS)
    assert handlers() == before


def test_stopped_is_a_keyboard_interrupt():
    assert issubclass(Stopped, KeyboardInterrupt)


def test_no_handler_is_installed_outside_the_main_thread():
    before = handlers()
    found = []

    def work() -> None:
        with StopSignals() as stop, stop.deferred():
            found.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before] and handlers() == before


def fork(work: Callable[[], None]) -> int:
    """The wait status of a forked process that does this; 99 if it raises."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("deferred", [True, False])
def test_a_forked_process_does_not_stop_the_run_and_can_be_terminated(deferred: bool):
    readable, writable = os.pipe()
    with StopSignals(lambda name: os.write(writable, name.encode()) and None) as stop:

        def send(number: signal.Signals) -> int:
            return fork(lambda: signal.raise_signal(number))

        if deferred:
            with stop.deferred():
                statuses = [send(signal.SIGUSR1), send(signal.SIGTERM)]
        else:
            statuses = [send(signal.SIGUSR1), send(signal.SIGTERM)]
        assert os.WIFEXITED(statuses[0]) and os.WEXITSTATUS(statuses[0]) == 0
        assert os.WIFSIGNALED(statuses[1]) and os.WTERMSIG(statuses[1]) == signal.SIGTERM
        assert stop.requested is None
    os.close(writable)
    assert os.read(readable, 100) == b""
    os.close(readable)


RUN = """
import sys
from s3prl_mtl.training.signals import StopSignals, Stopped

def say(text):
    print(text, flush=True)

try:
    with StopSignals(lambda name: sys.stderr.write(name)) as stop:
        say("built")
        for step in range(3):
            with stop.deferred():
                say(f"step {step}")
                sys.stdin.readline()
                if stop.requested:
                    say(f"saved {step}")
except Stopped:
    say(f"stopped by {stop.requested}")
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_run_finishes_and_saves_its_step_after_a_signal(number: signal.Signals):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdin is not None and run.stdout is not None and run.stderr is not None
    assert [run.stdout.readline() for _ in range(2)] == ["built\n", "step 0\n"]
    run.stdin.write("\n")
    run.stdin.flush()
    assert run.stdout.readline() == "step 1\n"
    # It is pending before the line comes, and so is handled first, whether or not the process has
    # begun to wait for the line.
    run.send_signal(number)
    output, errors = run.communicate("\n", timeout=60)
    assert errors == number.name
    assert output.splitlines() == ["saved 1", f"stopped by {number.name}"]
    assert run.returncode == 0


def test_a_second_signal_does_not_turn_a_clean_end_into_a_failure():
    script = """
import os, signal
from s3prl_mtl.training.signals import Stopped, StopSignals
try:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    print("clean")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr
