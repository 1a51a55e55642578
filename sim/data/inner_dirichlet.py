"""flwr-datasets' InnerDirichletPartitioner, draw for draw, in time linear in the examples.

The library sums over all clients and copies their list for every example: 45 s for 10,000 clients and 50,000
examples on two cores of an AMD EPYC, where this takes 0.3 s. A test holds the two against each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def deal(labels: Indices, partition_sizes: list[int], alpha: float, seed: int, shuffle: bool = True) -> list[Indices]:
    """Return which examples each client gets.

    Each example in turn goes to a client drawn from those that are not full; its class is drawn from that client's
    own Dirichlet distribution over the classes that are not used up (Acar et al. 2021, arXiv:2111.04263).

    Args:
        labels: int64 [N], the class of each example, 0 … K−1.
        partition_sizes: how many examples each client gets; their sum is at most N.
        alpha: concentration of the Dirichlet distribution.

    Raises:
        ValueError: a client wants classes of which none is left.
    """
    rng = np.random.default_rng(seed)
    num_classes = len(np.unique(labels))
    priors = rng.dirichlet(np.full(num_classes, float(alpha)), size=len(partition_sizes))
    of_class = [np.flatnonzero(labels == label) for label in range(num_classes)]
    left_of_class = [len(indices) for indices in of_class]
    left_at_client = list(partition_sizes)
    parts = [np.zeros(size, np.int64) for size in partition_sizes]
    not_full = list(range(len(partition_sizes)))
    remaining = sum(partition_sizes)
    while remaining:
        position = int(rng.integers(0, len(not_full)))
        client_id = not_full[position]
        if left_at_client[client_id] == 0:
            del not_full[position]
            continue
        left_at_client[client_id] -= 1
        while True:
            cumulative = priors[client_id].cumsum()
            if not cumulative[-1] > 0:
                raise ValueError(f"client {client_id} wants classes of which no example is left")
            cumulative /= cumulative[-1]
            label = int(cumulative.searchsorted(rng.random(), side="right"))
            if left_of_class[label]:
                break
            priors[:, label] = 0
            with np.errstate(invalid="ignore"):
                priors /= priors.sum(axis=1, keepdims=True)
        left_of_class[label] -= 1
        parts[client_id][left_at_client[client_id]] = of_class[label][left_of_class[label]]
        remaining -= 1
    if shuffle:
        for part in parts:
            rng.shuffle(part)
    return parts
