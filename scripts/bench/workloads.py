"""The workloads of the benchmark: data, model, clients and training of a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        settings: settings of ``sim run``.
        instant: whether clients return what they get without training, so that only the engine is measured.
        num_rounds: the rounds that are measured; None for those of the command line.
    """

    settings: dict[str, Any]
    instant: bool = False
    num_rounds: int | None = None


def gray_images() -> Any:
    """Return 60,000 random images of the shape of MNIST's, with labels of ten classes; the first 1,000 are the test."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60_000, 28, 28, 1), dtype=np.uint8)
    labels = rng.integers(0, 10, 60_000)
    return (images, labels), (images[:1000], labels[:1000])


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

_GRAY = {"dataset": "workloads:gray_images", "model": "Logistic", "partitioner": "iid", "local_epochs": 1, "lr": 0.03}

WORKLOADS = {
    "pfl-research, Net": Workload({**_PFL, "model": "Net"}),
    "pfl-research, SimpleCnn": Workload({**_PFL, "model": "SimpleCnn"}),
    "pfl-research, SimpleCnn, bf16": Workload({**_PFL, "model": "SimpleCnn", "precision": "bf16"}),
    "blazefl, Net": Workload(_BLAZEFL),
    "instant, 0.06 M": Workload({**_INSTANT, "model": "Net"}, instant=True),
    "instant, 1.6 M": Workload({**_INSTANT, "model": "SimpleCnn"}, instant=True),
    "instant, 11 M": Workload({**_INSTANT, "model": "ResNet18"}, instant=True),
    # 100 clients of 50 examples in each round
    "tiny, Logistic": Workload({**_GRAY, "num_clients": 1200, "clients_per_round": 100, "batch_size": 10}),
    # Logistic regression on MNIST with 1,000 clients, of which 10 train in each of 100 rounds: Garcia et al. 2022,
    # "FLUTE: A Scalable, Extensible Framework for High-Performance Federated Learning Simulations"
    "flute, Logistic": Workload(
        {**_GRAY, "num_clients": 1000, "clients_per_round": 10, "batch_size": 10}, num_rounds=100
    ),
}
