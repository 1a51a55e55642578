"""Runs a ``sim`` command in a child process, which ends with this process."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sim.errors import WriteError, one_line


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable the garbage collector inside the block; it takes an eighth of the time of importing PyTorch."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_open_blocks = 0
_leaves_garbage = False  # the last block ended by an error, whose traceback held what it had made


@contextmanager
def imports_are_no_garbage() -> Iterator[None]:
    """Leave what exists now out of each search for garbage inside the block, and search once at its end.

    Some of Flower's strategies search for garbage once per client, which takes tenths of a second beside PyTorch. What
    the block has made may refer to itself, as a strategy and its clients do, and hold files of the cache.
    """
    global _open_blocks, _leaves_garbage  # noqa: PLW0603 - the collector, too, is one for the process
    # Python counts what is frozen one by one, which takes 50 ms beside PyTorch; within another block it is known.
    was_frozen = _open_blocks > 0 or gc.get_freeze_count() > 0
    if _leaves_garbage:
        gc.collect()
        _leaves_garbage = False
    gc.freeze()
    _open_blocks += 1
    try:
        yield
    except BaseException:
        _leaves_garbage = True
        raise
    finally:
        _open_blocks -= 1
        gc.collect()
        if not was_frozen:
            gc.unfreeze()


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_KEPT_BYTES = 32 * 2**20  # the most that glibc takes
_MOST_KEPT_BYTES = 4 * _LARGEST_KEPT_BYTES
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let the C library keep memory that was freed for the next tensors, where it can (glibc).

    It would give blocks of some MB back to the system at once, as each batch of a test needs them, and get them again
    page by page: a central test of a small CNN then takes a quarter longer. What the user has set stays.
    """
    if _LIBC is not None and hasattr(_LIBC, "mallopt") and not any(name in os.environ for name in _OWN_SETTINGS):
        _LIBC.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT_BYTES)


def return_free_memory() -> None:
    """Let the C library give memory that nobody uses back to the system, where it can (glibc).

    Gaps between small objects of many threads grow by about 10 MB in 100 rounds with Ray; Python's own objects do not.
    """
    if _LIBC is not None and hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


class Child:
    """A running command. The terminal's Ctrl-C does not reach it, so its parent process must stop it."""

    def __init__(self, words: Sequence[str]) -> None:
        """
        Args:
            words: the command and its flags, e.g. ``["run", "--num-rounds", "3"]``.
        """
        self.started = time.perf_counter()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it is read after this call
        parent = os.getpid()

        def end_with_parent() -> None:  # on Linux only; elsewhere, a child outlives a parent that is killed
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:
                    os.kill(os.getpid(), signal.SIGTERM)

        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sim", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._output,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs here
        )

    @property
    def seconds(self) -> float:
        """Return the time since the start in seconds."""
        return time.perf_counter() - self.started

    def poll(self) -> int | None:
        """Return the exit code; None while the command is running."""
        return self.process.poll()

    def error(self) -> str:
        """Return the last line of the output, without the name of the command, or the signal that killed it."""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 100_000))  # a client may print gigabytes
        lines = self._output.read().decode(errors="replace").splitlines()
        code = self.process.poll()
        last = one_line(next((line.strip() for line in reversed(lines) if line.strip()), ""))
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}" + (f" after: {last}" if last else "")
        return last.removeprefix("sim: ")

    def end(self) -> None:
        """Send SIGTERM, so that the command writes a checkpoint and ends, and wait for the end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def kill(self) -> None:
        """Kill the command at once; its Ray processes end with it."""
        self.process.kill()
        self.process.wait()


class Children:
    """The running commands; those that still run at the end of the block are stopped with SIGTERM."""

    def __init__(self) -> None:
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._running:
            if child.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child in self._running:
            child.process.wait()

    def start(self, words: Sequence[str]) -> Child:
        """Start a command."""
        child = Child(words)
        self._running = [other for other in self._running if other.poll() is None] + [child]
        return child


def written(folder: Path, name: str, config_toml: str) -> Path:
    """Write a file for ``--config`` of a child and return its path.

    Raises:
        WriteError: the disk is full.
    """
    path = folder / f"{name}.toml"
    try:
        path.write_text(config_toml, encoding="utf-8")
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from None
    return path
