"""How many clients a machine carries: a grid of short runs, each in processes of its own, and ``scale.csv``."""

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

from sim.config.fields import flag_of
from sim.config.run_config import RunConfig
from sim.errors import RunFolderError, WriteError
from sim.interrupts import interruptible
from sim.processes import Child, Children, written
from sim.run_folder.folder import Run
from sim.run_folder.writer import locked_folder, write_whole
from sim.scale.cells import Cell
from sim.scale.usage import Watch

_POLL_SECONDS = 0.1
_NO_MEMORY = re.compile(r"out of memory|MemoryError|can.t allocate memory|OutOfMemory|Cannot allocate", re.IGNORECASE)

Status = Literal["ok", "timeout", "out of memory", "failed"]


@dataclass(frozen=True)
class CellRecord:
    """One repeat of a cell; the columns of ``scale.csv``.

    ``round_seconds`` is the median of the rounds after the first, without the central test; ``updates_per_second`` the
    clients of a round divided by that; ``train_share`` the part 0–1 of it that a mean actor spends in clients;
    ``start_seconds`` are those until round 0 is recorded. Memory as in ``usage.Peak``.
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
OnCell = Callable[[CellRecord, int, int], None]


def scale(
    configs: dict[tuple[Cell, int], RunConfig],
    base: dict[str, Any],
    results_dir: str,
    *,
    timeout_seconds: float,
    on_cell: OnCell | None = None,
) -> pd.DataFrame:
    """Execute the cells that ``scale.csv`` does not have yet and return all rows.

    Args:
        configs: (cell, repeat) → its run, in the order of execution.
        base: what the cells share; a folder belongs to one.
        timeout_seconds: a cell that takes longer is ended and recorded as such.
        on_cell: called with each new row, its number and how many there will be.

    Raises:
        RunFolderError: the folder has cells of another base, or another process writes there.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the cell under way is measured anew the next time.
    """
    folder = Path(results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"--results-dir {folder}: cannot be written: {error.strerror}") from None
    table = folder / "scale.csv"
    with locked_folder(folder):
        _claim(folder / "base.toml", base)
        frame = read_scale(table) if table.exists() else pd.DataFrame(columns=COLUMNS)
        known = set(frame[KEYS].itertuples(index=False, name=None))
        left = [key for key in configs if (*vars(key[0]).values(), key[1]) not in known]
        rows: list[dict[Any, Any]] = frame.to_dict("records")
        with interruptible(), tempfile.TemporaryDirectory() as files, Children() as children:
            for number, (cell, repeat) in enumerate(left, len(configs) - len(left) + 1):
                record = _measure(children, cell, repeat, configs[cell, repeat], Path(files), timeout_seconds)
                rows.append(asdict(record))
                _write(table, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
                if on_cell is not None:
                    on_cell(record, number, len(configs))
    return read_scale(table) if table.exists() else frame


def read_scale(path: Path) -> pd.DataFrame:
    """Read a ``scale.csv``.

    Raises:
        RunFolderError: it is none.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if list(frame.columns) != COLUMNS:
        raise RunFolderError(f"{path}: has the columns {', '.join(frame.columns)}, not {', '.join(COLUMNS)}")
    return frame


def _claim(path: Path, base: dict[str, Any]) -> None:
    text = tomli_w.dumps({key: value for key, value in base.items() if value is not None})
    if not path.exists():
        _write(path, text)
        return
    was, now = (dict(line.split(" = ", 1) for line in t.splitlines() if " = " in t) for t in (path.read_text(), text))
    found = [
        f"{flag_of(key)} {was.get(key, 'not given')}, not {now.get(key, 'not given')}"
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key)
    ]
    if found:
        raise RunFolderError(f"{path.parent}: has cells with {'; '.join(found)}; choose another --results-dir")


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error


def _measure(
    children: Children, cell: Cell, repeat: int, config: RunConfig, files: Path, timeout_seconds: float
) -> CellRecord:
    run = Run(Path(config.results_dir) / str(config.name))
    shutil.rmtree(run.path, ignore_errors=True)  # of a cell that was interrupted
    child = children.start(["run", "--config", str(written(files, str(config.name), config.to_toml()))])
    watch = Watch(child.process.pid)
    start_seconds = None
    timed_out = False
    while child.poll() is None:
        watch.look()
        if start_seconds is None and run.rounds_path.exists() and run.rounds_path.read_bytes().count(b"\n") > 1:
            start_seconds = child.seconds
        if child.seconds > timeout_seconds:
            child.kill()
            timed_out = True
        time.sleep(_POLL_SECONDS)
    keys = (cell.engine, cell.num_clients, cell.num_actors, repeat)
    memory = vars(watch.peak)
    if timed_out:
        return CellRecord(*keys, "timeout", f"took longer than {timeout_seconds:g} s", start_seconds, **memory)
    if child.poll() != 0:
        status, error = _why(child, run)
        return CellRecord(*keys, status, error, start_seconds, **memory)
    rounds = run.rounds().iloc[2:]  # 0 is before training, 1 warms up
    seconds = float((rounds.round_seconds - rounds.test_seconds).median())
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
    return float((rounds.train_seconds / (rounds.round_seconds - rounds.test_seconds)).median())


def _why(child: Child, run: Run) -> tuple[Status, str]:
    error = child.error()
    try:
        log = run.log_path.read_text(encoding="utf-8", errors="replace")[-100_000:]
    except OSError:
        log = ""
    # The system ends a process that takes the last memory with SIGKILL, and nobody else kills a driver.
    without_memory = child.poll() == -9 or _NO_MEMORY.search(error) or _NO_MEMORY.search(log)
    return ("out of memory" if without_memory else "failed"), error


def efficiency_frame(frame: pd.DataFrame, scaling: Sequence[str] = ("strong", "weak")) -> pd.DataFrame:
    """Compare each cell with the one that has the fewest actors: ``scaling.csv``.

    Strong: the same clients; the speed-up is the ratio of the round's seconds, the efficiency that divided by the ratio
    of the actors. Weak: as many clients an actor; the efficiency is the ratio of the round's seconds. Medians over
    repeats; a cell without a good repeat is left out.
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
                more = cell.num_actors / first.num_actors
                ratio = first.round_seconds / cell.round_seconds
                row = {"engine": cell.engine, "scaling": kind, "num_clients": int(cell.num_clients)}
                row |= {"num_actors": int(cell.num_actors), "round_seconds": cell.round_seconds}
                row |= {"speedup": ratio if kind == "strong" else ratio * more}
                rows.append({**row, "efficiency": row["speedup"] / more})
    names = ["engine", "scaling", "num_clients", "num_actors", "round_seconds", "speedup", "efficiency"]
    return pd.DataFrame(rows, columns=names)
