"""Controls when Ctrl-C, SIGTERM and SIGHUP take effect."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_arrived: list[int] = []  # signals since the beginning of the outermost block that is interruptible
_before: dict[int, Any] = {}  # the handlers before that block; empty outside of it
_ends_after_block = False


def process_ends_after_block() -> None:
    """Let what arrives after an ``interruptible`` block that ended well be ignored.

    All is on disk by then; the process that ends would only say that it was killed.
    """
    global _ends_after_block  # noqa: PLW0603 - signals, too, are those of the process
    _ends_after_block = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Make the first Ctrl-C, SIGTERM or SIGHUP raise KeyboardInterrupt, and the second one end the process at once.

    A loop inside the block calls ``raise_if_interrupted``, because an exception may get lost, of which Python then says
    nothing on the screen. Blocks may be nested.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in numbers:  # the shell and the system each send a SIGHUP when a terminal is closed
            signal.signal(other, signal.SIG_IGN if other == signal.SIGHUP else signal.SIG_DFL)
        _arrived.append(number)
        raise KeyboardInterrupt

    # An inner block before this one may have left SIGHUP ignored.
    is_outermost, numbers = not _before, [*_before] or listened_to()
    before: dict[int, Any] = {number: signal.signal(number, interrupt) for number in numbers}
    report = sys.unraisablehook
    if is_outermost:
        _before.update(before)
        sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else report(lost)
    try:
        yield
        if _ends_after_block:
            before = dict.fromkeys(before, signal.SIG_IGN)
            _arrived.clear()
    finally:
        if is_outermost:
            _arrived.clear()
            _before.clear()
            sys.unraisablehook = report
        if not _arrived:  # else the second signal ends the process also after an inner block
            for number, handler in before.items():
                signal.signal(number, handler)


def listened_to() -> list[signal.Signals]:
    """Return the signals that end a run; not SIGHUP under nohup."""
    return [each for each in _SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived in an ``interruptible`` block that goes on nevertheless.

    Python drops what is raised in a destructor or in a callback of the garbage collector, which run at any moment.
    """
    if _arrived and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay a Ctrl-C, SIGTERM or SIGHUP that arrives inside the block until the end of the block.

    It is not enough to block the signals in this thread, because Ray has other threads that would receive them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []

    def later(number: int, frame: FrameType | None) -> None:
        caught.append((number, frame))

    before: dict[int, Any] = {number: signal.signal(number, later) for number in listened_to()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in caught:
        if callable(before[number]):
            before[number](number, frame)
        elif before[number] == signal.SIG_DFL:
            signal.raise_signal(number)


def _hold_signals() -> None:
    """Block the signals during a fork, because Python drops those that reach the new process before its hooks run."""
    if _before:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _release_signals() -> None:
    if _before:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _release_signals_in_child() -> None:
    """Let the signals end a process that user code has forked, as those of ``multiprocessing.Pool`` are ended."""
    for number, handler in _before.items():
        signal.signal(number, handler or signal.SIG_DFL)
    _release_signals()
    _before.clear()


os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_release_signals_in_child)
