"""The command ``sim report``: one HTML page about runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sim.commands.output import output_path
from sim.errors import ConfigError


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
