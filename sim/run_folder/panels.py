"""Draws the curves of a sweep in small panels, one for each value of one setting or combination of two."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from sim.errors import ConfigError
from sim.metrics import MetricName
from sim.run_folder import plots
from sim.run_folder.measurements import column, metric_of_all
from sim.run_folder.plot_style import Look
from sim.run_folder.settings import NOT_COMPARED, NOTHING, Key, differing, ordered, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sim.run_folder.folder import Run

_MOST_PANELS = 64  # more take long to draw and cannot be read
_MOST_LINES = {"screen": 40, "paper": 28}  # so many differ in colour or style
_SCREEN_INCHES = (3.2, 2.6)  # of a panel
_LEAST_INCHES = 1.0  # of the width of a panel, below which its labels overlap
_WRAPPED = {"screen": 4, "single": 2, "double": 4}  # panels beside each other, if one setting has them all


@dataclass(frozen=True)
class _Grid:
    """Which panel is where: ``panels[row][column]`` is what one shows, and None where there is nothing."""

    panels: list[list[Key | None]]
    names: Key

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.panels), len(self.panels[0])


def grid_figure(
    runs: Sequence[Run],
    settings: Sequence[str],
    metric: str | None = None,
    x: str = "round",
    look: Look | None = None,
) -> Figure:
    """Draw a metric of the central test in a panel for each value of one setting, or each combination of two.

    Of two settings, the values of the first are the rows and those of the second the columns. Runs in a panel that
    differ only in their seed are one line, their mean, with a band of one sample standard deviation. The other settings
    in which the runs of a panel differ are in the legend. All panels have the same axes.

    Args:
        settings: one or two, e.g. ``["alpha", "strategy_args.eta"]``.
        metric: ``NAME``, ``NAME:min`` or ``NAME:max``; None for the one that stands for the runs.
        x: see ``plots.curves_figure``.
        look: how curves are drawn.

    Raises:
        ConfigError: a setting is none of the runs', there would be too many panels or lines, or two runs are equal.
        RunFolderError: a file of a run cannot be read.
    """
    look = look or Look()
    names = _checked(settings)
    configs = {id(run): run.config() for run in runs}
    places: dict[Key, list[Run]] = {}
    for run in runs:
        places.setdefault(tuple(shown(configs[id(run)], name) for name in names), []).append(run)
    _check_known(names, places, [*configs.values()])
    grid = _arranged(names, [*places], look)
    of_figure = metric_of_all(runs, metric)
    others = _others(places, configs, names)
    curves = {key: _curves(of_panel, others, of_figure) for key, of_panel in places.items()}
    found = dict.fromkeys(line for of_panel in curves.values() for line in of_panel)
    lines = {line: number for number, line in enumerate(ordered([*found]))}
    if len(lines) > _MOST_LINES[look.style]:
        raise ConfigError(
            f"--grid {','.join(names)}: leaves {len(lines)} lines for {', '.join(others)}; at most "
            f"{_MOST_LINES[look.style]} can be told apart"
        )
    everything = [curve for of_panel in curves.values() for curve in of_panel.values()]
    plots.check_x(everything, x)
    with look.applied():
        return _drawn(grid, curves, lines, others, of_figure, x, look)


def _checked(settings: Sequence[str]) -> Key:
    names = tuple(settings)
    text = f"--grid {','.join(names)}"
    if not 1 <= len(names) <= 2 or len(set(names)) < len(names):
        raise ConfigError(f"{text}: must be one setting or two different ones, e.g. alpha,strategy")
    for name in names:
        if name in NOT_COMPARED - {"seed"}:
            raise ConfigError(f"{text}: {name} has no effect on a result")
    return names


def _check_known(names: Key, places: Mapping[Key, list[Run]], configs: Sequence[Mapping[str, object]]) -> None:
    for number, name in enumerate(names):
        if all(key[number] == NOTHING for key in places):
            found = ", ".join(differing(configs)[:20])
            raise ConfigError(
                f"--grid {','.join(names)}: no run has the setting {name}; "
                + (f"the runs differ in {found}" if found else "the runs do not differ in their settings")
            )


def _arranged(names: Key, keys: list[Key], look: Look) -> _Grid:
    if len(keys) > _MOST_PANELS:
        raise ConfigError(f"--grid {','.join(names)}: makes {len(keys)} panels, of which at most {_MOST_PANELS} fit")
    keys = ordered(keys)
    panels: list[list[Key | None]]
    if len(names) == 1:
        width = min(len(keys), _WRAPPED[look.width if look.in_print else "screen"])
        padded = [*keys, *[None] * (-len(keys) % width)]
        panels = [padded[start : start + width] for start in range(0, len(padded), width)]
    else:
        firsts, seconds = (ordered([*dict.fromkeys((key[n],) for key in keys)]) for n in (0, 1))
        panels = [[(*row, *col) if (*row, *col) in keys else None for col in seconds] for row in firsts]
    found = _Grid(panels, names)
    rows, columns = found.shape
    if rows * columns > 2 * _MOST_PANELS:
        raise ConfigError(f"--grid {','.join(names)}: makes {rows} rows of {columns} panels, which do not fit")
    if look.in_print and look.inches / columns < _LEAST_INCHES:
        fits = int(look.inches / _LEAST_INCHES)
        raise ConfigError(
            f"--grid {','.join(names)}: {columns} panels beside each other, of which {fits} fit the width of a "
            f"{look.width} column; choose "
            + (f"--grid {','.join(names[::-1])}" if rows <= fits else "--width double" if fits < 4 else "fewer runs")
        )
    return found


def _others(places: Mapping[Key, list[Run]], configs: Mapping[int, dict[str, object]], names: Key) -> Key:
    """Return the settings besides ``names`` in which runs of one panel differ."""
    found = (differing([configs[id(run)] for run in of_panel]) for of_panel in places.values())
    return tuple(name for name in dict.fromkeys(name for each in found for name in each) if name not in names)


def _curves(runs: Sequence[Run], others: Key, metric: MetricName) -> dict[Key, plots.Curve]:
    """Return the curves of one panel, by the values of ``others``."""
    found: dict[Key, plots.Curve] = {}
    for curve in plots.curves_of(runs, [metric]):
        key = tuple(shown(curve.runs[0].config(), name) for name in others)
        if key in found:
            one, other = found[key].runs[0], curve.runs[0]
            raise ConfigError(f"{other.path} and {one.path} have the same settings and the same seed; draw one of them")
        found[key] = curve
    return found


def _drawn(
    grid: _Grid,
    curves: Mapping[Key, Mapping[Key, plots.Curve]],
    lines: Mapping[Key, int],
    others: Key,
    metric: MetricName,
    x: str,
    look: Look,
) -> Figure:
    rows, columns = grid.shape
    everything = [curve for found in curves.values() for curve in found.values()]
    unit, scale = plots.bytes_scale(everything, x)
    has_steps = x != "round" and any(len(curve.frames) > 1 for curve in everything)
    of_metric = column(plots.phase_of(everything, metric.name), metric.name)
    width, height = (look.inches, look.inches / columns * 0.8) if look.in_print else _SCREEN_INCHES
    inches = (width, max(height, 1.05) * rows + 0.35) if look.in_print else (width * columns, height * rows + 0.4)
    letters = int(inches[0] * (20 if look.in_print else 13))  # that fit into a line of the legend
    labels = {line: textwrap.fill(_label(line, others), max(letters - 9, 20)) for line in lines}
    in_row = max(1, letters // (max(len(part) for label in labels.values() for part in label.split("\n")) + 9))
    num_lines = -(-len(lines) // in_row) * max(label.count("\n") + 1 for label in labels.values())
    figure = look.figure(inches[0], inches[1] + (0.14 if look.in_print else 0.2) * num_lines)
    axes_of = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for row, keys in enumerate(grid.panels):
        for number, key in enumerate(keys):
            axes = axes_of[row][number]
            if key is None:
                _draw_nothing(axes, is_missing=len(grid.names) == 2)
                continue
            for line, curve in sorted(curves[key].items(), key=lambda item: lines[item[0]]):
                pen = plots.Pen(look.color(lines[line]), look.line_style(lines[line]), labels[line])
                plots.draw_line(axes, curve, of_metric, x, look, pen, scale=scale, has_steps=has_steps)
            is_last = number == columns - 1 or (keys[number + 1] is None and len(grid.names) == 1)
            look.draw_targets(axes, labelled=is_last)
    nbins = max(2, int(inches[0] / columns / 0.5))
    for place, axes in np.ndenumerate(axes_of):
        plots.finish_axes(axes, x)
        below = axes_of[place[0] + 1 :, place[1]]
        axes.tick_params(labelbottom=not any(each.get_visible() for each in below))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, integer=x == "round", steps=[1, 2, 5, 10]))
    letter = 0.07 if look.in_print else 0.09  # inches of its width, with the space around a title
    most = int(inches[0] / columns / letter), int((inches[1] - 0.35) / rows / letter)
    _title(axes_of.tolist(), grid, most)
    figure.supxlabel(plots.x_label(everything, x, unit), fontsize="medium")
    figure.supylabel(plots.y_label(metric.name, everything, look), fontsize="medium", multialignment="center")
    seeds = "" if look.in_print else plots.seeds_of(everything, may_differ=True)
    if others:
        plots.common_legend(figure, "outside upper center", labels.values(), num_columns=in_row, title=seeds)
    elif seeds:
        figure.suptitle(seeds, fontsize="medium")
    return figure


def _label(line: Key, others: Key) -> str:
    return ", ".join(f"{_words(name)} {value}" for name, value in zip(others, line, strict=True))


def _words(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _fitted(name: str, values: Sequence[str], most: int) -> dict[str, str]:
    """Return the title of the panels of each value; of a value longer than ``most`` letters, the middle is left out.

    Of an import path, the module goes first. Values that would then be the same stay whole.
    """
    left = max(most - len(_words(name)) - 1, 7)
    shortened = {value: _shortened(value, left) for value in values}
    if len(set(shortened.values())) < len(shortened):
        shortened = {value: value for value in values}
    return {value: f"{_words(name)} {short}" for value, short in shortened.items()}


def _shortened(value: str, most: int) -> str:
    if len(value) > most and re.fullmatch(r"[\w.]+:[\w.]+", value):
        value = value.rpartition(":")[2]
    return value if len(value) <= most else f"{value[: most // 2]}…{value[len(value) - (most - 1) // 2 :]}"


def _title(axes_of: Sequence[Sequence[Axes]], grid: _Grid, most: tuple[int, int]) -> None:
    """
    Args:
        most: letters beside a panel, horizontally and vertically.
    """
    if len(grid.names) == 1:
        titles = _fitted(grid.names[0], [key[0] for keys in grid.panels for key in keys if key], most[0])
        for of_row, keys in zip(axes_of, grid.panels, strict=True):
            for axes, key in zip(of_row, keys, strict=True):
                if key is not None:
                    axes.set_title(titles[key[0]], fontsize="medium")
    if len(grid.names) == 2:
        (first, second), firsts = grid.names, [next(key for key in keys if key)[0] for keys in grid.panels]
        seconds = [next(key for key in keys if key)[1] for keys in zip(*grid.panels, strict=True)]
        for axes, value in zip(axes_of[0], seconds, strict=True):
            axes.set_title(_fitted(second, seconds, most[0])[value], fontsize="medium")
        for of_row, value in zip(axes_of, firsts, strict=True):
            of_row[0].set_ylabel(_fitted(first, firsts, most[1])[value], fontsize="medium")


def _draw_nothing(axes: Axes, *, is_missing: bool) -> None:
    """Leave a panel empty; one of two settings says that there is no run."""
    if is_missing:
        axes.text(0.5, 0.5, "no run", transform=axes.transAxes, ha="center", va="center", color="#777777")
    else:
        axes.set_visible(False)
