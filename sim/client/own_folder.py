"""A folder for the clients of a process, in which each of them finds the files of the current folder as they are there.

Clients in several processes would overwrite a file such as ``checkpoint.pt`` for each other between writing and reading
it, and in one process the next client would find what the last one has written. So they work in a folder that has
copies of the files of the current folder, and links to those that programs do not write: code, what is large, and
folders with many files. What a client has written or removed there is undone before the next one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sim.errors import some

TRIAL_PREFIX, _PREFIX = "sim-trial-", "sim-client-"
_CODE = (".py", ".pyc", ".so", ".ipynb")
_MOST_COPIED_OF_A_FOLDER = 200
_NO_RECENT_CHANGE_NS = 10**8  # file systems note times in steps of milliseconds, within which a second change is unseen

State = tuple[int, int, int]


def state_of(path: str) -> State:
    """Return what changes when a file is written or replaced."""
    found = os.stat(path)  # noqa: PTH116 - called for each file before each client
    return found.st_mtime_ns, found.st_size, found.st_ino


def _settled(modified_ns: int) -> int | None:
    """Return when something was changed; None if another change may follow that leaves this time as it is."""
    return modified_ns if time.time_ns() - modified_ns > _NO_RECENT_CHANGE_NS else None


@dataclass(frozen=True)
class OwnFolderSpec:
    """How a process makes the folder for its clients.

    Attributes:
        shared: a folder of which all clients find a link: runs are written there.
        written: files of which has been said that clients write them, which are copied whatever their size; None if
            nothing is to be said of others.
        temporary: where the folder is made; None for where temporary files are.
        prefix: of its name.
        most_copied_bytes: in total; files of ``written`` count, but are copied beyond it.
        most_entries: of folders in the current one that are made anew; what is deeper then is a link.
    """

    shared: Path
    written: frozenset[str] | None = None
    temporary: Path | None = None
    prefix: str = _PREFIX
    most_copied_bytes: int = 2**26
    most_entries: int = 1000


@dataclass
class _Copy:
    """A file and its copy."""

    source: str
    place: str
    num_bytes: int
    of_source: State | None = None  # None if it must be copied again
    of_place: State | None = None


@dataclass
class _Twin:
    """A folder, and one that has the same in it."""

    source: Path
    place: Path
    modified_ns: int | None = None  # of the source when it was read; None if it must be read again
    num_entries: int = 0
    copies: dict[str, _Copy] = field(default_factory=dict)
    folders: dict[str, _Twin] = field(default_factory=dict)


class OwnFolder:
    """The folder of a process, for one client after another; it is removed when the process ends."""

    def __init__(self, spec: OwnFolderSpec) -> None:
        self._spec = spec
        self._twin: _Twin | None = None
        self._num_entries = self._num_bytes = 0
        self._written = spec.written

    @contextmanager
    def entered(self) -> Iterator[Path]:
        """Let the block work in the folder.

        Raises:
            OSError: it cannot be made, because the disk is full.
        """
        try:
            before = Path.cwd()
        except FileNotFoundError:  # somebody has removed it, and nothing is in it
            yield Path()
            return
        twin = self._of(before)
        try:
            self._restore(twin)
        except OSError:  # the last client has removed the folder, or a file vanished meanwhile
            self.remove()
            twin = self._of(before)
            self._restore(twin)
        os.chdir(twin.place)
        try:
            yield twin.place
        finally:
            os.chdir(before)
            with suppress(OSError):  # the client has removed the folder
                self._say(_changed(twin))

    def remove(self) -> None:
        """Remove the folder."""
        if self._twin is not None:
            self._removal()
        self._twin, self._num_entries, self._num_bytes = None, 0, 0

    def _of(self, source: Path) -> _Twin:
        if self._twin is None or self._twin.source != source:
            self.remove()
            place = tempfile.mkdtemp(prefix=self._spec.prefix, dir=self._spec.temporary)
            self._removal = weakref.finalize(self, _remove, place, os.getpid())
            self._twin = _Twin(source, Path(place))
        return self._twin

    def _restore(self, twin: _Twin) -> None:
        """Make a folder what its source is."""
        source_ns, place_ns = (os.stat(path).st_mtime_ns for path in (twin.source, twin.place))  # noqa: PTH116
        if source_ns != twin.modified_ns or place_ns != 0:
            self._fill(twin, source_ns)
        for name, copy in list(twin.copies.items()):
            if copy.of_place is None or copy.of_source != state_of(copy.source):
                self._forget(twin, name)
                self._copy(twin, name)
                os.utime(twin.place, ns=(0, 0))
        for inner in twin.folders.values():
            self._restore(inner)

    def _fill(self, twin: _Twin, source_ns: int) -> None:
        with os.scandir(twin.source) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        self._num_entries += len(entries) - twin.num_entries
        twin.num_entries = len(entries)
        names = {entry.name for entry in entries}
        for name in {*os.listdir(twin.place), *twin.copies, *twin.folders}:  # noqa: PTH208
            if name not in names or not _is_as_made(twin, name):
                self._forget(twin, name)
        for entry in entries:
            if not os.path.lexists(twin.place / entry.name):
                self._make(twin, entry)
        # What a client adds or removes changes this time, however soon.
        os.utime(twin.place, ns=(0, 0))
        twin.modified_ns = _settled(source_ns)

    def _make(self, twin: _Twin, entry: os.DirEntry[str]) -> None:
        source, place = Path(entry.path), twin.place / entry.name
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            is_here = entry.stat(follow_symlinks=_is_file(entry)).st_dev == twin.source.stat().st_dev  # unlike /proc
            if is_here and self._is_looked_into(entry):
                place.mkdir()
                twin.folders[entry.name] = _Twin(source, place)
            elif is_here and self._is_copied(twin, entry):
                self._copy(twin, entry.name)
            else:
                place.symlink_to(source)

    def _is_looked_into(self, entry: os.DirEntry[str]) -> bool:
        path = Path(entry.path)
        return (
            entry.is_dir(follow_symlinks=False)
            and not entry.name.startswith((".", "__", TRIAL_PREFIX, _PREFIX))
            and path != self._spec.shared
            and self._num_entries <= self._spec.most_entries
            and os.access(path, os.R_OK | os.X_OK)
        )

    def _is_copied(self, twin: _Twin, entry: os.DirEntry[str]) -> bool:
        if not _is_file(entry) or entry.name.endswith(_CODE) or not os.access(entry.path, os.R_OK):
            return False
        fits = (
            twin.num_entries <= _MOST_COPIED_OF_A_FOLDER
            and self._num_bytes + entry.stat().st_size <= self._spec.most_copied_bytes
        )
        return fits or self._name_of(twin, entry.name) in (self._spec.written or ())

    def _name_of(self, twin: _Twin, name: str) -> str:
        """Return the name of something in a folder, as it is seen from the current folder."""
        assert self._twin is not None
        return os.path.relpath(twin.place / name, self._twin.place)

    def _copy(self, twin: _Twin, name: str) -> None:
        source, place = str(twin.source / name), str(twin.place / name)
        before = state_of(source)
        shutil.copy2(source, place)
        after = state_of(place)
        twin.copies[name] = _Copy(source, place, after[1], before if _settled(before[0]) else None, after)
        self._num_bytes += after[1]

    def _forget(self, twin: _Twin, name: str) -> None:
        """Remove what has this name, and what is known of it."""
        if name in twin.folders:
            pending = [twin.folders.pop(name)]
            for inner in pending:
                pending += inner.folders.values()
                self._num_entries -= inner.num_entries
                self._num_bytes -= sum(copy.num_bytes for copy in inner.copies.values())
        if name in twin.copies:
            self._num_bytes -= twin.copies.pop(name).num_bytes
        path = twin.place / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _say(self, changed: list[str]) -> None:
        """Say once if a client has written a file of which nobody knew that it would."""
        new = sorted(set(changed) - self._written) if self._written is not None else []
        if new:
            self._written = None
            logging.getLogger("sim").warning(
                "note: a client has written %s into the current folder; each client does so in a folder of its own, "
                "and what it writes there is removed after it",
                some(new),
            )


def _changed(twin: _Twin, prefix: str = "") -> list[str]:
    """Return the files that are new or not what they were; what is no longer as it was is marked."""
    names = []
    for name, copy in twin.copies.items():
        try:
            is_same = state_of(copy.place) == copy.of_place
        except OSError:  # it is gone, or its folder is a file now
            is_same = False
        if not is_same:
            copy.of_place = None
            names.append(prefix + name)
    if os.stat(twin.place).st_mtime_ns != 0:  # noqa: PTH116
        twin.modified_ns = None
        new = set(os.listdir(twin.place)) - set(os.listdir(twin.source))  # noqa: PTH208
        names += [prefix + name for name in new if (twin.place / name).is_file()]
    for name, inner in twin.folders.items():
        with suppress(OSError):
            names += _changed(inner, f"{prefix}{name}/")
    return names


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or leads to one; a link that leads to itself does not."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_as_made(twin: _Twin, name: str) -> bool:
    place = twin.place / name
    try:
        if name in twin.folders:
            return place.is_dir() and not place.is_symlink()
        if name in twin.copies:
            return twin.copies[name].of_place is not None and place.is_file() and not place.is_symlink()
        return place.readlink() == twin.source / name
    except OSError:
        return False


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # and no fork of it
        shutil.rmtree(folder, ignore_errors=True)
