"""The run folder: every path in ``results/<run>/``, how it is written and how it is read again.

Tables grow by whole rounds, flushed and synced; everything else appears by a rename. What exists is never
overwritten.
"""

from __future__ import annotations

import csv
import os
import tempfile
import tomllib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sim.errors import RunFolderError
from sim.records import ClientRecord, RoundRecord, columns, read_frame

if TYPE_CHECKING:
    import pandas as pd


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

    def config(self) -> dict[str, Any]:
        """The resolved config, as it was written.

        Raises:
            RunFolderError: it is missing or no TOML.
        """
        try:
            return tomllib.loads(self.config_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunFolderError(f"{self.path} is not a run: config.toml: {error}") from error

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
    """Creates a run's folder and writes what belongs into it."""

    def __init__(self, results_dir: str, name: str | None, config_toml: str, *, clients: bool) -> None:
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
        self.run = Run(path.resolve())
        self.write(self.run.config_path, config_toml.encode())
        self._rounds = self._table(self.run.rounds_path, RoundRecord)
        self._clients = self._table(self.run.clients_path, ClientRecord) if clients else None

    def append(self, record: RoundRecord, clients: Sequence[ClientRecord] = ()) -> None:
        """Add one round to the tables and sync them to disk."""
        if self._clients is not None:
            _append_rows(self._clients, clients)
        _append_rows(self._rounds, [record])

    def write(self, path: Path, content: bytes) -> None:
        """Write a file whole: under a temporary name, synced, then renamed."""
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

    def close(self) -> None:
        """Close the tables."""
        self._rounds.close()
        if self._clients is not None:
            self._clients.close()

    def _table(self, path: Path, record_type: type[RoundRecord] | type[ClientRecord]) -> IO[str]:
        self.write(path, (",".join(columns(record_type)) + "\n").encode())
        return path.open("a", encoding="utf-8", newline="")


def _append_rows(file: IO[str], records: Sequence[RoundRecord | ClientRecord]) -> None:
    csv.writer(file, lineterminator="\n").writerows(vars(record).values() for record in records)
    file.flush()
    os.fsync(file.fileno())
