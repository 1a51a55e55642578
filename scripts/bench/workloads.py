"""The workloads of the benchmark: data, model, clients and training of a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        settings: settings of ``sim run``.
        instant: whether clients return what they get without training, so that only the engine is measured.
    """

    settings: dict[str, Any]
    instant: bool = False


_PFL = {
    "dataset": "synthetic",
    "num_examples": 50_000,
    "num_clients": 1000,
    "clients_per_round": 50,
    "partitioner": "iid",
    "local_epochs": 1,
    "batch_size": 10,
    "lr": 0.1,
}
_BLAZEFL = {
    "dataset": "synthetic",
    "num_examples": 50_000,
    "num_clients": 100,
    "clients_per_round": 100,
    "partitioner": "shard",
    "partitioner_args": {"num_shards_per_partition": 2},
    "local_epochs": 5,
    "batch_size": 50,
    "lr": 0.1,
    "model": "Net",
}

# No client trains, so fewer examples are enough.
_INSTANT = {**_PFL, "num_examples": 5000}

WORKLOADS = {
    "pfl-research, Net": Workload({**_PFL, "model": "Net"}),
    "pfl-research, SimpleCnn": Workload({**_PFL, "model": "SimpleCnn"}),
    "pfl-research, SimpleCnn, bf16": Workload({**_PFL, "model": "SimpleCnn", "precision": "bf16"}),
    "blazefl, Net": Workload(_BLAZEFL),
    "instant, 0.06 M": Workload({**_INSTANT, "model": "Net"}, instant=True),
    "instant, 1.6 M": Workload({**_INSTANT, "model": "SimpleCnn"}, instant=True),
    "instant, 11 M": Workload({**_INSTANT, "model": "ResNet18"}, instant=True),
}
