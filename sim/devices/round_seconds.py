"""How long a round is expected to take, without a draw: the order statistics of clients that are sampled at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expected_rank(seconds: NDArray[np.float64], num_sampled: int, rank: int) -> float:
    """Return the mean of the rank-th smallest number of a sample without replacement.

    The rank-th of k out of N sorted numbers is the i-th of all with the probability
    C(i − 1, rank − 1) · C(N − i, k − rank) / C(N, k).

    Args:
        seconds: of all clients, float64 [N].
        num_sampled: k, from 1 to N.
        rank: from 1 (the fastest) to k (the slowest).
    """
    num = len(seconds)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])

    def log_choose(n: NDArray[np.int64], k: int) -> NDArray[np.float64]:
        left = np.maximum(n - k, 0)
        return np.where(n >= k, log_factorial[n] - log_factorial[k] - log_factorial[left], -np.inf)

    places = np.arange(1, num + 1)
    weights = np.exp(
        log_choose(places - 1, rank - 1)
        + log_choose(num - places, num_sampled - rank)
        - log_choose(np.array([num]), num_sampled)
    )
    possible = weights > 0  # an infinite time that cannot have this rank counts for nothing
    return float((np.sort(seconds)[possible] * weights[possible]).sum() / weights.sum())


def expected_median(seconds: NDArray[np.float64], num_sampled: int) -> float:
    """Return the mean of the median of a sample without replacement."""
    low, high = (num_sampled + 1) // 2, num_sampled // 2 + 1
    return (expected_rank(seconds, num_sampled, low) + expected_rank(seconds, num_sampled, high)) / 2
