"""What each actor is executing, in a small file that it and the driver map: readable when it hangs or is dead."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.errors import EngineError

SETTING_UP, TESTING = -2, -3  # in the place of a client_id

_IDLE = -1.0
_MOST_ACTORS = 4096
_COLUMNS = 4  # client_id, time.monotonic() of its start, clients in this computation, process id


@dataclass(frozen=True)
class CurrentClient:
    """A client that a process is executing, or its set-up or test.

    Attributes:
        client_id: or ``SETTING_UP``, or ``TESTING``.
        seconds: how long ago it was started.
        num_clients: it and those that follow it in the same computation.
        pid: of the process.
    """

    client_id: int
    seconds: float
    num_clients: int
    pid: int


class Liveness:
    """One row per actor; each row has one writer."""

    def __init__(self, path: Path) -> None:
        self._rows: NDArray[np.float64] = np.memmap(path, np.float64, "r+").reshape(-1, _COLUMNS)

    def begin(self, actor: int, client_id: int, num_clients: int = 1) -> None:
        """Record that a client begins."""
        row = self._rows[actor]
        row[1:] = time.monotonic(), num_clients, os.getpid()
        row[0] = client_id  # last: who reads a row while it is written sees no client with the time of another

    def end(self, actor: int) -> None:
        """Record that the last client has ended."""
        row = self._rows[actor]
        row[0] = _IDLE
        row[1:] = time.monotonic(), 0, os.getpid()

    def clear(self, actor: int) -> None:
        """Forget a process that is dead."""
        self._rows[actor] = _IDLE

    def last_sign(self, actor: int) -> tuple[float, int] | None:
        """Return ``time.monotonic()`` of what an actor wrote last, and its process id; None if it wrote nothing yet."""
        _, written, _, pid = self._rows[actor].tolist()
        return None if written == _IDLE else (written, int(pid))

    def current(self, actor: int) -> CurrentClient | None:
        """Return what an actor is executing; None between clients, and for an actor on another machine."""
        client_id, started, num_clients, pid = self._rows[actor].tolist()
        if client_id == _IDLE:
            return None
        return CurrentClient(int(client_id), time.monotonic() - started, int(num_clients), int(pid))


@contextmanager
def liveness_file(folder: Path | None) -> Iterator[Path]:
    """Make the file in ``folder``, or where temporary files are; it is removed at the end.

    Raises:
        EngineError: the disk is full.
    """
    descriptor, name = tempfile.mkstemp(prefix="sim-liveness-", dir=folder)
    try:
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(np.full((_MOST_ACTORS, _COLUMNS), _IDLE).tobytes())
        except OSError as error:
            raise EngineError(f"{name}: cannot be written: {error.strerror}") from None
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
