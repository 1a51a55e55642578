"""The command ``sim export``."""

from __future__ import annotations

import argparse

from sim.commands.output import output_path, shown_path
from sim.errors import ConfigError
from sim.run_folder.folder import open_run

# Format → the endings of its files.
FORMATS = {"torch": ("pt", "pth"), "onnx": ("onnx",), "safetensors": ("safetensors",)}


def export(arguments: argparse.Namespace) -> None:
    """``sim export``: write a run's model as a file of another tool's, and print how it is used."""
    asked = arguments.format
    output = arguments.output or f"model.{FORMATS[asked or 'torch'][0]}"
    path = output_path(output, FORMATS[asked] if asked else [each for endings in FORMATS.values() for each in endings])
    name = next(each for each, endings in FORMATS.items() if path.suffix[1:] in endings)
    run = open_run(arguments.run, arguments.results_dir)
    from sim.run_folder.writer import write_whole
    from sim.setup import export
    from sim.setup.trained import TrainedModel

    export.check_format(name)
    trained = TrainedModel.of(run, best=arguments.best)
    content = export.content_of(trained, name)
    lines = export.snippet(trained, name, output)
    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(f"-o {path}: cannot be written: {error.strerror}") from None
    for note in trained.notes:
        print(f"note            {note}")
    count = sum(array.size for array in trained.weights.values())
    word = "epoch" if run.is_central else "round"
    print(f"model           {shown_path(path)}: {name}, {count:,} numbers, after {word} {trained.number}")
    print("\n".join(lines))
