"""Draw final accuracy against a varied setting, from the sweep.csv of a sweep: means over seeds with 95 % intervals.

scripts/experiments/plot.py SWEEP_FOLDER SETTING [--group SETTING] [--log] -o PICTURE
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

_APART = 0.02  # fraction of the axis length; it keeps intervals at the same value from covering each other


def figure_of(table: pd.DataFrame, setting: str, group: str | None, log: bool) -> Figure:
    """Draw error bars for each value of ``group``, connected by a line if ``setting`` is a number."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    is_number = pd.api.types.is_numeric_dtype(table[setting])
    ticks = list(table[setting].unique())
    places = (table[setting] if is_number else table[setting].map(ticks.index)).astype(float)
    parts = [(None, table)] if group is None else list(table.groupby(group, sort=False))
    length = places.max() / places.min() if log else places.max() - places.min()
    for number, (value, part) in enumerate(parts):
        shift = (number - (len(parts) - 1) / 2) * _APART
        x = places[part.index] * length**shift if log else places[part.index] + length * shift
        mean = part.final_accuracy_mean
        bars = [mean - part.final_accuracy_low, part.final_accuracy_high - mean]
        label = None if group is None else f"{group.replace('_', ' ')} {value}"
        axes.errorbar(x, mean, bars, fmt="o-" if is_number else "o", capsize=3, linewidth=1.8, label=label)
    axes.set_xscale("log" if log else "linear")
    axes.set_xticks(ticks if is_number else range(len(ticks)), None if is_number else ticks)
    axes.minorticks_off()
    if is_number:
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.tick_params(axis="x", rotation=45 if not is_number and len(ticks) > 4 else 0)
    axes.set_xlabel(setting.replace("_", " "))
    seeds = "–".join(str(count) for count in sorted({table.num_done.min(), table.num_done.max()}))
    axes.set_ylabel(f"final test accuracy (fraction),\nmean and 95 % interval of {seeds} seeds")
    axes.set_ylim(top=min(1, axes.get_ylim()[1]))  # the upper end of an interval may be above 1, an accuracy may not
    axes.spines[["top", "right"]].set_visible(False)
    if group is not None:
        figure.legend(frameon=False, loc="outside upper center", ncols=4)  # it must not cover error bars
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("setting")
    parser.add_argument("--group")
    parser.add_argument("--log", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    swept = pd.read_csv(arguments.folder / "sweep.csv")
    figure_of(swept, arguments.setting, arguments.group, arguments.log).savefig(arguments.output, dpi=144)
