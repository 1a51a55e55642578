"""One ``sim`` in a process of its own, which ends with this one and whose last line says what went wrong."""

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


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from running, which takes an eighth of the time that PyTorch takes to import."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A command under way. A terminal's Ctrl-C does not reach it: whoever started it passes that on."""

    def __init__(self, words: Sequence[str]) -> None:
        """
        Args:
            words: the command and its flags, e.g. ``["run", "--num-rounds", "3"]``.
        """
        self.started = time.perf_counter()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child is of interest
        parent = os.getpid()

        def end_with_parent() -> None:  # Linux only; elsewhere a killed parent leaves its children to finish
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:
                    os.kill(os.getpid(), signal.SIGTERM)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "sim", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._output,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs here
        )

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.perf_counter() - self.started

    def poll(self) -> int | None:
        """Its exit code; None while it goes on."""
        return self.process.poll()

    def error(self) -> str:
        """The last line that it printed, without the name of the command."""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()
        code = self.process.poll()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}" + (f" after: {last}" if last else "")
        return last.removeprefix("sim: ")

    def end(self) -> None:
        """Ask it to end, which writes a checkpoint, and wait for that."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def kill(self) -> None:
        """End it at once; its Ray ends with it."""
        self.process.kill()
        self.process.wait()


class Children:
    """Those that are under way; when this ends early, so do they, whole."""

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
    """Write a config for a child's ``--config`` and return its path."""
    path = folder / f"{name}.toml"
    path.write_text(config_toml, encoding="utf-8")
    return path
