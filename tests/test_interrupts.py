"""Signals that arrive while a run is at work."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

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
