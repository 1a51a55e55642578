"""The files that the user's ``train`` and ``test`` write into the current folder, such as ``checkpoint.pt``.

Clients in several processes would overwrite such a file for each other between writing and reading it. Each client
therefore works in a folder of its own, in which it finds the files of the current folder: a copy of those that clients
write, and links to all others.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

import psutil

from sim.errors import ConfigError, some

_MOST_ENTRIES = 5000  # of a folder and those in it that are looked at, those at the top first
# What a trial copies, so that the original stays as it is; all else is linked, because programs do not write it.
_MOST_COPIED_BYTES = 2**29
_MOST_COPIED_OF_A_FOLDER = 200
_CODE = (".py", ".pyc", ".so", ".ipynb")
_State = tuple[int, int, int]


@contextmanager
def noted(folder: Path, but: Path) -> Iterator[list[str]]:
    """Give a list that holds, after the block, the files in a folder that were written in it, relative to the folder.

    Files that another process has open are left out, and so are those of other runs.

    Args:
        but: a folder in which other processes may write.
    """
    before = _states(folder, but)
    names: list[str] = []
    yield names
    changed = {name: state for name, state in _states(folder, but).items() if before.get(name) != state}
    of_others = _open_elsewhere() if changed else set()
    names += [
        name
        for name in changed
        if (folder / name).resolve() not in of_others and not _is_of_a_run(folder / name, folder)
    ]


def _is_of_a_run(path: Path, folder: Path) -> bool:
    """Whether a file is in the folder of a run, which another process may have made."""
    between = list(path.relative_to(folder).parents)[:-1]
    return any((folder / each / "environment.json").is_file() for each in between)


def _open_elsewhere() -> set[Path]:
    """Return the files that other processes have open, such as their logs: nobody else writes those."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        if process.pid != os.getpid():
            with suppress(psutil.Error, OSError):
                found |= {Path(file.path) for file in process.open_files()}
    return found


def _states(folder: Path, but: Path) -> dict[str, _State]:
    streams = {_inode_of_stream(number) for number in (1, 2)}  # which may be redirected into the folder
    found: dict[str, _State] = {}
    pending, count = deque([folder]), 0
    while pending and count < _MOST_ENTRIES:
        with suppress(OSError), os.scandir(pending.popleft()) as entries:
            for entry in entries:
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    if not (entry.name.startswith((".", "__")) or Path(entry.path) == but):
                        pending.append(Path(entry.path))
                    continue
                if entry.is_dir():  # a link to a folder
                    continue
                with suppress(OSError):  # a link to nothing, or a file that was removed meanwhile
                    state = entry.stat()
                    if state.st_ino not in streams:
                        found[os.path.relpath(entry.path, folder)] = state.st_mtime_ns, state.st_size, state.st_ino
    return found


def _inode_of_stream(number: int) -> int:
    try:
        return os.fstat(number).st_ino
    except OSError:
        return 0


@contextmanager
def trial_folder(but: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Let the block work in a copy of the current folder, which is removed after it.

    Args:
        but: a folder in which other processes may write.

    Yields:
        Two lists that hold, after the block, the files that were written: by a relative path, and by an absolute path
        in the original folder.

    Raises:
        ConfigError: the folder for temporary files is full.
    """
    before = Path.cwd()
    made = Path(tempfile.mkdtemp(prefix="sim-trial-"))
    try:
        try:
            _copy(before, made, but)
        except OSError as error:  # the disk is full
            raise ConfigError(f"{made}: has no place for the dry run's copy of the current folder: {error}") from error
        os.chdir(made)
        with noted(made, made / but.name) as written, noted(before, but) as elsewhere:
            yield written, elsewhere
    finally:
        os.chdir(before)
        shutil.rmtree(made, ignore_errors=True)


def _copy(source: Path, target: Path, but: Path) -> None:
    pending, num_entries, left_bytes = deque([(source, target)]), 0, _MOST_COPIED_BYTES
    device = source.stat().st_dev
    while pending:
        folder, place = pending.popleft()
        entries: list[os.DirEntry[str]] = []
        with suppress(FileNotFoundError), os.scandir(folder) as found:  # another process may remove something meanwhile
            entries = list(found)
        num_entries += len(entries)
        for entry in entries:
            new = place / entry.name
            with suppress(FileNotFoundError):
                state = entry.stat(follow_symlinks=_is_file(entry))  # what a link leads to would be written, too
                is_here = state.st_dev == device  # unlike /proc, whose files may have no end
                if is_here and num_entries <= _MOST_ENTRIES and _is_looked_into(entry, but):
                    new.mkdir()
                    pending.append((Path(entry.path), new))
                    continue
                is_file = _is_file(entry) and not entry.name.endswith(_CODE)
                is_small = state.st_size <= left_bytes and len(entries) <= _MOST_COPIED_OF_A_FOLDER
                if is_here and is_file and is_small and _is_copied(entry, new):
                    left_bytes -= state.st_size
                else:
                    new.symlink_to(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or leads to one; a link that leads to itself does not."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_copied(entry: os.DirEntry[str], new: Path) -> bool:
    """Copy a file; False if that cannot be done, because it may not be read, or the disk is full."""
    try:
        shutil.copy2(entry.path, new)
    except FileNotFoundError:
        raise
    except OSError:
        new.unlink(missing_ok=True)
        return False
    return True


def _is_looked_into(entry: os.DirEntry[str], but: Path) -> bool:
    is_own = Path(entry.path) != but and not entry.name.startswith((".", "__"))
    return is_own and entry.is_dir(follow_symlinks=False) and os.access(entry.path, os.R_OK | os.X_OK)


_seen: dict[str, tuple[int, frozenset[str]]] = {}  # folder → when it changed last, and the names in it
_said: list[str] = []


@contextmanager
def new_files_noted() -> Iterator[None]:
    """Say once in this process if files appear in the current folder while a client is executed there.

    The dry run sees what ``train`` and ``test`` write each time, and not what they write only later, such as after five
    epochs. Then all clients share the file, and what they find depends on the order in which they are executed.
    """
    folder = ""
    with suppress(OSError):  # it was removed
        folder = os.getcwd()  # noqa: PTH109 - ten times as fast as Path.cwd()
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
        if not _said and _seen.get(folder, (0,))[0] != changed:
            _seen[folder] = changed, frozenset(os.listdir(folder))  # noqa: PTH208
    yield
    with suppress(OSError, KeyError):
        if _said or os.stat(folder).st_mtime_ns == _seen[folder][0]:  # noqa: PTH116
            return
        names = sorted(set(os.listdir(folder)) - _seen[folder][1])  # noqa: PTH208
        new = [name for name in names if not name.startswith((".", "__")) and Path(folder, name).is_file()]
        if new:
            _said.extend(new)
            logging.getLogger("sim").warning(
                "note: %s appeared in the current folder while a client was executed; what train or test writes there "
                "only at times is shared by all clients, and results may depend on the number of processes; what each "
                "call writes is not, because each client then has a folder of its own",
                some(new),
            )


@contextmanager
def own_folder(names: Sequence[str]) -> Iterator[None]:
    """Let the block work in a new folder with links to what is in the current one, and copies of files of these names.

    The new folder is removed after the block.
    """
    before = Path.cwd()
    made = Path(tempfile.mkdtemp(prefix="sim-client-"))
    try:
        _link(before, made, [PurePath(name).parts for name in names])
        os.chdir(made)
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(made, ignore_errors=True)


def _link(source: Path, target: Path, names: Sequence[tuple[str, ...]]) -> None:
    """Link what is in a folder, but copy files of these names, of which the folders are made anew."""
    inner: dict[str, list[tuple[str, ...]]] = {}
    for first, *others in names:
        inner.setdefault(first, []).append(tuple(others))
    with os.scandir(source) as entries:
        for entry in entries:
            rest = [each for each in inner.get(entry.name, []) if each]
            if entry.name not in inner:
                (target / entry.name).symlink_to(entry.path)
            elif rest:
                (target / entry.name).mkdir()
                _link(Path(entry.path), target / entry.name, rest)
            elif entry.is_file():
                shutil.copy2(entry.path, target / entry.name)
