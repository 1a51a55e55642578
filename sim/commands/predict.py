"""The command ``sim predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sim.commands.output import print_table
from sim.errors import one_line
from sim.run_folder.folder import open_run

_MOST_CLASSES = 3  # that are shown for an image


def predict(arguments: argparse.Namespace) -> None:
    """``sim predict``: print which classes the model of a run sees in images."""
    run = open_run(arguments.run, arguments.results_dir)
    from rich.table import Table

    from sim.setup.predict import predict
    from sim.setup.trained import TrainedModel

    trained = TrainedModel.of(run, best=arguments.best)
    found = predict(run, trained, [Path(image) for image in arguments.images])
    for note in trained.notes:
        print(f"note            {note}")
    for each in found:
        if each.resized_to is not None:
            sizes = [f"{width}×{height}" for width, height in (each.size, each.resized_to)]
            print(f"note            {one_line(str(each.path))} is resized from {sizes[0]} to {sizes[1]} pixels")
    shown = min(_MOST_CLASSES, len(found[0].classes))
    table = Table("image", *("class", "probability") * shown, box=None)
    for column in table.columns[2::2]:
        column.justify = "right"
    for each in found:
        cells = [cell for name, value in each.classes[:shown] for cell in (one_line(name, 60), f"{value:.4f}")]
        table.add_row(one_line(str(each.path)), *cells)
    print_table(table)
