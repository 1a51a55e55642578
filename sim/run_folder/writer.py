"""Writes a run folder. Its tables grow by complete rounds; every other file appears by a rename.

A run folder that exists is never overwritten.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sim.disk import NoFileError, check_is_file
from sim.errors import RunFolderError, WriteError
from sim.interrupts import uninterrupted
from sim.run_folder.folder import Run, make_results_folder
from sim.run_folder.records import RENAMED_COLUMNS, ClientRecord, MetricRecord, Record, RecordType, RoundRecord, columns

_MASK = os.umask(0o022)  # it can only be read by setting it
os.umask(_MASK)

_UNSYNCED_SECONDS = 1.0  # to sync three tables takes about 10 ms, longer than some rounds
_BEGINNING = ".config.toml-"  # the name of the config while it is written, before every other file

_TEMPORARY = re.compile(r"\..+\.[a-z]+-[a-z0-9_]{8}")  # the name that ``tempfile`` gives a file

# Descriptors of locked folders. A process that a client's code forks inherits them; it must not keep a folder locked
# after this process has ended.
_LOCKS: set[int] = set()


def _unlock_in_child() -> None:
    for lock in _LOCKS:
        with suppress(OSError):
            os.close(lock)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_unlock_in_child)


class RunWriter:
    """Writes the files of a run folder, which is locked for this process until ``release``."""

    def __init__(self, run: Run, tables: dict[Path, _Table], lock: int) -> None:
        self.run = run
        self._tables = tables
        self._lock = lock
        self._synced = -math.inf  # seconds of ``time.monotonic()``

    @classmethod
    @uninterrupted()
    def create(cls, results_dir: str, name: str | None, config_toml: str, *, clients: bool) -> Self:
        """Create the folder ``results_dir/name`` (a time stamp if ``name`` is None) with the config and empty tables.

        A signal that arrives meanwhile takes effect when all of that is there.

        Args:
            clients: whether the run has client records, which need ``clients.csv``.

        Raises:
            RunFolderError: the folder exists already, has no name or cannot be written.
        """
        root = _root(results_dir)
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        candidates = [name] if name else [stamp, *(f"{stamp}_{number}" for number in range(2, 100))]
        path = None
        make_results_folder(root)
        try:
            for candidate in candidates:
                try:
                    (root / candidate).mkdir()
                except FileExistsError:
                    if not (name and is_unbegun(root / candidate)):
                        continue
                path = root / candidate
                break
        except OSError as error:
            raise RunFolderError(f"--results-dir {root}: cannot be written: {error.strerror}") from None
        if path is None:
            raise RunFolderError(f"--name {name}: {root / str(name)} exists; choose another name")
        run = Run(path.resolve())
        try:
            lock = _locked(run.path)
            if not is_unbegun(run.path):  # another process has begun it meanwhile, and ended
                _unlock(lock)
                raise RunFolderError(f"--name {name}: {path} exists; choose another name")
            write_whole(run.config_path, config_toml.encode())
            kinds = {path: kind for path, kind in _tables_of(run).items() if clients or kind is not ClientRecord}
            for table, record_type in kinds.items():
                write_whole(table, _header(record_type))
            return cls(run, {table: _Table(table) for table in kinds}, lock)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise RunFolderError(f"--results-dir {root}: cannot be written: {error.strerror}") from None

    @classmethod
    def reopen(cls, run: Run, tables: dict[str, tuple[int, str]]) -> Self:
        """Open the folder of an existing run and cut its tables back to a checkpoint.

        A run of an earlier version has no ``metrics.csv``; it begins now.

        Args:
            tables: name of each table → its length in bytes and the sha256 of these bytes, as ``marks`` returned them.

        Raises:
            RunFolderError: another process is writing to the folder, or a table has changed since ``marks``.
        """
        lock = _locked(run.path)
        try:
            _cut_back(run, tables)
            return cls(run, {path: _Table(path) for path in _tables_of(run)}, lock)
        except OSError as error:
            _unlock(lock)
            place = run.log_path if isinstance(error, NoFileError) else run.path
            raise RunFolderError(f"{place}: cannot be written: {error.strerror}") from None
        except BaseException:
            _unlock(lock)
            raise

    def append(
        self,
        record: RoundRecord | None,
        clients: Sequence[ClientRecord] = (),
        metrics: Sequence[MetricRecord] = (),
        *,
        sync: bool = True,
    ) -> None:
        """Add one round to the tables.

        Args:
            record: None for more clients of a round that has its row.
            sync: at once, as a checkpoint of the round needs it. Without it, tables are synced at most once per second;
                a power failure may take away the rounds of the last second, the end of this process does not.

        Raises:
            WriteError: the disk is full or the folder was removed; the tables end with the previous round.
        """
        rows: dict[Path, Sequence[Record]] = {
            self.run.metrics_path: metrics,
            self.run.clients_path: clients,
            self.run.rounds_path: []
            if record is None
            else [record],  # the last, because it says which rounds are complete
        }
        before: list[tuple[_Table, int]] = []
        sync = sync or time.monotonic() - self._synced > _UNSYNCED_SECONDS
        try:
            for path, records in rows.items():
                if path in self._tables:
                    table = self._tables[path]
                    before.append((table, table.size))
                    table.append(records, sync=sync)
        except WriteError:
            for table, size in before[:-1]:  # the last one has cut itself
                table.cut(size)
            raise
        if sync:
            self._synced = time.monotonic()

    def sync(self) -> None:
        """Sync the tables to disk.

        Raises:
            WriteError: that fails.
        """
        for table in self._tables.values():
            table.append([], sync=True)

    def marks(self) -> dict[str, tuple[int, str]]:
        """Return the present state of each table: name → (length in bytes, sha256 of these bytes)."""
        return {path.name: (table.size, table.sha256.hexdigest()) for path, table in self._tables.items()}

    def write(self, path: Path, content: bytes) -> None:
        """Write a complete file: first under a temporary name, then synced and renamed.

        Raises:
            WriteError: the file cannot be written; an existing file is unchanged.
        """
        try:
            write_whole(path, content)
        except OSError as error:
            raise WriteError(f"{path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the tables."""
        for table in self._tables.values():
            table.close()

    def release(self) -> None:
        """Unlock the folder, so that another process can resume the run."""
        _unlock(self._lock)


def check_folder(results_dir: str, name: str | None) -> None:
    """Check, without writing, that ``RunWriter.create`` can make a run folder; it checks everything again.

    Raises:
        RunFolderError: the folder exists already or cannot be written.
    """
    root = _root(results_dir)
    if name is not None and (root / name).exists() and not is_unbegun(root / name):
        raise RunFolderError(f"--name {name}: {root / name} exists; choose another name")
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    code = errno.ENOTDIR if not existing.is_dir() else errno.EACCES
    if code == errno.ENOTDIR or not os.access(existing, os.W_OK | os.X_OK):
        raise RunFolderError(f"--results-dir {root}: cannot be written: {os.strerror(code)}")


def _root(results_dir: str) -> Path:
    if not results_dir:
        raise RunFolderError("--results-dir '': must be the name of a folder; . is the current one")
    return Path(results_dir)


def is_unbegun(folder: Path) -> bool:
    """Return whether a run was never begun in a folder: it is empty, or holds only the temporary config of a process
    that was killed."""
    try:
        return all(path.name.startswith(_BEGINNING) for path in folder.iterdir())
    except OSError:
        return False


def remove_run(run: Run) -> None:
    """Remove a run folder; a process that is killed meanwhile leaves what is still a run, or an empty folder.

    Raises:
        OSError: something cannot be removed.
    """
    for path in run.path.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != run.config_path:
            path.unlink()
    shutil.rmtree(run.path)


def _cut_back(run: Run, tables: dict[str, tuple[int, str]]) -> None:
    paths = set(_tables_of(run))
    if run.metrics_path.name not in tables:
        paths.remove(run.metrics_path)
        header = _header(MetricRecord)
        if run.metrics_path.exists() and _first_bytes(run.metrics_path, len(header)) != header:
            raise RunFolderError(f"{run.metrics_path}: is no table of this run; move it elsewhere")
    names = sorted(path.name for path in paths)
    if names != sorted(tables):
        raise RunFolderError(
            f"{run.path}: its checkpoint is for the tables {', '.join(sorted(tables))}, not for {', '.join(names)}"
        )
    with suppress(FileNotFoundError):
        check_is_file(run.log_path)  # to it, too, the run appends
    for path in paths:
        size, digest = tables[path.name]
        try:
            content = _first_bytes(path, size)
        except OSError as error:
            raise RunFolderError(f"{path}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != digest or not content.endswith(b"\n"):
            raise RunFolderError(f"{path}: was changed after its checkpoint was written")
    if run.metrics_path not in paths:
        write_whole(run.metrics_path, _header(MetricRecord))
    for path in paths:
        os.truncate(path, tables[path.name][0])
    run.model_path.unlink(missing_ok=True)  # outdated when the run continues; the checkpoint has the weights


def _first_bytes(path: Path, size: int) -> bytes:
    check_is_file(path)
    with path.open("rb") as file:
        return file.read(min(size, path.stat().st_size))


def _tables_of(run: Run) -> dict[Path, RecordType]:
    return {run.rounds_path: RoundRecord, run.clients_path: ClientRecord, run.metrics_path: MetricRecord}


def _header(record_type: RecordType) -> bytes:
    return (",".join(columns(record_type)) + "\n").encode()


def _row_of(record: Record, names: Sequence[str]) -> list[Any]:
    """Return the cells of a record; NaN is an empty one, as everything that was not measured."""
    cells = [getattr(record, RENAMED_COLUMNS.get(name, name), None) for name in names]
    return [None if cell != cell else cell for cell in cells]  # noqa: PLR0124 - NaN


class _Table:
    """A CSV file that grows by complete rounds: if rows cannot be written and synced, it is left as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes()
        self.size = len(content)
        self.sha256 = hashlib.sha256(content)
        self._columns = content.partition(b"\n")[0].decode().split(",")  # an earlier version may have had fewer
        self._file = path.open("ab", buffering=0)

    def append(self, records: Sequence[Record], *, sync: bool) -> None:
        """Add rows.

        Raises:
            WriteError: the rows cannot be written.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(_row_of(record, self._columns) for record in records)
        content = text.getvalue().encode()
        try:
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, "the file was removed or replaced")
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self.cut(self.size)
            raise WriteError(f"{self._path}: cannot be written: {error.strerror}") from error
        self.size += len(content)
        self.sha256.update(content)

    def cut(self, size: int) -> None:
        """Remove everything after the first ``size`` bytes."""
        with suppress(OSError):
            os.ftruncate(self._file.fileno(), size)
            self.size, self.sha256 = size, hashlib.sha256(self._path.read_bytes())

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a client of the user's has closed it
            self._file.close()


def _locked(folder: Path) -> int:
    """Lock a folder and return its file descriptor; the system releases the lock when this process ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunFolderError(f"{folder}: another process is writing to it") from None
    _LOCKS.add(lock)
    for path in folder.glob(".*-*"):  # what a process that was killed has begun, see ``write_whole``
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    return lock


def _unlock(lock: int) -> None:
    if lock in _LOCKS:  # not in a process that was forked from the one that locked it
        _LOCKS.discard(lock)
        with suppress(OSError):  # a client of the user's has closed it
            os.close(lock)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, but not the runs in it, for this process.

    Raises:
        RunFolderError: another process has locked it.
    """
    lock = _locked(folder)
    try:
        yield
    finally:
        _unlock(lock)


def write_whole(path: Path, content: bytes) -> None:
    """Write a complete file: first under a temporary name, then synced and renamed.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_MASK)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
