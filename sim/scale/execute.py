"""Execute a scale study: one short run for each cell of the grid and each repeat, recorded in ``scale.csv``."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tomli_w

from sim.config.fields import flag_of, flattened, read_table
from sim.config.run_config import RunConfig
from sim.disk import check_is_file
from sim.errors import RunFolderError, WriteError
from sim.interrupts import interruptible, raise_if_interrupted
from sim.processes import Child, Children, written
from sim.run_folder.folder import Run, make_results_folder
from sim.run_folder.log import NewNotes
from sim.run_folder.writer import locked_folder, write_whole
from sim.scale.cells import Cell
from sim.scale.usage import UsageSampler

_POLL_SECONDS = 0.1
_NO_MEMORY = re.compile(r"out of memory|MemoryError|can.t allocate memory|OutOfMemory|Cannot allocate", re.IGNORECASE)

Status = Literal["ok", "timeout", "out of memory", "failed"]


@dataclass(frozen=True)
class CellRecord:
    """One repeat of a cell; the fields are the columns of ``scale.csv``.

    ``start_seconds`` is the time from the start of the command until round 0 is recorded. ``round_seconds`` is the
    median over the rounds after the first, without the central test. ``updates_per_second`` is the number of clients
    per round divided by ``round_seconds``. ``train_share`` is the fraction 0–1 of a round that actors spend in
    clients, mean over actors. The other columns are those of ``usage.Peak``.
    """

    engine: str
    num_clients: int
    num_actors: int
    repeat: int
    status: Status
    error: str | None = None
    start_seconds: float | None = None
    round_seconds: float | None = None
    updates_per_second: float | None = None
    train_share: float | None = None
    driver_mib: float | None = None
    actors_mib: float | None = None
    actor_mib: float | None = None
    gpu_mib: float | None = None
    gpu_utilization: float | None = None


COLUMNS = [field.name for field in fields(CellRecord)]
KEYS = ["engine", "num_clients", "num_actors", "repeat"]
OnCell = Callable[[CellRecord, int, int, Sequence[str]], None]


def scale(
    configs: dict[tuple[Cell, int], RunConfig],
    base: dict[str, Any],
    results_dir: str,
    *,
    timeout_seconds: float,
    on_cell: OnCell | None = None,
) -> pd.DataFrame:
    """Execute the cells that ``scale.csv`` does not have yet, and return all rows.

    Args:
        configs: (cell, repeat) → the config of its run, in the order of execution.
        base: the settings that all cells share. A folder cannot hold cells with different shared settings.
        results_dir: the folder for the table and the run folders; it is created if it does not exist.
        timeout_seconds: a cell that takes longer is stopped and recorded with the status ``timeout``.
        on_cell: called with each new row, its number (from 1), the number of all rows, and what the run has noted that
            none before it had.

    Returns:
        A table with the columns ``COLUMNS``, one row for each cell and repeat.

    Raises:
        RunFolderError: the folder cannot be written, it holds cells with other shared settings, or another process
            executes a scale study in it.
        WriteError: the table cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the cell that was running is measured again the next time.
    """
    folder = Path(results_dir)
    make_results_folder(folder)
    table = folder / "scale.csv"
    with locked_folder(folder):
        _claim(folder / "base.toml", base)
        frame = read_scale(table) if table.exists() else pd.DataFrame(columns=COLUMNS)
        known = set(frame[KEYS].itertuples(index=False, name=None))
        left = [key for key in configs if (*vars(key[0]).values(), key[1]) not in known]
        rows: list[dict[Any, Any]] = frame.to_dict("records")
        notes = NewNotes()
        with interruptible(), tempfile.TemporaryDirectory() as files, Children() as children:
            for number, (cell, repeat) in enumerate(left, len(configs) - len(left) + 1):
                config = configs[cell, repeat]
                run = Run(Path(config.results_dir) / str(config.name))
                record = _measure(children, cell, repeat, config, run, Path(files), timeout_seconds)
                rows.append(asdict(record))
                _write(table, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
                if on_cell is not None:
                    on_cell(record, number, len(configs), notes.of(run.log_path))
    return read_scale(table) if table.exists() else frame


def read_scale(path: Path) -> pd.DataFrame:
    """Read a ``scale.csv`` into a table with the columns ``COLUMNS``.

    Raises:
        RunFolderError: the file cannot be read or has other columns.
    """
    try:
        check_is_file(path)
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if list(frame.columns) != COLUMNS:
        raise RunFolderError(f"{path}: has the columns {', '.join(frame.columns)}, not {', '.join(COLUMNS)}")
    return frame


def _claim(path: Path, base: dict[str, Any]) -> None:
    given = {key: value for key, value in base.items() if value is not None}
    if not path.exists():
        _write(path, tomli_w.dumps(given))
        return
    was, now = map(_texts, (read_table(path, "--results-dir"), given))
    found = [
        f"{' '.join([flag_of(setting), *argument])} {was.get(key, 'not given')}, now {now.get(key, 'not given')}"
        for key in sorted({*was, *now})
        for setting, *argument in [key.split(".", 1)]
        if was.get(key) != now.get(key)
    ]
    if found:
        raise RunFolderError(
            f"{path.parent}: holds cells with other settings ({'; '.join(found)}); choose another --results-dir"
        )


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    """Return each setting and each argument as it stands in a TOML file."""
    return {
        key: tomli_w.dumps({"value": value})[len("value = ") :].strip() for key, value in flattened(settings).items()
    }


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error


def _measure(
    children: Children, cell: Cell, repeat: int, config: RunConfig, run: Run, files: Path, timeout_seconds: float
) -> CellRecord:
    shutil.rmtree(run.path, ignore_errors=True)  # left by a cell that was interrupted
    child = children.start(["run", "--config", str(written(files, str(config.name), config.to_toml()))])
    sampler = UsageSampler(child.process.pid)
    start_seconds = None
    timed_out = False
    while child.poll() is None:
        raise_if_interrupted()
        sampler.sample()
        if start_seconds is None and run.rounds_path.exists() and run.rounds_path.read_bytes().count(b"\n") > 1:
            start_seconds = child.seconds
        if child.seconds > timeout_seconds:
            child.kill()
            timed_out = True
        time.sleep(_POLL_SECONDS)
    keys = (cell.engine, cell.num_clients, cell.num_actors, repeat)
    memory = vars(sampler.peak)
    if timed_out:
        return CellRecord(*keys, "timeout", f"took longer than {timeout_seconds:g} s", start_seconds, **memory)
    if child.poll() != 0:
        status, error = _failure(child, run)
        return CellRecord(*keys, status, error, start_seconds, **memory)
    rounds = run.rounds().iloc[2:]  # round 0 is before training, and round 1 warms up
    if rounds.empty:
        return CellRecord(*keys, "failed", "ended before its second round, which is measured", start_seconds, **memory)
    seconds = float(_seconds_without_test(rounds).median())
    return CellRecord(
        *keys,
        "ok",
        start_seconds=start_seconds,
        round_seconds=seconds,
        updates_per_second=float(rounds.num_clients.iloc[0]) / seconds,
        train_share=_train_share(rounds),
        **memory,
    )


def _train_share(rounds: pd.DataFrame) -> float:
    return float((rounds.train_seconds / _seconds_without_test(rounds)).median())


def _seconds_without_test(rounds: pd.DataFrame) -> pd.Series[float]:
    return rounds.round_seconds - rounds.test_seconds.fillna(0)  # with --test-every, not each round has a test


def _failure(child: Child, run: Run) -> tuple[Status, str]:
    error = child.error()
    try:
        log = run.log_path.read_text(encoding="utf-8", errors="replace")[-100_000:]
    except OSError:
        log = ""
    # Linux ends a process with SIGKILL when the memory is used up. Nothing else sends SIGKILL to a driver.
    without_memory = child.poll() == -9 or _NO_MEMORY.search(error) or _NO_MEMORY.search(log)
    return ("out of memory" if without_memory else "failed"), error


def efficiency_frame(frame: pd.DataFrame, scaling: Sequence[str] = ("strong", "weak")) -> pd.DataFrame:
    """Compare each cell with the cell that has the fewest actors; the result is the table ``scaling.csv``.

    Strong scaling compares cells with the same number of clients. The speed-up is the round time with the fewest
    actors divided by the round time of the cell; the efficiency is the speed-up divided by the ratio of the numbers of
    actors. Weak scaling compares cells with the same number of clients per actor. There the efficiency is the ratio of
    the round times, and the speed-up is the efficiency times the ratio of the numbers of actors.

    Args:
        frame: the rows of ``scale.csv``. The round time of a cell is the median over its repeats with the status
            ``ok``; a cell without such a repeat is left out.
        scaling: which of the two comparisons to make.
    """
    good = frame[frame.status == "ok"]
    medians = good.groupby(["engine", "num_clients", "num_actors"]).round_seconds.median().reset_index()
    rows: list[dict[str, Any]] = []
    for kind in scaling:
        group = medians.num_clients if kind == "strong" else medians.num_clients / medians.num_actors
        for _, part in medians.groupby([medians.engine, group]):
            cells_of = part.sort_values("num_actors")
            first = cells_of.iloc[0]
            for _, cell in cells_of.iterrows() if len(cells_of) > 1 else ():
                actor_ratio = cell.num_actors / first.num_actors
                ratio = first.round_seconds / cell.round_seconds
                row = {"engine": cell.engine, "scaling": kind, "num_clients": int(cell.num_clients)}
                row |= {"num_actors": int(cell.num_actors), "round_seconds": cell.round_seconds}
                row |= {"speedup": ratio if kind == "strong" else ratio * actor_ratio}
                rows.append({**row, "efficiency": row["speedup"] / actor_ratio})
    names = ["engine", "scaling", "num_clients", "num_actors", "round_seconds", "speedup", "efficiency"]
    return pd.DataFrame(rows, columns=names)
