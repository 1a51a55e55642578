"""The output of a scale study: one line per finished cell, the table of medians, ``scaling.csv`` and the pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table

from sim.errors import WriteError
from sim.run_folder.plots import render
from sim.run_folder.writer import write_whole
from sim.scale.execute import CellRecord, efficiency_frame
from sim.scale.figures import figures


def print_record(record: CellRecord, number: int, count: int, notes: Sequence[str]) -> None:
    """Print on stderr how one repeat of a cell ended.

    Args:
        record: the row of ``scale.csv``.
        number: the number of the row, from 1.
        count: the number of all rows.
        notes: what its run has noted that none before it had.
    """
    line = f"{number}/{count} {record.engine} · {record.num_clients} clients · {record.num_actors} actors · "
    if record.status == "ok":
        line += f"{record.updates_per_second:.1f} updates/s · round {record.round_seconds:.2f} s"
    else:
        line += f"{record.status}: {record.error}"
    print(line, *(f"sim: note: {note}" for note in notes), sep="\n", file=sys.stderr, flush=True)


def table_of(frame: pd.DataFrame) -> Table:
    """Return a table with one row per cell: medians over its repeats with the status ``ok``, or its last status."""
    names = ["engine", "clients", "actors", "repeats", "updates/s", "seconds per round", "training"]
    table = Table(*names, "driver MiB", "actors MiB", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for (engine, clients, actors), part in frame.groupby(["engine", "num_clients", "num_actors"], sort=False):
        good = part[part.status == "ok"]
        cells = [str(engine), str(clients), str(actors), f"{len(good)}/{len(part)}"]
        if good.empty:
            table.add_row(*cells, str(part.status.iloc[-1]))
            continue
        middle = good.median(numeric_only=True)
        cells += [f"{middle.updates_per_second:.1f}", f"{middle.round_seconds:.2f}", f"{middle.train_share:.0%}"]
        cells += ["" if math.isnan(v) else f"{v:.0f}" for v in (middle.driver_mib, middle.actors_mib)]
        table.add_row(*cells)
    return table


def write_results(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``scaling.csv`` and the pictures, and return their paths.

    A file that cannot be written leaves its old version unchanged.

    Raises:
        WriteError: a file cannot be written.
    """
    files = {"scaling.csv": efficiency_frame(frame).to_csv(index=False).encode()}
    files |= {f"{name}.png": render(figure, "png") for name, figure in figures(frame).items()}
    for name, content in files.items():
        try:
            write_whole(folder / name, content)
        except OSError as error:
            raise WriteError(f"{folder / name}: cannot be written: {error.strerror}") from error
    return [folder / name for name in files]
