"""The files that the user's ``train`` and ``test`` write into the current folder, such as ``checkpoint.pt``.

The dry run finds them in a copy of the folder, so that the user's files stay as they are.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from sim.client.own_folder import TRIAL_PREFIX, OwnFolder, OwnFolderSpec, State
from sim.errors import ConfigError, some

_MOST_ENTRIES = 5000  # of a folder and those in it that are looked at, those at the top first
_MOST_COPIED_BYTES = 2**29  # by a dry run


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


def _states(folder: Path, but: Path) -> dict[str, State]:
    streams = {_inode_of_stream(number) for number in (1, 2)}  # which may be redirected into the folder
    found: dict[str, State] = {}
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
    spec = OwnFolderSpec(but, prefix=TRIAL_PREFIX, most_copied_bytes=_MOST_COPIED_BYTES, most_entries=_MOST_ENTRIES)
    folder = OwnFolder(spec)
    with ExitStack() as stack:
        stack.callback(folder.remove)
        try:
            made = stack.enter_context(folder.entered())
        except OSError as error:  # the disk is full
            raise ConfigError(f"no place for the dry run's copy of the current folder: {error}") from error
        with noted(made, made / but.name) as written, noted(before, but) as elsewhere:
            yield written, elsewhere


_seen: dict[str, tuple[int, frozenset[str]]] = {}  # folder → when it changed last, and the names in it
_said: list[str] = []


@contextmanager
def new_files_noted() -> Iterator[None]:
    """Say once in this process if files appear in the current folder while a client is executed there.

    A client of the user's own may keep its files from round to round. But what it finds in a file of another client's
    depends on the order in which they are executed.
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
                "note: %s appeared in the current folder while a client was executed; all clients share the folder, so "
                "results may depend on the number of processes; context.state keeps what belongs to one client",
                some(new),
            )
