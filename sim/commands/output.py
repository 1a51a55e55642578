"""What commands print and the files that they write."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.errors import ConfigError
from sim.run_folder.folder import is_run

# What other commands read, and nobody can make again.
_OF_RUNS = ("model.safetensors", "best.safetensors", "rounds.csv", "clients.csv", "metrics.csv")
_OF_SWEEPS = ("runs.csv", "sweep.csv")


def picture_path(text: str) -> Path:
    """Return the path of a picture to write; see ``output_path``."""
    from sim.run_folder.plots import FORMATS

    return output_path(text, FORMATS)


def output_path(text: str, endings: Sequence[str]) -> Path:
    """Return the path of a file to write.

    Raises:
        ConfigError: it has another ending, there is no such folder, or it is a file that a run or a sweep needs.
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
    if path.name in _OF_RUNS and is_run(path.parent):
        raise ConfigError(f"-o {text}: is a file of the run {path.parent.resolve().name}; choose another name")
    if path.name in _OF_SWEEPS and path.exists() and (path.parent / "runs.csv").exists():
        raise ConfigError(f"-o {text}: is a table of a sweep; choose another name")
    return path


def write_picture(path: Path, figure: Any, dpi: int = 144) -> None:
    """Write a figure, and say so.

    Args:
        dpi: dots per inch of a PNG.

    Raises:
        ConfigError: the file cannot be written.
    """
    from sim.run_folder.plots import render

    try:
        path.write_bytes(render(figure, path.suffix.lstrip("."), dpi))
    except OSError as error:
        raise ConfigError(f"-o {path}: cannot be written: {error.strerror}") from None
    print(f"picture         {path}")


def shown_path(path: Path) -> Path:
    """Return a path as people read it: relative to the current folder, if it is in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_table(table: Any) -> None:
    """Print a table at its full width, because rich would cut off numbers to fit a narrow terminal."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=10_000, markup=False, emoji=False, force_terminal=False).print(
        table
    )  # the name of a class may be [red]
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
