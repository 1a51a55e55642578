"""Signals that arrive while a run is at work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading

import pytest

from sim.engine.ray.session import _handle_sigterm_again
from sim.interrupts import interruptible


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
