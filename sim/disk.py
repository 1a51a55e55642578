"""How much space files and folders take on a disk, and what is no file although it stands where one is expected."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class NoFileError(OSError):
    """A pipe, a socket or a device, which may be read for ever."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(errno.EINVAL, f"is no file{reason}")

    def __str__(self) -> str:
        return str(self.strerror)


def check_is_file(path: Path, *, or_pipe: bool = False, read_again: bool = False) -> None:
    """Check that to read a path ends; a folder passes, because to open it is an error of its own.

    Args:
        or_pipe: let a named pipe pass, too, as a shell makes one of ``<(command)``.
        read_again: it is read more than once, which the message says.

    Raises:
        OSError: there is nothing, or it is something else than a file.
    """
    mode = path.stat().st_mode
    is_expected = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (or_pipe and stat.S_ISFIFO(mode))
    if not is_expected and not path.samefile(os.devnull):
        raise NoFileError(", and it is read more than once" if read_again else "")


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
