"""The command ``sim evaluate``, and the table that it prints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sim.commands.output import output_path, print_table, shown_path
from sim.config.fields import parse_number
from sim.config.flags import flags_given
from sim.config.run_config import RunConfig
from sim.errors import one_line
from sim.metrics import MetricName, named, quantiles, shown
from sim.run_folder.folder import Run, open_run

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_MODELS = {
    "global": "global",
    "own": "own",
    "global_tuned": "global, fine-tuned",
    "own_tuned": "own, fine-tuned",
}
_QUANTILES = {"p10": "p10", "p50": "p50", "p90": "p90", "worst10": "worst 10 %"}


def evaluate(arguments: argparse.Namespace) -> None:
    """``sim evaluate``: evaluate a run's global model and each client's own model on all clients."""
    changes = flags_given(RunConfig, arguments)
    run = open_run(arguments.run, changes.pop("results_dir", RunConfig.results_dir))
    path = run.evaluation_path if arguments.output is None else output_path(arguments.output, ("csv",))
    epochs = parse_number(int, arguments.fine_tune_epochs)
    from sim import simulation

    frame = simulation.evaluate(
        run,
        fine_tune_epochs=arguments.fine_tune_epochs if epochs is None else epochs,
        output=path,
        allow_changed_code=arguments.allow_changed_code,
        **changes,
    )
    show(run, frame, path)


def show(run: Run, frame: pd.DataFrame, path: Path) -> None:
    """Print what the table of an evaluation says, and where it is."""
    from sim.run_folder.measurements import metric_of

    metric = metric_of(run)
    of_global = [str(name).removeprefix("global_") for name in frame if not frame[name].isna().all()]
    measured = [name for name in of_global if f"own_{name}" in frame and name != "loss"]
    if metric is None or metric.name not in measured:  # without a central test, a run may have measured less
        first = "accuracy" if "accuracy" in measured else next(iter(measured), "loss")
        metric = named(first, run.config())
    print_table(table_of(frame, metric))
    print(f"table           {shown_path(path)}")


def table_of(frame: pd.DataFrame, metric: MetricName) -> Table:
    """Return how each model does: over all clients, and over those that never trained if there are any."""
    from rich.table import Table

    headings = ("clients", "model", "mean", *_QUANTILES.values(), "number of clients")
    table = Table(*headings, title=one_line(metric.name, 60), box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    never = frame["num_rounds_trained"] == 0
    for group, rows in {"all": frame, "never trained": frame[never]}.items():
        for model, name in _MODELS.items():
            column_name = f"{model}_{metric.name}"
            if column_name not in frame or not len(rows):
                continue
            known = rows[rows[column_name].notna()]
            values, counts = known[column_name], known["num_examples"].astype("float64")
            cells = ["–"] * (1 + len(_QUANTILES))
            if len(known):
                found = quantiles(values.tolist(), smaller_is_better=metric.smaller_is_better)
                mean = float((values * counts).sum() / counts.sum())
                cells = [shown(mean), *(shown(found[quantile]) for quantile in _QUANTILES)]
            table.add_row(group, name, *cells, str(len(known)))
    return table
