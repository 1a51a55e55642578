"""Draws the results of a sweep over a varied number: the final metric, one line for each value of the other setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sim.config.fields import Scalar
from sim.run_folder import plots
from sim.run_folder.figure import Figure

_LOG_RATIO = 20  # of the largest to the smallest value, from which on the axis is logarithmic


def varied_number(variants: Sequence[Mapping[str, Scalar]]) -> str | None:
    """Return the setting for the x axis: of one or two varied ones that with the most numbers, the first of equals.

    None if there is none with at least two numbers, or there are more settings, which a picture of lines cannot show.
    """
    keys = list(variants[0]) if variants else []
    counts = {key: len({values[key] for values in variants}) for key in keys if _are_numbers(variants, key)}
    most = max(counts.values(), default=0)
    return next(key for key in keys if counts.get(key) == most) if most > 1 and len(keys) <= 2 else None


def _are_numbers(variants: Sequence[Mapping[str, Scalar]], key: str) -> bool:
    return all(type(values[key]) in (int, float) for values in variants)


def results_figure(runs: pd.DataFrame, x: str, other: str | None, measure: str, label: str) -> Figure:
    """Draw the mean of ``measure`` over seeds, with a band of one sample standard deviation around it.

    Args:
        runs: one row for each finished run, with the columns that the other arguments name.
        x: the setting on the x axis.
        other: the setting whose values are the lines; None for a single line.
        label: of the y axis.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = {} if other is None else {value: runs[runs[other] == value] for value in dict.fromkeys(runs[other])}
    for number, (value, rows) in enumerate((lines or {"": runs}).items()):
        _draw_line(axes, rows, x, measure, str(value), f"C{number}")
    seeds = runs.groupby([x] if other is None else [x, other])[measure].count()
    axes.set_xlabel(x.replace("_", " "))
    axes.set_ylabel(label)
    if seeds.max() > 1:
        low, high = int(seeds.min()), int(seeds.max())
        counts = f"{high}" if low == high else f"{low} to {high}"
        axes.set_title(f"mean ± sample sd of {counts} seeds", fontsize="medium")
    numbers = runs[x].to_numpy(float)
    if numbers.min() > 0 and numbers.max() / numbers.min() >= _LOG_RATIO:
        axes.set_xscale("log")
        values = sorted(set(runs[x]))
        axes.set_xticks(values, [f"{value:.12g}" for value in values])  # matplotlib would write powers of 10 in TeX
        axes.minorticks_off()
    elif numbers.min() == 0:
        axes.set_xlim(left=0)
    if not runs[measure].min() < 0:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if other is not None:
        axes.legend(frameon=False, title=other.replace("_", " "))
    return figure


def _draw_line(axes: Axes, rows: pd.DataFrame, x: str, measure: str, label: str, color: str) -> None:
    groups = [(value, group[measure].dropna().to_numpy(float)) for value, group in rows.groupby(x)]
    measured = [(value, found) for value, found in groups if len(found)]
    xs = np.array([value for value, _ in measured], float)
    means = np.array([found.mean() for _, found in measured])
    deviations = np.nan_to_num([float(plots.sample_sd(found)) for _, found in measured])
    axes.plot(xs, means, "o-", color=color, label=label, linewidth=1.8, clip_on=False)
    axes.fill_between(xs, means - deviations, means + deviations, color=color, alpha=0.2, linewidth=0)
