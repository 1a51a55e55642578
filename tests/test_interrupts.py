"""Signals that arrive while a run is at work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim import interrupts
from sim.engine.ray.session import _handle_sigterm_again
from sim.interrupts import interruptible, raise_if_interrupted
from tests.conftest import Sim

PROGRAM = """
import signal
import torch
from torch import nn

def load_data():
    examples = torch.utils.data.TensorDataset(torch.ones(8, 2), torch.arange(8) % 2)
    return examples, examples

def Net():
    return nn.Linear(2, 2)

def train(net, loader):
    signal.raise_signal(signal.{name})
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_dry_run_as_ctrl_c_does(name: str, sim: Sim, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(name=name))
    (tmp_path / "temporary").mkdir()
    prefix = ("env", f"TMPDIR={tmp_path / 'temporary'}")
    done = sim("run", "--program", "program.py", "--num-clients", "2", "--engine", "inline", prefix=prefix)
    assert done.returncode == 130, done
    assert done.stderr.splitlines()[-1] == "sim: interrupted; what was done is on disk"
    assert not [path.name for path in (tmp_path / "temporary").iterdir() if path.name.startswith("sim-trial-")]
    assert not (tmp_path / "results").exists()


@pytest.fixture
def _handlers() -> Iterator[None]:
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_after_the_first_signal_of_an_inner_block_the_second_one_ends_the_process() -> None:
    outer = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with interruptible():
        with interruptible():
            pass
        for number in (signal.SIGTERM, signal.SIGHUP):
            assert callable(signal.getsignal(number))
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.raise_signal(signal.SIGHUP)  # as that of the system after that of the shell
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == outer
    raise_if_interrupted()


@pytest.mark.usefixtures("_handlers")
def test_an_interrupt_that_gets_lost_in_a_destructor_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last:
        def __init__(self, error: type[BaseException] | None = None) -> None:
            self.error = error

        def __del__(self) -> None:
            if self.error is not None:
                raise self.error
            signal.raise_signal(signal.SIGTERM)

    shown: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: shown.append(lost.exc_type))
    before = sys.unraisablehook
    with interruptible():
        Last(ValueError)
        Last()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert shown == [ValueError]
    assert sys.unraisablehook is before


@pytest.mark.usefixtures("_handlers")
def test_a_later_run_of_the_same_command_hears_sighup_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sweep: after a run that ended well, its block leaves the signals ignored."""
    monkeypatch.setattr(interrupts, "_ends_after_block", True)
    with interruptible():
        with interruptible():
            pass
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGHUP)


@pytest.mark.usefixtures("_handlers")
def test_nohup_stays() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGHUP)
        raise_if_interrupted()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.slow
def test_a_process_that_user_code_forks_is_ended_by_sigterm() -> None:
    """As ``multiprocessing.Pool`` ends its processes, which have inherited how this one handles the signal."""
    with interruptible():
        for _ in range(5):  # most signals that are sent at once arrive before the process can run Python code
            forked = multiprocessing.get_context("fork").Process(target=signal.pause)
            forked.start()
            os.kill(forked.pid, signal.SIGTERM)
            forked.join(60)
            assert forked.exitcode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_python_gets_sigterm_again_from_the_thread_that_starts_ray() -> None:
    """Ray's core sets a handler that Python knows nothing of; here, one that ignores the signal stands for it."""
    set_handler, handler_of = ctypes.pythonapi.PyOS_setsig, ctypes.pythonapi.PyOS_getsig
    set_handler.argtypes, handler_of.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def ray_starts() -> None:
        set_handler(signal.SIGTERM, 1)
        thread = threading.Thread(target=_handle_sigterm_again)
        thread.start()
        thread.join()

    ray_starts()
    assert handler_of(signal.SIGTERM) is None  # SIG_DFL: Python has no handler of its own yet
    with interruptible():
        ray_starts()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
