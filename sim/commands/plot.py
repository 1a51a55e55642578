"""The command ``sim plot``: curves of runs, or when clients worked."""

from __future__ import annotations

import argparse
from pathlib import Path

from sim.commands.output import picture_path, write_picture
from sim.config.fields import parse_number
from sim.errors import ConfigError
from sim.run_folder.folder import open_run

X_NAMES = {"rounds": "round", "seconds": "seconds", "virtual-seconds": "virtual_seconds", "bytes": "bytes"}


def plot(arguments: argparse.Namespace) -> None:
    """``sim plot``: draw the curves of runs, for one metric or for what stands for them and the loss; or a timeline."""
    picture = picture_path(arguments.output)
    if arguments.timeline:
        _plot_timeline(arguments, picture)
        return
    if arguments.first_rounds is not None:
        raise ConfigError("--first-rounds: only with --timeline")
    from sim.run_folder import plots
    from sim.run_folder.measured import metric_of, metric_of_all
    from sim.run_folder.read_run import ReadRun

    runs = [ReadRun(open_run(name, arguments.results_dir).path) for name in arguments.runs]
    if arguments.metric is None:
        found = {metric.name: metric for run in runs if (metric := metric_of(run)) is not None}
        metrics = list(found.values()) or [plots.ACCURACY]
        names = list(dict.fromkeys([*(metric.name for metric in metrics), "loss"]))
    else:
        metrics = [metric_of_all(runs, arguments.metric)]
        names = [metrics[0].name]
    x = X_NAMES[arguments.x or "rounds"]
    write_picture(picture, plots.curves_figure(plots.curves_of(runs, metrics), names, x))


def _plot_timeline(arguments: argparse.Namespace, picture: Path) -> None:
    for flag, value in (("--x", arguments.x), ("--metric", arguments.metric)):
        if value is not None:
            raise ConfigError(f"{flag} {value}: not with --timeline, which draws when clients worked")
    if len(arguments.runs) > 1:
        raise ConfigError(f"--timeline: draws one run, not {len(arguments.runs)}: {', '.join(arguments.runs)}")
    first_rounds = None
    if arguments.first_rounds is not None:
        first_rounds = parse_number(int, arguments.first_rounds)
        if first_rounds is None or first_rounds < 1:
            raise ConfigError(f"--first-rounds {arguments.first_rounds}: must be a whole number of at least 1")
    from sim.run_folder.timeline import timeline_figure

    write_picture(picture, timeline_figure(open_run(arguments.runs[0], arguments.results_dir), first_rounds))
