"""The command ``sim scale``: runs with different numbers of clients and actors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sim.commands.output import print_table
from sim.commands.sweep import settings_without_name
from sim.config.flags import check_new_run, whole_number
from sim.config.program import program_parts
from sim.config.run_config import RunConfig
from sim.config.settings_of_flower_programs import USED_BY
from sim.errors import ConfigError, RunError
from sim.run_folder.environment import available_cpus


def scale(arguments: argparse.Namespace) -> None:
    """``sim scale``: measure runs with different numbers of clients and actors."""
    from sim.scale.cells import BASE, SET_BY_THE_GRID, cells, config_of

    given = settings_without_name(arguments)
    check_new_run(given)
    results_dir = given.pop("results_dir", "results/scale")
    # A config file or a preset may contain settings that the grid sets; they are ignored.
    own_data = "program" in given and "dataset" in program_parts(given["program"], needs_model=False)
    used = next((names for program, names in USED_BY.items() if given.get(program)), BASE)
    assumed = {name: value for name, value in BASE.items() if name in used and not (name == "dataset" and own_data)}
    base = RunConfig.layered([assumed, {name: value for name, value in given.items() if name not in SET_BY_THE_GRID}])
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
    if (frame.status == "failed").all():  # too little memory or time is a result
        raise RunError(f"none of the {len(frame)} cells could be measured, first: {frame.error.iloc[0]}")


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
