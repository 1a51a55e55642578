"""What each actor is doing, in a small file that it and the driver map: readable when it hangs or is dead."""

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

_NOBODY = -1.0
_MOST_ACTORS = 4096
_COLUMNS = 4  # client_id, time.monotonic() of its start, clients in this computation, process id


@dataclass(frozen=True)
class CurrentClient:
    """A client that a process is executing, ``num_clients`` with others that follow it; since when."""

    client_id: int
    seconds: float
    num_clients: int
    pid: int


class Liveness:
    """One row an actor; each row has one writer."""

    def __init__(self, path: Path) -> None:
        self._rows: NDArray[np.float64] = np.memmap(path, np.float64, "r+").reshape(-1, _COLUMNS)

    def begin(self, actor: int, client_id: int, num_clients: int = 1) -> None:
        """Note that a client begins."""
        self._rows[actor] = client_id, time.monotonic(), num_clients, os.getpid()

    def end(self, actor: int) -> None:
        """Note that the last client is done."""
        self._rows[actor, 0] = _NOBODY

    def doing(self, actor: int) -> CurrentClient | None:
        """What an actor is doing; None between clients, and for one on another machine."""
        client_id, began, num_clients, pid = self._rows[actor].tolist()
        if client_id == _NOBODY:
            return None
        return CurrentClient(int(client_id), time.monotonic() - began, int(num_clients), int(pid))


@contextmanager
def liveness_file(folder: Path | None) -> Iterator[Path]:
    """Make the file of a board in ``folder``, or where temporary files are; it is gone at the end."""
    descriptor, name = tempfile.mkstemp(prefix="sim-board-", dir=folder)
    try:
        os.write(descriptor, np.full((_MOST_ACTORS, _COLUMNS), _NOBODY).tobytes())
        os.close(descriptor)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
