"""The grid of ``sim scale``: engine × clients × actors, and the config of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.config.run_config import RunConfig
from sim.errors import ConfigError

# Clients of the same size, so that more of them are more work; whoever wants something else says so.
BASE: dict[str, Any] = {
    "dataset": "synthetic",
    "partitioner": "iid",
    "local_epochs": 1,
    "fraction_fit": 1.0,
    "num_rounds": 3,
}
SET_BY_THE_GRID = ("num_clients", "engine", "num_cpus", "num_gpus", "name", "checkpoint_every")


@dataclass(frozen=True)
class Cell:
    """So many clients on so many processes of an engine."""

    engine: str
    num_clients: int
    num_actors: int

    @property
    def name(self) -> str:
        """For folders: ``ray-500-clients-2-actors``."""
        return f"{self.engine}-{self.num_clients}-clients-{self.num_actors}-actors"


def cells(engines: Sequence[str], num_clients: Sequence[int], num_actors: Sequence[int], scaling: str) -> list[Cell]:
    """Return the cells of a grid, the smallest first.

    Args:
        scaling: ``strong`` (each number of clients on each number of actors), ``weak`` (as many clients an actor,
            so that twice the actors have twice the clients) or ``both``. The engine inline is one process, always.
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
    cell: Cell, base: dict[str, Any], examples_a_client: int, num_cpus: int, num_gpus: int, results_dir: str, name: str
) -> RunConfig:
    """Return the config of a cell: one more round than asked for, the first of which only warms up.

    Args:
        base: the settings of every cell.
        examples_a_client: of the synthetic data set, unless ``base`` says how large it is.
        num_cpus: of this machine, shared by the actors; so are its ``num_gpus``.

    Raises:
        ConfigError: it cannot work.
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
    if base["dataset"] == "synthetic" and "num_examples" not in base:
        grid["num_examples"] = cell.num_clients * examples_a_client
    try:
        return RunConfig(**{**base, **grid})
    except ConfigError as error:
        raise ConfigError(f"{cell.num_clients} clients on {cell.num_actors} actors: {error}") from None
