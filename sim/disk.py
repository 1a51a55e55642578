"""How much space files and folders take on a disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; links count as nothing, like what is not there."""
    total = 0
    with suppress(OSError):  # another process removes it meanwhile
        if path.is_symlink():
            return 0
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            total = sum(bytes_of(Path(entry.path)) for entry in entries)
    return total


def shown_bytes(count: int) -> str:
    """Return a number of bytes for people, e.g. ``1.5 MiB``."""
    value, unit = float(count), 0
    while round(value, 1) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"
