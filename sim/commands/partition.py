"""The command ``sim partition``: the examples of each client, before any training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sim.commands.output import picture_path, print_table, write_picture
from sim.config.fields import flag_of
from sim.config.flags import config_from
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rich.table import Table

    from sim.data.partition import Summary


def partition(arguments: argparse.Namespace) -> None:
    """``sim partition``: print a table of the partition and write its picture."""
    config = config_from(RunConfig, arguments)
    for program in ("app", "client_fn"):
        name = getattr(config, program)
        if name is not None:
            raise ConfigError(f"{flag_of(program)} {name}: its clients bring their own data, so there is no partition")
    picture = picture_path(arguments.output)
    from sim.data import partition
    from sim.data.defaults import decided
    from sim.data.load_dataset import load_dataset
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
    if len(assigned.validation):
        print(f"held out        {len(assigned.validation)} of {len(dataset.train)} examples, for the validation")
    num_unassigned = len(dataset.train) - len(assigned.indices) - len(assigned.validation)
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
