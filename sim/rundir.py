"""The run folder: every path in ``results/<run>/``, how it is written and how it is read again.

Tables grow by whole rounds, flushed and synced; everything else appears by a rename. What exists is never
overwritten.
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
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sim.errors import RunFolderError, WriteError
from sim.records import ClientRecord, RoundRecord, columns, read_frame

if TYPE_CHECKING:
    import pandas as pd

RecordType = type[RoundRecord] | type[ClientRecord]


class Run:
    """A run on disk, done or under way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config_path = path / "config.toml"
        self.environment_path = path / "environment.json"
        self.rounds_path = path / "rounds.csv"
        self.clients_path = path / "clients.csv"
        self.accuracy_path = path / "accuracy.png"
        self.loss_path = path / "loss.png"
        self.partition_path = path / "partition.png"
        self.model_path = path / "model.safetensors"
        self.log_path = path / "run.log"
        self.checkpoints_path = path / "checkpoints"

    def config(self) -> dict[str, Any]:
        """The resolved config, as it was written.

        Raises:
            RunFolderError: it is missing or no TOML.
        """
        try:
            return tomllib.loads(self.config_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunFolderError(f"{self.path} is not a run: config.toml: {error}") from error

    def checkpoints(self) -> list[int]:
        """The rounds after which the run can go on, in order."""
        try:
            names = [path.name for path in self.checkpoints_path.iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def last_checkpoint(self) -> int | None:
        """The last round after which the run can go on; None if there is none."""
        return max(self.checkpoints(), default=None)

    def rounds(self) -> pd.DataFrame:
        """``rounds.csv``, one row a round; the columns of ``RoundRecord``.

        Raises:
            RunFolderError: it is missing or has other columns.
        """
        return self._frame(self.rounds_path, RoundRecord)

    def clients(self) -> pd.DataFrame:
        """``clients.csv``, one row a client and phase; the columns of ``ClientRecord``.

        Raises:
            RunFolderError: it is missing or has other columns.
        """
        return self._frame(self.clients_path, ClientRecord)

    def _frame(self, path: Path, record_type: type[RoundRecord] | type[ClientRecord]) -> pd.DataFrame:
        try:
            return read_frame(path, record_type)
        except FileNotFoundError:
            raise RunFolderError(f"{self.path} has no {path.name}") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path}: {error}") from error


def open_run(run: str, results_dir: str) -> Run:
    """Return a run by its name in the results folder, or by its path.

    Raises:
        RunFolderError: there is none; the message lists those that are there.
    """
    for path in (Path(results_dir) / run, Path(run)):
        if (path / "config.toml").is_file():
            return Run(path.resolve())
    found = list_runs(results_dir) if Path(results_dir).is_dir() else []
    names = ", ".join(known.name for known in found) or "none yet"
    raise RunFolderError(f"run {run}: neither a run in {results_dir} nor a path to one; there are: {names}")


def list_runs(results_dir: str) -> list[Run]:
    """Return the runs in the results folder, in the order of their names.

    Raises:
        RunFolderError: there is no such folder.
    """
    root = Path(results_dir)
    try:
        folders = sorted(path for path in root.iterdir() if (path / "config.toml").is_file())
    except OSError as error:
        raise RunFolderError(f"--results-dir {root}: {error.strerror}") from None
    return [Run(path) for path in folders]


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
            lock = _locked(run)
            _write_whole(run.config_path, config_toml.encode())
            kinds: dict[Path, RecordType] = {run.rounds_path: RoundRecord}
            if clients:
                kinds[run.clients_path] = ClientRecord
            for table, record_type in kinds.items():
                _write_whole(table, (",".join(columns(record_type)) + "\n").encode())
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
        lock = _locked(run)
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
            _write_whole(path, content)
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


def _locked(run: Run) -> int:
    """Lock a run's folder; the system ends that with this process, however it ends."""
    lock = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunFolderError(f"{run.path}: another process is writing to it") from None
    return lock


def _write_whole(path: Path, content: bytes) -> None:
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
