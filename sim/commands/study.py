"""The commands that execute many runs, sim sweep and sim scale, and sim size, which forecasts one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.config.fields import MOST, parse_number
from sim.config.flags import config_from, settings_given
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, RunError
from sim.run_folder.environment import available_cpus


def sweep(arguments: argparse.Namespace) -> None:
    """``sim sweep``: execute a run for each combination of values and each seed."""
    from sim.sweep.grid import MOST_RUNS, parse_axis, variants

    given = _base(arguments)
    results_dir = given.pop("results_dir", RunConfig.results_dir)
    num_seeds = whole_number("--seeds", arguments.seeds, MOST_RUNS)
    axes = [parse_axis(text) for text in arguments.vary]
    chosen = variants(given, axes, num_seeds, results_dir)
    engines = {config.engine for variant in chosen for config in variant.configs}
    jobs = available_cpus() if engines == {"inline"} else 1
    if arguments.jobs is not None:
        jobs = whole_number("--jobs", arguments.jobs)
    from sim.commands.inspect import print_table
    from sim.sweep.execute import sweep
    from sim.sweep.screen import SweepScreen, table_of
    from sim.sweep.table import FINAL

    with SweepScreen() as screen:
        planned = sweep(chosen, results_dir, jobs=jobs, on_change=screen.update)
    print_table(table_of(planned))
    print(f"tables          {results_dir}/sweep.csv, {results_dir}/runs.csv")
    print(f"picture         {results_dir}/sweep.png")
    if Path(results_dir, FINAL).exists():
        print(f"final values    {results_dir}/{FINAL}")
    failed = [each for each in planned if each.status == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed, first {failed[0].run.name}: {failed[0].error}; "
            "run the same command again to retry them"
        )


def size(arguments: argparse.Namespace) -> None:
    """``sim size``: measure one client and forecast a run."""
    config = config_from(RunConfig, arguments)
    if config.ray_address is not None:
        raise ConfigError(f"--ray-address {config.ray_address}: sim size can only measure this machine")
    from sim.measure.capacity import size
    from sim.measure.forecast import forecast
    from sim.measure.screen import capacity_lines, forecast_lines, with_capacity
    from sim.run_folder import log

    with log.notes(), log.quiet("flwr", show=config.verbose):
        sized = size(config)
        for line in capacity_lines(sized):
            print(line, flush=True)
        if not sized.capacity.num_actors:
            raise RunError(f"no client fits on this machine: not enough {sized.capacity.limit}")
        chosen = with_capacity(config, sized)
        for line in forecast_lines(forecast(sized, chosen), chosen):
            print(line)


def scale(arguments: argparse.Namespace) -> None:
    """``sim scale``: measure runs with different numbers of clients and actors."""
    from sim.scale.cells import BASE, SET_BY_THE_GRID, cells, config_of

    given = _base(arguments)
    results_dir = given.pop("results_dir", "results/scale")
    # A config file or a preset may contain settings that the grid sets; they are ignored.
    base = RunConfig.layered([BASE, {name: value for name, value in given.items() if name not in SET_BY_THE_GRID}])
    engines = _values("--engine", arguments.engines, ("ray", "inline"))
    actors = f"1,{available_cpus()}" if available_cpus() > 1 else "1"
    num_clients, num_actors = (
        [whole_number(flag, word) for word in _values(flag, text)]
        for flag, text in (("--num-clients", arguments.clients), ("--num-actors", arguments.actors or actors))
    )
    repeats = whole_number("--repeats", arguments.repeats, 10_000)
    examples = whole_number("--examples-per-client", arguments.examples_per_client)
    timeout = whole_number("--cell-timeout", arguments.cell_timeout, 10_000_000)
    grid = cells(engines, num_clients, num_actors, arguments.scaling)
    num_gpus = _num_gpus(base.get("device", "auto"))
    configs = {
        (cell, repeat): config_of(
            cell, base, examples, available_cpus(), num_gpus, f"{results_dir}/cells", f"{cell.name}-{repeat}"
        )
        for repeat in range(repeats)  # the outer loop, so that other load on the machine affects all cells alike
        for cell in grid
    }
    from sim.commands.inspect import print_table
    from sim.scale.execute import efficiency_frame, scale
    from sim.scale.screen import print_record, table_of, write_results

    frame = scale(
        configs,
        {**base, "examples_per_client": examples},
        results_dir,
        timeout_seconds=timeout,
        on_cell=print_record,
    )
    print_table(table_of(frame))
    for _, row in efficiency_frame(frame).iterrows():
        if row.speedup != 1 or row.efficiency != 1:  # not the cell that the others are compared with
            cell_text = f"{row.num_clients} clients on {row.num_actors} actors ({row.engine}, {row.scaling} scaling)"
            print(f"efficiency      {row.efficiency:.2f}, {cell_text}")
    print(f"table           {results_dir}/scale.csv")
    for path in write_results(frame, Path(results_dir)):
        print(f"{'picture' if path.suffix == '.png' else 'table':16}{path}")


def _values(flag: str, text: str, choices: Sequence[str] = ()) -> list[str]:
    """Split a list of values that are separated by commas.

    Raises:
        ConfigError: a value is given twice or is not one of the choices.
    """
    words = text.split(",")
    wrong = [word for word in words if choices and word not in choices]
    if wrong:
        raise ConfigError(f"{flag} {text}: must contain only {', '.join(choices)}")
    if len(set(words)) < len(words):
        raise ConfigError(f"{flag} {text}: contains the same value twice")
    return words


def _num_gpus(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def _base(arguments: argparse.Namespace) -> dict[str, Any]:
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


def whole_number(flag: str, text: str, most: int = MOST) -> int:
    """Parse a whole number from 1 to ``most``.

    Raises:
        ConfigError: the text is not such a number.
    """
    number = parse_number(int, text)
    if number is None or not 1 <= number <= most:
        raise ConfigError(f"{flag} {text}: must be a whole number, at least 1 and at most {most}")
    return int(number)
