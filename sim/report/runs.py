"""Find the runs that a report shows."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sim.disk import check_is_file
from sim.errors import RunFolderError
from sim.run_folder.folder import Run, is_run, list_runs, open_run
from sim.run_folder.read_run import ReadRun


def chosen_runs(
    words: Sequence[str], results_dir: str, on_unreadable: Callable[[RunFolderError], None] = lambda _: None
) -> list[ReadRun]:
    """Return the runs that the arguments of the command line name.

    Args:
        words: each is the name of a run in ``results_dir``, the path of a run, or a folder of runs. The runs of a
            sweep come in its order, those of another folder in natural order (run2 before run10). A run
            that is named twice comes once.
        results_dir: the folder of the runs.
        on_unreadable: called for each run of a folder that is left out because it cannot be read.

    Raises:
        RunFolderError: there is no such run or folder of runs, in which case the message lists the runs in
            ``results_dir``; or a run that was named, or every run, cannot be read.
    """
    named = named_runs(words, results_dir)
    runs = []
    for path, by_name in named.items():
        try:
            runs.append(ReadRun(path).read())
        except RunFolderError as error:
            if by_name or (not runs and path == list(named)[-1]):
                raise
            on_unreadable(error)
    return runs


def named_runs(words: Sequence[str], results_dir: str) -> dict[Path, bool]:
    """Return the path of each run that ``chosen_runs`` reads, and whether it was named itself, not only its folder.

    Raises:
        RunFolderError: there is no such run or folder of runs.
    """
    named: dict[Path, bool] = {}
    for word in words:
        for run, by_name in _runs_of(word, results_dir):
            named[run.path] = by_name or named.get(run.path, False)
    return named


def _runs_of(word: str, results_dir: str) -> Iterator[tuple[Run, bool]]:
    """Yield the runs of an argument, and whether it names this one run."""
    if not word:  # a variable of a shell that is not set; it would mean all runs
        raise RunFolderError("run '': must be the name of a run, the path of a run, or a folder of runs")
    folders = [path for path in (Path(results_dir) / word, Path(word)) if _is_folder(path)]
    if any(is_run(path) for path in folders) or not folders:
        yield open_run(word, results_dir), True
        return
    for folder in folders:
        runs = list_runs(str(folder))
        if runs:
            places = _places_in_sweep(folder)
            runs.sort(key=lambda run: (places.get(run.name, len(places)), natural(run.name)))
            yield from ((Run(run.path.resolve()), False) for run in runs)
            return
    existing = list_runs(results_dir) if _is_folder(Path(results_dir)) else []
    names = ", ".join(run.name for run in existing) or "none yet"
    raise RunFolderError(
        f"run {word}: {folders[0]} is neither a run (it has no config.toml) nor a folder of runs; "
        f"the runs in {results_dir} are: {names}"
    )


def _places_in_sweep(folder: Path) -> dict[str, int]:
    """Return the place of each run in the table of a sweep, in whose order its pictures are; none of other folders."""
    path = folder / "runs.csv"
    try:
        check_is_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row.get("run", ""): place for place, row in enumerate(csv.DictReader(file))}
    except (OSError, UnicodeError, csv.Error):
        return {}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name of 300 letters, a folder that may not be looked into
        return False


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key for sorting names so that the numbers in them are compared as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if number % 2 else (-1, part) for number, part in enumerate(parts)]
