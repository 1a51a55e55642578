"""Synthetic(α, β) of Li et al. (2020): clients whose models and whose inputs differ to a chosen degree.

Source: T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.config.fields import setting
from sim.config.training_config import DATA
from sim.data.columns import Columns, LoadedColumns

NUM_FEATURES, NUM_CLASSES = 60, 10
_TEST_SHARE = 0.1
_SMALLEST, _LOG_MEAN, _LOG_DEVIATION = 50, 4.0, 2.0


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``--dataset fedprox-synthetic``."""

    alpha: float = setting(1.0, "how much the clients' models differ", DATA, low=0, high=1e6)
    beta: float = setting(1.0, "how much the clients' inputs differ", DATA, low=0, high=1e6)
    iid: bool = setting(False, "all clients have one model and one distribution of inputs", DATA)
    num_clients: int = setting(30, "number of natural clients", DATA, low=1, high=100_000)
    data_seed: int = setting(0, "seed of the data, which do not depend on the run's seed", DATA, low=0)


def fedprox_synthetic(arguments: Arguments) -> LoadedColumns:
    """Draw Synthetic(α, β): 60 features float32, 10 classes int64, one natural client for each drawn model.

    Client k labels an input x with argmax(W_k x + b_k), where the entries of W_k and b_k are N(u_k, 1), u_k is
    N(0, α), x is N(v_k, Σ) with Σ_jj = j^−1.2, the entries of v_k are N(B_k, 1), and B_k is N(0, β). As in the authors'
    program, α and β are standard deviations, a client has 50 + ⌊s⌋ examples with ln s in N(4, 2), and 90 % of them
    are for training. With ``iid``, one W and one b with entries of N(0, 1) belong to all clients, and v_k = 0.
    """
    rng = np.random.default_rng(arguments.data_seed)
    count = arguments.num_clients
    sizes = _SMALLEST + rng.lognormal(_LOG_MEAN, _LOG_DEVIATION, count).astype(np.int64)
    model_means, input_means = rng.normal(0, arguments.alpha, count), rng.normal(0, arguments.beta, count)
    deviations = np.arange(1, NUM_FEATURES + 1) ** -0.6
    weights, biases = rng.normal(size=(NUM_FEATURES, NUM_CLASSES)), rng.normal(size=NUM_CLASSES)
    parts: dict[str, list[list[np.ndarray]]] = {"train": [], "test": []}
    for client_id, size in enumerate(sizes):
        center = np.zeros(NUM_FEATURES)
        if not arguments.iid:
            weights = rng.normal(model_means[client_id], 1, (NUM_FEATURES, NUM_CLASSES))
            biases = rng.normal(model_means[client_id], 1, NUM_CLASSES)
            center = rng.normal(input_means[client_id], 1, NUM_FEATURES)
        inputs = center + deviations * rng.normal(size=(size, NUM_FEATURES))
        labels = (inputs @ weights + biases).argmax(axis=1)
        num_train = int(size * (1 - _TEST_SHARE))
        for split, chosen in (("train", slice(num_train)), ("test", slice(num_train, None))):
            ids = np.full(len(labels[chosen]), client_id)
            parts[split].append([inputs[chosen].astype(np.float32), labels[chosen], ids])
    train, test = ([np.concatenate(column) for column in zip(*parts[split], strict=True)] for split in parts)
    return LoadedColumns(
        Columns(train[:2], {"client": train[2]}),
        Columns(test[:2], {"client": test[2]}),
        tuple(str(number) for number in range(NUM_CLASSES)),
        clients="client",
    )
