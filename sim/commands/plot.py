"""The command ``sim plot``: curves of runs, also in a panel for each value of a setting, or when clients worked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim.commands.output import picture_path, write_picture
from sim.config.fields import parse_number
from sim.config.flags import whole_number
from sim.errors import ConfigError, RunFolderError, one_line
from sim.metrics import Target, is_target
from sim.run_folder.folder import Run, open_run

if TYPE_CHECKING:
    from sim.run_folder.plot_style import Look

X_NAMES = {"rounds": "round", "seconds": "seconds", "virtual-seconds": "virtual_seconds", "bytes": "bytes"}


def plot(arguments: argparse.Namespace) -> None:
    """``sim plot``: draw the curves of runs, for one metric or for what stands for them and the loss; or a timeline."""
    picture = picture_path(arguments.output)
    if arguments.timeline:
        _plot_timeline(arguments, picture)
        return
    if arguments.first_rounds is not None:
        raise ConfigError("--first-rounds: only with --timeline")
    if arguments.width is not None and arguments.style != "paper":
        raise ConfigError(f"--width {arguments.width}: only with --style paper")
    smooth = 1 if arguments.smooth is None else whole_number("--smooth", arguments.smooth)
    given = [_target(text) for text in arguments.target]
    targets = tuple(each.value if isinstance(each, Target) else each for each in given)
    grid = None if arguments.grid is None else _settings(arguments.grid)
    from sim.run_folder import plots
    from sim.run_folder.measurements import metric_of, metric_of_all
    from sim.run_folder.plot_style import Look

    look = Look(arguments.style or "screen", arguments.width or "single", smooth, targets)
    runs = _runs(arguments.runs, arguments.results_dir)
    x = X_NAMES[arguments.x or "rounds"]
    if grid is not None:
        if given:
            _check_targets(given, [metric_of_all(runs, arguments.metric).name])
        from sim.run_folder.panels import grid_figure

        write_picture(picture, grid_figure(runs, grid, arguments.metric, x, look), look.dots_per_inch)
        _print_caption([] if "seed" in grid else runs, look)
        return
    if arguments.metric is None:
        found = {metric.name: metric for run in runs if (metric := metric_of(run)) is not None}
        metrics = list(found.values()) or [plots.ACCURACY]
        names = list(dict.fromkeys([*(metric.name for metric in metrics), "loss"]))
    else:
        metrics = [metric_of_all(runs, arguments.metric)]
        names = [metrics[0].name]
    _check_targets(given, [metric.name for metric in metrics])
    write_picture(picture, plots.curves_figure(plots.curves_of(runs, metrics), names, x, look), look.dots_per_inch)
    _print_caption(runs, look)


def _target(text: str) -> float | Target:
    if is_target(text):
        return Target.parse(text, "--target")
    number = parse_number(float, text)
    if number is not None and not math.isfinite(number):
        raise ConfigError(f"--target {one_line(text, 60)}: must be a finite number")
    if number is None:
        raise ConfigError(f"--target {one_line(text, 60)}: must be a number, e.g. 0.7, or a comparison, e.g. mae<=0.2")
    return float(number)


def _check_targets(targets: Sequence[float | Target], drawn: Sequence[str]) -> None:
    """Check that a target which names its metric is one of a metric that is drawn."""
    for target in targets:
        if isinstance(target, Target) and target.name not in drawn:
            raise ConfigError(f"--target {target}: must be of {' or '.join(drawn)}; --metric chooses another metric")


def _settings(text: str) -> list[str]:
    from sim.run_folder.settings import named

    names = [named(name) for name in text.split(",")]
    if not all(names) or len(names) > 2:
        raise ConfigError(f"--grid {one_line(text, 200)}: must be one setting or two, e.g. alpha,strategy")
    return names


def _runs(words: Sequence[str], results_dir: str) -> Sequence[Run]:
    """Return the runs that the words name; those of a folder that have no round yet are left out."""
    from sim.report.runs import named_runs
    from sim.run_folder.read_run import ReadRun

    named = named_runs(words, results_dir)
    found = {path: ReadRun(path) for path in named}
    runs = [run for path, run in found.items() if named[path] or _has_round(run)]
    if not runs:
        raise RunFolderError(f"{', '.join(words)}: no run has a round yet")
    without = [path.name for path in named if path not in {run.path for run in runs}]
    if without:
        print(f"note            left out, because no round is done yet: {one_line(', '.join(without), 200)}")
    return runs


def _has_round(run: Run) -> bool:
    return run.rounds_path.exists() and len(run.rounds()) > 0


def _print_caption(runs: Sequence[Run], look: Look) -> None:
    """Print what a figure for a paper leaves to its caption, which says nothing of seeds if no runs are given."""
    if not look.in_print:
        return
    from sim.run_folder import plots

    seeds = plots.seeds_of(plots.curves_of(runs), may_differ=True) if runs else ""
    parts = [f"lines and bands are {seeds}"] if seeds else []
    if look.smooth > 1:
        parts.append(f"each point is the mean of the last {look.smooth} rounds")
    if parts:
        print(f"caption         {'; '.join(parts)}")


def _plot_timeline(arguments: argparse.Namespace, picture: Path) -> None:
    given = {
        "--x": arguments.x,
        "--metric": arguments.metric,
        "--grid": arguments.grid,
        "--style": arguments.style,
        "--width": arguments.width,
        "--smooth": arguments.smooth,
        "--target": ", ".join(arguments.target) or None,
    }
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(f"{flag} {value}: not with --timeline, which draws when clients worked")
    if len(arguments.runs) > 1:
        raise ConfigError(f"--timeline: draws one run, not {len(arguments.runs)}: {', '.join(arguments.runs)}")
    first_rounds = None
    if arguments.first_rounds is not None:
        first_rounds = whole_number("--first-rounds", arguments.first_rounds)
    from sim.run_folder.timeline import timeline_figure

    write_picture(picture, timeline_figure(open_run(arguments.runs[0], arguments.results_dir), first_rounds))
