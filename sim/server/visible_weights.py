"""Which of a model's arrays a strategy sees, and how what it makes of them becomes the model again.

Only trained parameters may be stepped. What else a ``state_dict`` holds (running statistics, counters, masks, frozen
parameters) is the clients' mean, whatever the strategy does, and names of tied parameters are one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.common import NDArrays

from sim.engine.aggregation import WeightedSum, fitted, in_float_dtypes_of
from sim.engine.interface import ClientResult
from sim.training.weights import WeightLayout


@dataclass(frozen=True)
class VisibleWeights:
    """The choice for one strategy.

    Attributes:
        visible: positions in the ``state_dict`` of the arrays that the strategy gets and returns.
        averaged: positions of arrays that are the clients' mean instead of what the strategy returned.
        untrained: positions of all arrays that are not trained.
        tied: position of an array → position of the array of which it is another name.
    """

    visible: Sequence[int]
    averaged: Sequence[int]
    untrained: frozenset[int]
    tied: dict[int, int]

    def mean(self, total: WeightedSum) -> NDArrays:
        """Return the clients' mean; of integers, such as the counters of BatchNorm, the nearest ones."""
        return total.mean()

    @classmethod
    def all_of(cls, layout: WeightLayout, *, own_buffers: bool = False) -> VisibleWeights:
        """Show every array, as a user's own strategy expects it.

        Args:
            own_buffers: what the strategy makes of arrays that are not trained counts.
        """
        averaged = () if own_buffers else sorted(layout.untrained)
        return cls(range(len(layout.names)), averaged, layout.untrained, layout.tied)

    @classmethod
    def some_of(cls, layout: WeightLayout, visible: Sequence[int], *, averages_others: bool = True) -> VisibleWeights:
        """Show the arrays at ``visible``; the others are averaged, or stay as they are."""
        others = sorted(layout.untrained.difference(visible)) if averages_others else ()
        return cls(visible, others, layout.untrained, layout.tied)

    def of(self, weights: NDArrays) -> NDArrays:
        """Return the arrays that the strategy sees; booleans as integers, because numpy subtracts no booleans."""
        chosen = [weights[position] for position in self.visible]
        return [array.astype(np.int64) if array.dtype == np.bool_ else array for array in chosen]

    def whole(self, visible: NDArrays, others: NDArrays, server_round: int) -> NDArrays:
        """Return all arrays of the model, in its dtypes: ``visible`` from the strategy, the rest of ``others``.

        Raises:
            RunError: ``visible`` has other shapes.
        """
        like = [others[position] for position in self.visible]
        weights = list(others)
        for position, array in zip(self.visible, fitted(visible, like, server_round), strict=True):
            weights[position] = array
        return self._with_tied(weights)

    def with_untrained(
        self, weights: NDArrays, before: NDArrays, clients: Sequence[ClientResult], total: WeightedSum
    ) -> NDArrays:
        """Return ``weights`` with the arrays that are not trained: the clients' mean, or as they were.

        Args:
            before: the weights of the round before.
            total: the weighted sum of the clients; where it is empty, each of them has its weights.
        """
        weights = list(weights)
        if total.num_examples:
            means = total.mean() if self.averaged else []
            for position in self.averaged:
                weights[position] = means[position]
        elif self.untrained:
            means = self._means_of(clients)
            for position, mean in zip(self.averaged, means, strict=True):
                weights[position] = mean
            for position in self.untrained:
                # A mean of equal numbers that the strategy computes may differ from them in its last bit.
                if all(np.array_equal((c.weights or [])[position], before[position], equal_nan=True) for c in clients):
                    weights[position] = before[position]
        return self._with_tied(weights)

    def _means_of(self, clients: Sequence[ClientResult]) -> NDArrays:
        part = WeightedSum(exact=frozenset(range(len(self.averaged))))
        for client in clients:
            part.add([(client.weights or [])[position] for position in self.averaged], client.num_examples)
        return part.mean()

    def _with_tied(self, weights: NDArrays) -> NDArrays:
        for position, first in self.tied.items():
            weights[position] = weights[first]
        return weights


class UnknownWeights(VisibleWeights):
    """Arrays of Flower clients that have a model of their own: the strategy gets what clients send, and that is all."""

    def __init__(self) -> None:
        super().__init__(visible=(), averaged=(), untrained=frozenset(), tied={})

    def of(self, weights: NDArrays) -> NDArrays:
        """Return all arrays."""
        return weights

    def mean(self, total: WeightedSum) -> NDArrays:
        """Return the clients' mean, as Flower computes it."""
        return total.mean(whole_numbers=False)

    def whole(self, visible: NDArrays, others: NDArrays, server_round: int) -> NDArrays:
        """Return ``visible``: floats in the dtypes of ``others`` where these have the same shapes."""
        if [array.shape for array in visible] == [array.shape for array in others]:
            return in_float_dtypes_of(others, visible)
        return list(visible)

    def with_untrained(
        self, weights: NDArrays, before: NDArrays, clients: Sequence[ClientResult], total: WeightedSum
    ) -> NDArrays:
        """Return ``weights``."""
        return weights
