"""Every combination of some values over several seeds: one run each, in processes of their own, until all are done."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sim.config.fields import flag_of
from sim.errors import RunFolderError, SimError
from sim.interrupts import interruptible
from sim.processes import Child, Children, written
from sim.run_folder.folder import Run
from sim.run_folder.writer import locked_folder
from sim.setup.resume import CHANGEABLE
from sim.sweep.grid import Variant
from sim.sweep.planned import Planned
from sim.sweep.table import write_picture, write_tables

_POLL_SECONDS = 0.2
OnChange = Callable[[Sequence[Planned], Planned | None], None]


def sweep(
    variants: Sequence[Variant], results_dir: str, *, jobs: int, on_change: OnChange | None = None
) -> list[Planned]:
    """Execute what is not done yet, ``jobs`` runs at a time, and write ``runs.csv``, ``sweep.csv`` and ``sweep.png``.

    Runs that are done are left alone, others go on after their last checkpoint; one that fails is told and does not
    end the others.

    Args:
        results_dir: the run folders are in it, and the tables.
        on_change: called with all runs, and with the one that has just ended, about five times a second.

    Raises:
        RunFolderError: the folder has a run of one of the names with another config, or another process sweeps there.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs under way have written a checkpoint.
    """
    folder = Path(results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"--results-dir {folder}: cannot be written: {error.strerror}") from None
    planned = [
        Planned(variant, config, Run((folder / str(config.name)).resolve()))
        for variant in variants
        for config in variant.configs
    ]
    with locked_folder(folder):
        for each in planned:
            each.look()
        with interruptible(), tempfile.TemporaryDirectory() as configs, Children() as children:
            _execute(planned, children, Path(configs), jobs, folder, on_change or (lambda *_: None))
        write_tables(folder, planned)
        write_picture(folder, planned)
    return planned


def _execute(
    planned: Sequence[Planned], children: Children, configs: Path, jobs: int, folder: Path, on_change: OnChange
) -> None:
    waiting = [each for each in planned if each.status == "waiting"]
    running: dict[int, tuple[Planned, Child]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            each = waiting.pop(0)
            _wait_for_writer(each.run)
            if each.is_done():  # by a run that outlived a sweep
                each.status = "done"
                on_change(planned, each)
                continue
            running[id(each)] = (each, children.start(_words(each, configs)))
            each.status = "running"
        for key, (each, child) in list(running.items()):
            code = child.poll()
            done = each.is_done()
            if code is None:
                continue
            del running[key]
            each.status = "done" if code == 0 and done else "failed"
            each.error = "" if each.status == "done" else child.error() or f"exit code {code}"
            write_tables(folder, planned)
            on_change(planned, each)
        on_change(planned, None)
        time.sleep(_POLL_SECONDS)


def _words(planned: Planned, configs: Path) -> list[str]:
    """``sim run``, or ``sim run --resume`` where there is something to go on from."""
    run, config = planned.run, planned.config
    if run.path.exists() and run.last_checkpoint() is None:
        shutil.rmtree(run.path)  # it did not get as far as a checkpoint
    if not run.path.exists():
        path = written(configs, str(config.name), config.to_toml())
        return ["run", "--config", str(path)]
    words = ["run", "--resume", str(run.path)]
    for name in CHANGEABLE:
        value = getattr(config, name)
        if value is not None and value != "auto" and not isinstance(value, bool):
            words += [flag_of(name), str(value)]
    return words


def _wait_for_writer(run: Run) -> None:
    """Let a run of a sweep that was killed write its checkpoint."""
    if not run.path.exists():
        return
    for _ in range(300):
        try:
            with locked_folder(run.path):
                return
        except SimError:
            time.sleep(_POLL_SECONDS)
