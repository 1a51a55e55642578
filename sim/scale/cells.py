"""The grid of ``sim scale``: engine × number of clients × number of actors, and the config of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.config.run_config import RunConfig
from sim.errors import ConfigError

# All clients have the same number of examples, so that the work grows with the number of clients. Flags override this.
BASE: dict[str, Any] = {
    "dataset": "synthetic",
    "partitioner": "iid",
    "local_epochs": 1,
    "fraction_fit": 1.0,
    "num_rounds": 3,
}
SET_BY_THE_GRID = ("num_clients", "engine", "num_cpus", "num_gpus", "name", "checkpoint_every", "track")


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a number of clients on a number of actors of an engine."""

    engine: str
    num_clients: int
    num_actors: int

    @property
    def name(self) -> str:
        """The name for run folders, e.g. ``ray-500-clients-2-actors``."""
        return f"{self.engine}-{self.num_clients}-clients-{self.num_actors}-actors"


def cells(engines: Sequence[str], num_clients: Sequence[int], num_actors: Sequence[int], scaling: str) -> list[Cell]:
    """Return the cells of a grid, the smallest first.

    Args:
        engines: ``ray``, ``inline`` or both. The engine ``inline`` always has one actor.
        num_clients: numbers of clients.
        num_actors: numbers of actors.
        scaling: ``strong`` (each number of clients on each number of actors), ``weak`` (each number of clients per
            actor on each number of actors, so that twice the actors have twice the clients) or ``both``.
    """
    found = set()
    for engine in engines:
        for clients in num_clients:
            for actors in num_actors if engine != "inline" else (1,):
                if scaling in ("strong", "both"):
                    found.add(Cell(engine, clients, actors))
                if scaling in ("weak", "both"):
                    found.add(Cell(engine, clients * actors, actors))
    return sorted(found, key=lambda cell: (engines.index(cell.engine), cell.num_clients, cell.num_actors))


def config_of(
    cell: Cell,
    base: dict[str, Any],
    examples_per_client: int,
    num_cpus: int,
    num_gpus: int,
    results_dir: str,
    name: str,
) -> RunConfig:
    """Return the config of a cell. It has one round more than ``base`` asks for, because the first round warms up.

    Args:
        cell: the point of the grid.
        base: the settings that all cells share.
        examples_per_client: how many examples of the synthetic data set each client gets; ignored if ``base`` names
            another data set or sets ``num_examples``.
        num_cpus: the CPUs of this machine, which the actors share equally.
        num_gpus: the GPUs of this machine, which the actors share equally.
        results_dir: the folder for the run.
        name: the name of the run.

    Raises:
        ConfigError: the settings are not a valid config.
    """
    grid: dict[str, Any] = {
        "num_clients": cell.num_clients,
        "engine": cell.engine,
        "num_cpus": num_cpus / cell.num_actors if cell.engine == "ray" else 1.0,
        "num_gpus": num_gpus / cell.num_actors,
        "name": name,
        "results_dir": results_dir,
        "checkpoint_every": 0,
        "num_rounds": base["num_rounds"] + 1,
    }
    if base.get("dataset") == "synthetic" and "num_examples" not in base:
        grid["num_examples"] = cell.num_clients * examples_per_client
    try:
        return RunConfig(**{**base, **grid})
    except ConfigError as error:
        raise ConfigError(f"{cell.num_clients} clients on {cell.num_actors} actors: {error}") from None
