"""The command ``sim clean``: removes what only a continued run needs, of runs that are done."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from sim.commands.output import print_table
from sim.disk import bytes_of, shown_bytes
from sim.errors import ConfigError, RunError, RunFolderError, one_line
from sim.run_folder.folder import Run, list_runs, open_run
from sim.run_folder.writer import locked_folder


@dataclass(frozen=True)
class _Cleaned:
    """What became of a run: the bytes that were removed, why nothing was, and what went wrong."""

    run: Run
    num_bytes: int = 0
    kept: str = ""
    problem: str = ""


def clean(arguments: argparse.Namespace) -> None:
    """``sim clean``: remove checkpoints and client states of runs that are done."""
    if bool(arguments.runs) == arguments.all:
        raise ConfigError("sim clean: needs the names of runs, or --all for those in --results-dir")
    names, results_dir = arguments.runs, arguments.results_dir
    runs = list_runs(results_dir) if arguments.all else [open_run(name, results_dir) for name in names]
    found = [_clean(run, dry_run=arguments.dry_run) for run in {run.path: run for run in runs}.values()]
    shown = [each for each in found if each.num_bytes or each.kept or each.problem]
    if shown:
        from rich.table import Table

        table = Table("run", "would be removed" if arguments.dry_run else "removed", "kept because", box=None)
        table.columns[1].justify = "right"
        for each in shown:
            size = shown_bytes(each.num_bytes) if each.num_bytes else "–"
            table.add_row(one_line(each.run.name), size, each.problem or each.kept)
        print_table(table)
    cleaned = [each for each in found if each.num_bytes]
    word = "would remove" if arguments.dry_run else "removed"
    total = shown_bytes(sum(each.num_bytes for each in cleaned))
    print(f"{word:15} {total} of {len(cleaned)} run{'' if len(cleaned) == 1 else 's'}")
    failed = [each for each in found if each.problem]
    if failed:
        raise RunError(f"{failed[0].run.path}: cannot be cleaned: {failed[0].problem}")


def _clean(run: Run, *, dry_run: bool) -> _Cleaned:
    try:
        if not run.is_done():
            last = run.last_checkpoint()
            ends = "it cannot be resumed either" if last is None else f"--resume continues after round {last}"
            return _Cleaned(run, kept=f"it is not done; {ends}")
        with locked_folder(run.path):
            folders = [run.checkpoints_path, run.client_states_path]
            num_bytes = sum(map(bytes_of, folders))
            for folder in folders if not dry_run else []:
                _remove(folder)
            return _Cleaned(run, num_bytes)
    except RunFolderError as error:  # it cannot be read, or another process writes to it
        return _Cleaned(run, kept=str(error))
    except OSError as error:
        return _Cleaned(run, problem=error.strerror or one_line(str(error)))


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():  # a link leads to a place that is no part of the run
        shutil.rmtree(folder)
