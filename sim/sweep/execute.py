"""Execute a sweep: one run for each combination of values and each seed, each run in a process of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sim.config.choices import CHANGEABLE
from sim.config.fields import flag_of
from sim.errors import SimError, UsageError
from sim.interrupts import interruptible, raise_if_interrupted
from sim.processes import Child, Children, written
from sim.run_folder.folder import Run, make_results_folder
from sim.run_folder.writer import locked_folder, remove_run
from sim.sweep.planned import Planned
from sim.sweep.table import write_pictures, write_tables
from sim.sweep.variants import Variant

_POLL_SECONDS = 0.2
OnChange = Callable[[Sequence[Planned], Planned | None], None]


def sweep(
    variants: Sequence[Variant],
    results_dir: str,
    *,
    jobs: int,
    on_change: OnChange | None = None,
    allow_changed_code: bool = False,
) -> list[Planned]:
    """Execute the runs that are not finished and write ``runs.csv``, ``sweep.csv`` and the pictures.

    Finished runs are not executed again. Interrupted runs continue from their last checkpoint. A run that fails is
    reported and does not stop the other runs.

    Args:
        variants: the variants to execute; each of their configs is one run.
        results_dir: the folder for the run folders and the tables; it is created if it does not exist.
        jobs: how many runs are executed at the same time.
        on_change: called with all runs and the run that has just ended. It is also called about five times per second
            with all runs and None.
        allow_changed_code: take finished runs, and continue interrupted ones, although modules of the user's have
            changed since.

    Returns:
        All runs, in the order of the variants and their seeds.

    Raises:
        RunFolderError: the folder cannot be written, it holds a run of the same name with another config, data or
            code, or another process executes a sweep in it.
        WriteError: a table or the picture cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the running runs have written a checkpoint.
    """
    folder = Path(results_dir)
    make_results_folder(folder)
    planned = [
        Planned(variant, config, Run((folder / str(config.name)).resolve()))
        for variant in variants
        for config in variant.configs
    ]
    with locked_folder(folder):
        for each in planned:
            each.inspect(allow_changed_code=allow_changed_code)
        with interruptible(), tempfile.TemporaryDirectory() as configs, Children() as children:
            more = ["--allow-changed-code"] if allow_changed_code else []
            _execute(planned, children, Path(configs), jobs, folder, on_change or (lambda *_: None), more)
        write_tables(folder, planned)
        write_pictures(folder, planned)
    return planned


def _execute(
    planned: Sequence[Planned],
    children: Children,
    configs: Path,
    jobs: int,
    folder: Path,
    on_change: OnChange,
    more: Sequence[str],
) -> None:
    """Execute what is waiting.

    Args:
        more: flags for runs that are continued.
    """
    waiting = [each for each in planned if each.status == "waiting"]
    running: dict[int, tuple[Planned, Child]] = {}
    while waiting or running:
        raise_if_interrupted()
        while waiting and len(running) < jobs:
            each = waiting.pop(0)
            _wait_for_writer(each.run)
            if each.is_done():  # a process of an earlier sweep that was killed has finished it
                each.status = "done"
                on_change(planned, each)
                continue
            running[id(each)] = (each, children.start(_arguments(each, configs, more)))
            each.status = "running"
        for key, (each, child) in list(running.items()):
            code = child.poll()
            done = each.is_done()
            if code is None:
                continue
            del running[key]
            each.status = "done" if code == 0 and done else "failed"
            each.error = "" if each.status == "done" else child.error() or f"exit code {code}"
            each.was_refused = code == UsageError.exit_code
            write_tables(folder, planned)
            on_change(planned, each)
        on_change(planned, None)
        time.sleep(_POLL_SECONDS)


def _arguments(planned: Planned, configs: Path, more: Sequence[str]) -> list[str]:
    """Return the command line of ``sim run``, or of ``sim run --resume`` if the run has a checkpoint."""
    run, config = planned.run, planned.config
    if run.path.exists() and run.last_checkpoint() is None:
        remove_run(run)  # the run ended before its first checkpoint
    if not run.path.exists():
        path = written(configs, str(config.name), config.to_toml())
        return ["run", "--config", str(path)]
    arguments = ["run", "--resume", str(run.path), *more]
    for name in CHANGEABLE:
        value = getattr(config, name)
        if value is not None and value != "auto" and not isinstance(value, bool):
            arguments += [flag_of(name), str(value)]
    return arguments


def _wait_for_writer(run: Run) -> None:
    """Wait up to one minute while a process of an earlier sweep that was killed still writes to the run folder."""
    if not run.path.exists():
        return
    for _ in range(300):
        try:
            with locked_folder(run.path):
                return
        except SimError:
            time.sleep(_POLL_SECONDS)
