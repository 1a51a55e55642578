"""The command ``sim sweep``: a run for each combination of values and each seed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.commands.output import print_table
from sim.config.fields import flag_of
from sim.config.flags import check_new_run, flags_given, settings_given, whole_number
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, RunError
from sim.run_folder.environment import available_cpus
from sim.tracking.by_name import check_trackers

if TYPE_CHECKING:
    from sim.sweep.variants import Axis


def sweep(arguments: argparse.Namespace) -> None:
    """``sim sweep``: execute a run for each combination of values and each seed."""
    from sim.sweep.variants import MOST_RUNS, parse_axis, variants

    given = settings_without_name(arguments)
    results_dir = given.pop("results_dir", RunConfig.results_dir)
    num_seeds = whole_number("--seeds", arguments.seeds, MOST_RUNS)
    axes = [parse_axis(text) for text in arguments.vary]
    _check_not_given(flags_given(RunConfig, arguments), axes)
    chosen = variants(given, axes, num_seeds, results_dir)
    check_new_run(with_varied(given, axes))
    check_trackers(chosen[0].configs[0].track)
    engines = {config.engine for variant in chosen for config in variant.configs}
    jobs = available_cpus() if engines == {"inline"} else 1
    if arguments.jobs is not None:
        jobs = whole_number("--jobs", arguments.jobs)
    from sim.sweep.execute import sweep
    from sim.sweep.screen import SweepScreen, table_of
    from sim.sweep.table import CURVES, FINAL

    with SweepScreen() as screen:
        planned = sweep(
            chosen,
            results_dir,
            jobs=jobs,
            on_change=screen.update,
            allow_changed_code=arguments.allow_changed_code,
        )
    print_table(table_of(planned))
    if num_seeds > 1:
        print("±               half of the 95 % interval over the seeds (Student's t)")
    print(f"tables          {results_dir}/sweep.csv, {results_dir}/runs.csv")
    for what, name in (("picture", CURVES), ("final values", FINAL)):
        if Path(results_dir, name).exists():
            print(f"{what:<15} {results_dir}/{name}")
    failed = [each for each in planned if each.status == "failed"]
    if failed:
        retry = "" if all(each.was_refused for each in failed) else "; run the same command again to retry them"
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed, first {failed[0].run.name}: {failed[0].error}{retry}"
        )


def _check_not_given(flags: Mapping[str, Any], axes: Sequence[Axis]) -> None:
    """Refuse a setting that is a flag and is varied; what a config file says is a base, which an axis overrides."""
    for axis in axes:
        given = flags.get(axis.setting)
        if given is not None and (not axis.argument or axis.argument in given):
            raise ConfigError(f"{flag_of(axis.setting)} and --vary {axis.key}: give one of the two")


def with_varied(given: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    """Return the settings of a variant, if there is one then of one that has a part of the user's own."""
    found = dict(given)
    for axis in axes:
        own = next((value for value in axis.values if ":" in str(value)), axis.values[0])
        found[axis.setting] = {**found.get(axis.setting, {}), axis.argument: own} if axis.argument else own
    return found


def settings_without_name(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the user gave.

    The name in a config file is dropped, because it is the name of another run.

    Raises:
        ConfigError: a name was given as a flag, or a setting is wrong.
    """
    if "name" in vars(arguments):
        raise ConfigError(f"--name {arguments.name}: cannot be set, because each run is named after its settings")
    given = settings_given(RunConfig, arguments)
    given.pop("name", None)
    return given
