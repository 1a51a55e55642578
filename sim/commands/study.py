"""The commands that start many runs: sim sweep and scale, and sim size, which foresees one."""

from __future__ import annotations

import argparse
from typing import Any

from sim.config import RunConfig
from sim.environment import available_cpus
from sim.errors import ConfigError, RunError
from sim.flags import knobs_given


def sweep(arguments: argparse.Namespace) -> None:
    """``sim sweep``."""
    from sim.studies.grid import parse_axis, variants

    given = _base(arguments)
    results_dir = given.pop("results_dir", RunConfig.results_dir)
    num_seeds = whole_number("--seeds", arguments.seeds)
    axes = [parse_axis(text) for text in arguments.vary]
    chosen = variants(given, axes, num_seeds, results_dir)
    engines = {config.engine for variant in chosen for config in variant.configs}
    jobs = available_cpus() if engines == {"inline"} else 1
    if arguments.jobs is not None:
        jobs = whole_number("--jobs", arguments.jobs)
    from sim.commands.look import print_table
    from sim.studies.sweep import sweep
    from sim.studies.sweep_screen import SweepScreen, table_of

    with SweepScreen() as screen:
        planned = sweep(chosen, results_dir, jobs=jobs, on_change=screen.update)
    print_table(table_of(planned))
    print(f"tables          {results_dir}/sweep.csv, {results_dir}/runs.csv")
    print(f"picture         {results_dir}/sweep.png")
    failed = [each for each in planned if each.status == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed, first {failed[0].run.name}: {failed[0].error}; "
            "the same command tries them again"
        )


def _base(arguments: argparse.Namespace) -> dict[str, Any]:
    """The knobs of the base config; a name in its file was that of another run."""
    if "name" in vars(arguments):
        raise ConfigError(f"--name {arguments.name}: runs are named after their values here")
    given = knobs_given(RunConfig, arguments)
    given.pop("name", None)
    return given


def whole_number(flag: str, text: str) -> int:
    """Read a number of at least 1.

    Raises:
        ConfigError: it is none.
    """
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ConfigError(f"{flag} {text}: must be a whole number, at least 1")
    return int(text)
