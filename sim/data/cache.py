"""The cache of decoded data sets and partitions: made once, checked at each start, then mapped by every process.

Its folder is ``$SIM_CACHE``, by default ``~/.cache/sim``. Beside the files of an entry, ``files.json`` has their sizes
and checksums. ``cached`` reads an entry whole once in a process, so that a single changed byte is found; processes
that map the entry afterwards do not read it again.

A process that uses an entry has a shared lock on its folder, so that ``sim cache clear`` leaves it. The time at which
the folder itself was changed is that of the last use.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.disk import bytes_of
from sim.errors import DataError

_FORMAT = 3  # part of every key; increase it when the format of the stored files changes
_MAKING = ".making-"
_CHECKED: dict[Path, tuple[Any, str]] = {}  # entries that this process has read whole → (times and sizes, checksum)
_NO_MORE_FILES = errno.EMFILE, errno.ENFILE
_MOST_USED = 64  # entries that one process keeps locked; a run has two, and a process may make many runs
# Entries that this process uses, the last one at the end → file descriptor of the lock, and of which file it is.
_USED: dict[Path, tuple[int, os.stat_result]] = {}
_USING = threading.Lock()  # a program may use the cache from several threads


def cache_folder() -> Path:
    """Return the folder of the cache.

    Raises:
        DataError: ``SIM_CACHE`` begins with ~ or is relative, but there is no home or no current folder.
    """
    try:
        return Path(os.environ.get("SIM_CACHE") or "~/.cache/sim").expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no home folder, or the current folder was removed
        raise DataError(f"the cache has no folder: {error}; set SIM_CACHE to a writable folder") from None


def cached(kind: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """Return the cache folder for ``key``; if it does not exist or is damaged, ``make(folder)`` writes its files.

    The folder appears by a rename when it is complete. If two processes make it at the same time, the first is kept.

    Raises:
        DataError: the cache cannot be read or written.
    """
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    folder = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:20]
    try:
        use(folder)  # first, so that it is not removed while it is read
        if folder in _CHECKED and folder.is_dir() and _CHECKED[folder][0] == _times(folder):
            return folder
        problem = _damage(folder) if folder.is_dir() else None
        if folder.is_dir() and problem is None:
            return folder
        if problem is not None:
            logging.getLogger("sim").warning(
                "note: the cached %s %s is damaged (%s) and is made again", kind, folder, problem
            )
        _make(folder, text, make)
    except OSError as error:
        if error.errno in _NO_MORE_FILES:
            raise unreadable(f"the cache {folder.parent}", error) from error
        raise DataError(
            f"the cache {folder.parent} cannot be used: {error.strerror}; set SIM_CACHE to a folder that you can write"
        ) from error
    return folder


def unreadable(what: str, error: Exception) -> DataError:
    """Return the error for an entry that cannot be read: it is damaged, or this process has too many open files."""
    if isinstance(error, OSError) and error.errno in _NO_MORE_FILES:
        return DataError(f"{what} cannot be opened: {error.strerror}; close files, or raise ulimit -n")
    return DataError(f"{what} is damaged ({error}); delete that folder")


def use(folder: Path) -> None:
    """Lock an entry for this process, if it is there, so that no other removes it, and note the time."""
    with suppress(OSError), _USING:  # it is not there, or it belongs to another user
        if folder in _USED and not os.path.samestat(_USED[folder][1], folder.stat()):
            _release(folder)
        if folder not in _USED:
            lock = os.open(folder, os.O_RDONLY)
            _USED[folder] = lock, os.fstat(lock)
            if len(_USED) > _MOST_USED:
                _release(next(iter(_USED)))
            fcntl.flock(lock, fcntl.LOCK_SH)
        _USED[folder] = _USED.pop(folder)
        os.utime(folder)


def _release(folder: Path) -> None:
    lock, known = _USED.pop(folder)
    with suppress(OSError):  # user code has closed it
        if os.path.samestat(os.fstat(lock), known):  # and has not opened another file, which got its number
            os.close(lock)


@dataclass(frozen=True)
class Entry:
    """What the cache holds for one key.

    Attributes:
        key: what the content depends on, see ``cached``; empty if it cannot be read.
        used_at: time of the last use, in seconds since 1970.
        removed: whether ``clear`` has removed it.
        problem: why it has not.
    """

    folder: Path
    key: dict[str, Any]
    num_bytes: int
    used_at: float
    removed: bool = False
    problem: str = ""


def entries() -> list[Entry]:
    """Return what is in the cache, the entry that was used last at the end.

    Raises:
        DataError: the cache cannot be read.
    """
    found = []
    try:
        folders = [each for kind in cache_folder().iterdir() if kind.is_dir() for each in kind.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"the cache {cache_folder()} cannot be read: {error.strerror}") from error
    for folder in folders:
        if folder.name.startswith("."):  # it is being made, perhaps by another user
            continue
        try:
            if (folder / "key.json").is_file():
                found.append(Entry(folder, _key_of(folder), bytes_of(folder), folder.stat().st_mtime))
        except FileNotFoundError:  # another process has removed it meanwhile
            continue
        except OSError as error:
            logging.getLogger("sim").warning("note: the cached %s cannot be read: %s", folder, error.strerror)
    return sorted(found, key=lambda entry: (entry.used_at, entry.folder))


def _key_of(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        return key if isinstance(key, dict) else {}
    return {}


def clear(entry: Entry) -> Entry:
    """Remove an entry that no running process uses; return what became of it."""
    folder, parent = entry.folder, entry.folder.parent
    lock = None
    try:
        with _locked(parent):
            lock = _lock(folder)
            if lock is None:
                return replace(entry, problem="a running process uses it")
            target = Path(tempfile.mkdtemp(prefix=_MAKING, dir=parent))
            folder.rename(target)  # so that nobody sees half of it
        shutil.rmtree(target)
    except OSError as error:
        return replace(entry, problem=error.strerror or "cannot be removed")
    finally:
        if lock is not None:
            os.close(lock)
    return replace(entry, removed=True)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as a .npy file.

    Raises:
        OSError: the disk is full. ``numpy.save`` does not notice that at the end of a file, or gives no reason.
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def checksum(folder: Path) -> str:
    """Return the checksum of the content of an entry that ``cached`` has returned in this process."""
    return _CHECKED[folder][1]


def _make(folder: Path, key: str, make: Callable[[Path], None]) -> None:
    cache, parent = folder.parent.parent, folder.parent
    cache.mkdir(parents=True, exist_ok=True)
    # Users who share a cache give its folder the permissions for that; what is made in it gets the same ones.
    mode = stat.S_IMODE(cache.stat().st_mode)
    if not parent.is_dir():
        parent.mkdir(exist_ok=True)
        _set_mode(parent, mode)
    with _locked(parent):  # otherwise another process could remove the folder before it is locked
        _remove_abandoned(parent)
        target = Path(tempfile.mkdtemp(prefix=_MAKING, dir=parent))
        lock = _lock(target)  # so that no other process takes it for abandoned
    try:
        make(target)
        (target / "key.json").write_text(key, encoding="utf-8")
        files = {p.name: [p.stat().st_size, _crc32(p), _sha256(p)] for p in sorted(target.iterdir())}
        (target / "files.json").write_text(json.dumps([_crc32_of(files), files]), encoding="utf-8")
        for path in target.iterdir():
            _set_mode(path, mode & 0o644)
        _set_mode(target, mode & 0o755)
        with _locked(parent):
            if folder.is_dir() and _damage(folder) is None:
                use(folder)
                return  # another process was faster
            damaged = Path(tempfile.mkdtemp(prefix=_MAKING, dir=parent))
            try:
                if folder.is_dir():
                    folder.rename(damaged)
                target.rename(folder)
            finally:
                shutil.rmtree(damaged, ignore_errors=True)
            _CHECKED[folder] = _times(folder), _content(files)
            if lock is not None:
                os.close(lock)
                lock = None
            use(folder)  # nobody removes entries in this block
    finally:
        shutil.rmtree(target, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _damage(folder: Path) -> str | None:
    """Read an entry whole; return what is wrong with it, or None.

    Raises:
        OSError: it cannot be read, for example because it belongs to another user.
    """
    try:
        times = _times(folder)
        crc32_of_files, files = json.loads((folder / "files.json").read_text(encoding="utf-8"))
        if crc32_of_files != _crc32_of(files):
            return "files.json has another checksum"
        for name, (size, crc32, _) in files.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if _crc32(path) != crc32:
                return f"{name} has another checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "files.json cannot be read"
    _CHECKED[folder] = times, _content(files)
    return None


def _times(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())


def _content(files: dict[str, Any]) -> str:
    """Return one checksum of the data; ``key.json`` has places and times of the source, which may change."""
    sums = {name: sha256 for name, (_, _, sha256) in files.items() if name != "key.json"}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _crc32_of(files: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _crc32(path: Path) -> int:
    """Return the CRC-32 of a file, which every start computes, in a third of the time of SHA-256."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_abandoned(parent: Path) -> None:
    """Remove what processes that were killed had half made; a living process has locked its folder."""
    for path in parent.glob(f"{_MAKING}*"):
        with suppress(OSError):
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time execute the block, where the file system has locks."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder for this process; return the file descriptor, or None if another process has locked it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _set_mode(path: Path, mode: int) -> None:
    with suppress(OSError):  # some file systems have no permissions
        path.chmod(mode)
