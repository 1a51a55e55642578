"""Figures of a scale study: throughput, scaling and memory, drawn from ``scale.csv``."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from sim.run_folder.figure import Figure
from sim.scale.execute import efficiency_frame


def figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Return the figures that can be drawn from these cells: name (throughput, scaling, memory) → figure.

    Args:
        frame: the rows of ``scale.csv``. Without a row with the status ``ok`` there is no figure, and without cells
            that differ only in the number of actors there is no scaling figure.
    """
    good = frame[frame.status == "ok"]
    if good.empty:
        return {}
    found = {"throughput": throughput_figure(good), "memory": memory_figure(good)}
    if len(efficiency_frame(frame)):
        found["scaling"] = scaling_figure(frame)
    return found


def throughput_figure(good: pd.DataFrame) -> Figure:
    """Draw client updates per second against clients: one line for each engine and number of actors.

    A point is the median over the repeats of a cell, and its error bar is their range.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    _lines(axes, good, "updates_per_second")
    axes.set_ylabel("client updates per second")
    _finish(axes, good.num_clients)
    return figure


def memory_figure(good: pd.DataFrame) -> Figure:
    """Draw peak memory against clients: one panel for the driver and one for the sum of all actors."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"driver_mib": "driver", "actors_mib": "sum of all actors"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        _lines(axes, good[good[column].notna()], column)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel("peak private memory (MiB)")
        _finish(axes, good.num_clients)
    return figure


def scaling_figure(frame: pd.DataFrame) -> Figure:
    """Draw speed-up and efficiency against actors, with the ideal, for strong and for weak scaling."""
    table = efficiency_frame(frame)
    parts = [
        ("strong", "speedup", "strong scaling: speed-up", "round time with fewest actors ÷ round time"),
        ("strong", "efficiency", "strong scaling: efficiency", "speed-up ÷ ratio of actors"),
        ("weak", "efficiency", "weak scaling: efficiency", "round time with fewest actors ÷ round time"),
    ]
    parts = [part for part in parts if (table.scaling == part[0]).any()]
    figure = Figure(figsize=(4.4 * len(parts), 4.2), layout="constrained")
    for axes, (kind, column, title, label) in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        _draw_scaling(axes, table[table.scaling == kind], column)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel(label)
    return figure


def _draw_scaling(axes: Axes, table: pd.DataFrame, column: str) -> None:
    weak = table.scaling.iloc[0] == "weak"
    group = table.num_clients / table.num_actors if weak else table.num_clients
    several = table.engine.nunique() > 1
    for (engine, clients), part in table.groupby([table.engine, group]):
        label = f"{clients:g} clients{' per actor' if weak else ''}" + (f", {engine}" if several else "")
        axes.plot(part.num_actors, part[column], "o-", label=label, linewidth=1.8)
    actors = np.array(sorted(table.num_actors.unique()), float)
    axes.plot(actors, actors / actors[0] if column == "speedup" else np.ones_like(actors), "k--", label="ideal")
    axes.set_xlabel("actors (processes)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(actors[0] - 0.15, actors[-1] + 0.15)
    _tidy(axes)
    axes.set_ylim(top=1.05 * max(actors[-1] / actors[0] if column == "speedup" else 1.0, table[column].max()))


def _lines(axes: Axes, good: pd.DataFrame, column: str) -> None:
    several = good.engine.nunique() > 1
    for (engine, actors), part in good.groupby(["engine", "num_actors"]):
        by_clients = part.groupby("num_clients")[column]
        middle = by_clients.median()
        error_bars = np.array([middle - by_clients.min(), by_clients.max() - middle])
        label = ("1 actor" if actors == 1 else f"{actors} actors") + (f", {engine}" if several else "")
        axes.errorbar(middle.index, middle, error_bars, fmt="o-", label=label, linewidth=1.8, capsize=3)


def _finish(axes: Axes, num_clients: pd.Series[int]) -> None:
    axes.set_xlabel("clients")
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(num_clients)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
