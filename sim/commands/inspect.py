"""The commands that show runs and partitions: sim partition, plot and report."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.config.fields import parse_number
from sim.config.flags import config_from
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, one_line
from sim.run_folder.folder import open_run

X_NAMES = {"rounds": "round", "seconds": "seconds", "virtual-seconds": "virtual_seconds", "bytes": "bytes"}

if TYPE_CHECKING:
    from rich.table import Table

    from sim.data.partition import Summary


def partition(arguments: argparse.Namespace) -> None:
    """``sim partition``: print a table of the partition and write its picture."""
    config = config_from(RunConfig, arguments)
    picture = picture_path(arguments.output)
    from sim.data import partition
    from sim.data.dataset import load_dataset
    from sim.data.defaults import decided
    from sim.errors import DataError
    from sim.run_folder import plots

    dataset = load_dataset(config)
    config, notes = decided(config, dataset)
    assigned = partition.assign(dataset, config)
    if not assigned.is_known:
        raise DataError(f"--dataset {config.dataset}: your program makes the partition itself, so it cannot be shown")
    for note in (*dataset.notes, *notes):
        print(f"note            {note}")
    summary = partition.summary(dataset, assigned, config)
    print_table(_partition_table(summary))
    num_unassigned = len(dataset.train) - len(assigned.indices)
    if num_unassigned:
        print(f"unassigned      {num_unassigned} of {len(dataset.train)} examples belong to no client")
    write_picture(picture, plots.summary_figure(summary))


def _partition_table(summary: Summary) -> Table:
    """Return a table with one row for each client."""
    from rich.table import Table

    if summary.counts is not None:
        kinds = "class" if summary.column == "class" else f"value of {one_line(summary.column, 60)}"
        headings, title = list(map(one_line, summary.names)), f"examples of each {kinds}"
        rows = [[str(n) if n else "·" for n in row] for row in summary.counts]
        last = [str(n) for n in summary.counts.sum(axis=0)]
    elif summary.quantiles is not None:
        headings, title = ["smallest", "first quartile", "median", "third quartile", "largest"], summary.column
        rows, last = [[f"{value:.6g}" for value in row] for row in summary.quantiles], []
    elif summary.distinct is not None:
        headings, title = ["different values"], summary.column
        rows, last = [[str(n)] for n in summary.distinct], []
    else:
        headings, title, rows, last = [], "", [[] for _ in summary.sizes], []
    table = Table("client", "examples", *headings, title=one_line(title, 100) or None, box=None)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for client_id, (size, row) in enumerate(zip(summary.sizes, rows, strict=True)):
        table.add_row(str(client_id), str(size), *row)
    table.add_row("all", str(summary.sizes.sum()), *last, style="bold")
    return table


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

    runs = [open_run(name, arguments.results_dir) for name in arguments.runs]
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


def report(arguments: argparse.Namespace) -> None:
    """``sim report``: write one HTML page about runs."""
    path = output_path(arguments.output, ("html",))
    from sim.report.page import page_of
    from sim.report.runs import chosen_runs
    from sim.run_folder.writer import write_whole

    # One run that cannot be read does not hide the others of its folder.
    runs = chosen_runs(arguments.runs, arguments.results_dir, lambda error: print(f"sim: {error}", file=sys.stderr))
    # The name of a folder may contain bytes that are not valid UTF-8.
    content = page_of(runs, _title(arguments.runs), arguments.metric).encode("utf-8", "backslashreplace")
    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(f"-o {path}: cannot be written: {error.strerror}") from None
    print(f"report          {path}")


def _title(words: Sequence[str]) -> str:
    names = [Path(word).resolve().name for word in words]
    return ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def picture_path(text: str) -> Path:
    """Return the path of a picture to write; see ``output_path``."""
    from sim.run_folder.plots import FORMATS

    return output_path(text, FORMATS)


def output_path(text: str, endings: Sequence[str]) -> Path:
    """Return the path of a file to write.

    Raises:
        ConfigError: it has another ending, or there is no such folder.
    """
    path = Path(text)
    if path.suffix.lstrip(".") not in endings:
        known = ", ".join("." + name for name in endings)
        raise ConfigError(f"-o {text}: the ending must be {'one of ' if len(endings) > 1 else ''}{known}")
    try:
        is_folder = path.parent.is_dir()
    except OSError as error:  # a path of 6,000 letters
        raise ConfigError(f"-o {text}: cannot be written: {error.strerror}") from None
    if not is_folder:
        raise ConfigError(f"-o {text}: there is no folder {path.parent}")
    return path


def write_picture(path: Path, figure: Any) -> None:
    """Write a figure, and say so.

    Raises:
        ConfigError: the file cannot be written.
    """
    from sim.run_folder.plots import render

    try:
        path.write_bytes(render(figure, path.suffix.lstrip(".")))
    except OSError as error:
        raise ConfigError(f"-o {path}: cannot be written: {error.strerror}") from None
    print(f"picture         {path}")


def print_table(table: Any) -> None:
    """Print a table at its full width, because rich would cut off numbers to fit a narrow terminal."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=10_000, markup=False, emoji=False).print(table)  # the name of a class may be [red]
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
