"""Writes a run folder: tables grow by whole rounds, flushed and synced; everything else appears by a rename.

What exists is never overwritten.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from sim.errors import RunFolderError, WriteError
from sim.run_folder.folder import Run
from sim.run_folder.records import ClientRecord, RoundRecord, columns

RecordType = type[RoundRecord] | type[ClientRecord]


class RunWriter:
    """Writes what belongs into a run's folder, which is this process's alone until ``close``."""

    def __init__(self, run: Run, tables: dict[Path, _Table], lock: int) -> None:
        self.run = run
        self._tables = tables
        self._lock = lock

    @classmethod
    def create(cls, results_dir: str, name: str | None, config_toml: str, *, clients: bool) -> Self:
        """Claim ``results_dir/name`` (a time stamp for None) and start its tables.

        Args:
            clients: there will be client records.

        Raises:
            RunFolderError: it exists, or cannot be written.
        """
        root = Path(results_dir)
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        candidates = [name] if name else [stamp, *(f"{stamp}_{number}" for number in range(2, 100))]
        path = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            for candidate in candidates:
                try:
                    (root / candidate).mkdir()
                except FileExistsError:
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
            write_whole(run.config_path, config_toml.encode())
            kinds: dict[Path, RecordType] = {run.rounds_path: RoundRecord}
            if clients:
                kinds[run.clients_path] = ClientRecord
            for table, record_type in kinds.items():
                write_whole(table, (",".join(columns(record_type)) + "\n").encode())
            return cls(run, {table: _Table(table) for table in kinds}, lock)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise RunFolderError(f"--results-dir {root}: cannot be written: {error.strerror}") from None

    @classmethod
    def reopen(cls, run: Run, tables: dict[str, tuple[int, str]]) -> Self:
        """Open a run's folder again and cut its tables back.

        Args:
            tables: name of a table → its bytes and their sha256, as ``marks`` gave them.

        Raises:
            RunFolderError: another process writes to it, or a table is not the one that was marked.
        """
        lock = _locked(run.path)
        paths = {run.rounds_path, run.clients_path}
        if {path.name for path in paths} != set(tables):
            raise RunFolderError(f"{run.path}: its checkpoint tells of the tables {', '.join(sorted(tables))}")
        for path in paths:
            size, digest = tables[path.name]
            try:
                with path.open("rb") as file:
                    content = file.read(size)
            except OSError as error:
                raise RunFolderError(f"{path}: {error.strerror}") from None
            if hashlib.sha256(content).hexdigest() != digest:
                raise RunFolderError(f"{path}: was changed after its checkpoint was written")
        try:
            for path in paths:
                os.truncate(path, tables[path.name][0])
            run.model_path.unlink(missing_ok=True)  # of an earlier round; the checkpoint has those weights
            return cls(run, {path: _Table(path) for path in paths}, lock)
        except OSError as error:
            raise RunFolderError(f"{run.path}: cannot be written: {error.strerror}") from None

    def append(self, record: RoundRecord, clients: Sequence[ClientRecord] = ()) -> None:
        """Add one round to the tables and sync them to disk.

        Raises:
            WriteError: the disk is full or the folder is gone; the tables end with the round before.
        """
        clients_table, rounds_table = self._tables.get(self.run.clients_path), self._tables[self.run.rounds_path]
        before = None if clients_table is None else clients_table.size
        if clients_table is not None:
            clients_table.append(clients)
        try:
            rounds_table.append([record])
        except WriteError:
            if clients_table is not None and before is not None:
                clients_table.cut(before)
            raise

    def marks(self) -> dict[str, tuple[int, str]]:
        """How far each table reaches now: name → (bytes, their sha256)."""
        return {path.name: (table.size, table.sha256.hexdigest()) for path, table in self._tables.items()}

    def write(self, path: Path, content: bytes) -> None:
        """Write a file whole: under a temporary name, synced, then renamed.

        Raises:
            WriteError: it cannot be written; what was there before still is.
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
        """Let another process resume the run."""
        os.close(self._lock)


class _Table:
    """A CSV that grows by whole rounds: written, synced, or as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes()
        self.size = len(content)
        self.sha256 = hashlib.sha256(content)
        self._file = path.open("ab", buffering=0)

    def append(self, records: Sequence[RoundRecord | ClientRecord]) -> None:
        """Add rows."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(vars(record).values() for record in records)
        content = text.getvalue().encode()
        try:
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, "another file is in its place")
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self.cut(self.size)
            raise WriteError(f"{self._path}: cannot be written: {error.strerror}") from error
        self.size += len(content)
        self.sha256.update(content)

    def cut(self, size: int) -> None:
        """Take back what was added after ``size`` bytes."""
        with suppress(OSError):
            os.ftruncate(self._file.fileno(), size)
            self.size, self.sha256 = size, hashlib.sha256(self._path.read_bytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _locked(folder: Path) -> int:
    """Lock a folder; the system ends that with this process, however it ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunFolderError(f"{folder}: another process is writing to it") from None
    return lock


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep a folder, though not the runs in it, for this process.

    Raises:
        RunFolderError: another process has it.
    """
    lock = _locked(folder)
    try:
        yield
    finally:
        os.close(lock)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, rename it.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
