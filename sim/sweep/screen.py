"""The progress of a sweep on the screen: a live table on a terminal, otherwise one line per finished run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.table import Table

from sim.errors import one_line
from sim.metrics import Target, shown
from sim.run_folder import measurements
from sim.run_folder.log import NewNotes
from sim.run_folder.plots import bytes_unit
from sim.run_folder.progress import Console
from sim.sweep.planned import Planned
from sim.sweep.table import metric_of_sweep, sweep_frame

if TYPE_CHECKING:
    import pandas as pd


class SweepScreen:
    """Shows the progress of the runs on stderr."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._notes = NewNotes()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, planned: Sequence[Planned], ended: Planned | None) -> None:
        """Show the progress, and what each run has noted that none before it had.

        Args:
            planned: all runs of the sweep.
            ended: the run that has just ended, or None.
        """
        if self._console.is_terminal:
            self._live.update(table_of(planned), refresh=True)
        elif ended is not None:
            done = sum(each.status in ("done", "failed") for each in planned)
            text = f"failed: {one_line(ended.error)}" if ended.status == "failed" else f"round {ended.num_rounds}"
            if ended.status == "done":
                metric = metric_of_sweep(planned)
                rounds = measurements.table_of(ended.run, [metric])
                final = rounds[measurements.measured_column(rounds, metric.name)].iloc[-1]
                text += "" if math.isnan(final) else f" · {one_line(metric.name, 60)} {shown(final)}"
            line = f"{done}/{len(planned)} {ended.run.name} · {text}"
            self._console.print(line, highlight=False, soft_wrap=True)
        for note in () if ended is None else self._notes.of(ended.run.log_path):
            self._console.print(f"sim: note: {note}", highlight=False, soft_wrap=True)


def table_of(planned: Sequence[Planned]) -> Table:
    """Return a table with one row per variant: finished runs, running runs, and the measures with 95 % intervals."""
    frame, metric = sweep_frame(planned), metric_of_sweep(planned)
    target, name = Target.of(vars(planned[0].config)), one_line(metric.name, 60)
    table = Table("variant", "done", "running", f"final {name}", f"best {name}", box=None)
    to_target = {} if target is None else _to_target(frame)
    aim = f"{target.value:g}" if target is not None and target.name == "accuracy" else str(target)
    for words, _ in to_target.values():
        table.add_column(f"{words} to {aim}")
    table.add_column("failed")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    groups: dict[str, list[Planned]] = {}
    for each in planned:
        groups.setdefault(each.variant.label, []).append(each)
    for (label, runs), (_, row) in zip(groups.items(), frame.iterrows(), strict=True):
        now = ", ".join(f"{e.num_rounds}/{e.config.num_rounds}" for e in runs if e.status == "running")
        cells = [label, f"{int(row.num_done)}/{len(runs)}", now]
        cells += [_shown(row, f"final_{metric.name}", 4), _shown(row, f"best_{metric.name}", 4)]
        cells += [_shown(row, measure, 1, unit) for measure, (_, unit) in to_target.items()]
        table.add_row(*cells, str(int(row.num_failed)) if row.num_failed else "")
    return table


def _to_target(frame: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """Return what is shown of the way to the target, once a run has it: a measure → its unit, and how many are one."""
    columns = {"rounds_to_target": ("rounds", 1.0)}
    if frame["virtual_seconds_to_target_mean"].notna().any():
        columns["virtual_seconds_to_target"] = ("virtual s", 1.0)
    largest = frame["bytes_to_target_mean"].max()
    if not math.isnan(largest):
        columns["bytes_to_target"] = bytes_unit(largest)
    return columns


def _shown(row: pd.Series, measure: str, digits: int, unit: float = 1.0) -> str:
    mean, high = (float(row[f"{measure}_{part}"]) / unit for part in ("mean", "high"))
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(high) else f" ± {high - mean:.{digits}f}")
