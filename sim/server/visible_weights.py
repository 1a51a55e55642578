"""Which of a model's arrays a strategy sees, and how what it makes of them becomes the model again.

Only trained parameters may be stepped. What else a ``state_dict`` holds (running statistics, counters, masks, frozen
parameters) is the clients' mean, whatever the strategy does, and names of tied parameters are one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.common import NDArrays

from sim.engine.aggregation import WeightedSum
from sim.engine.contract import ClientResult
from sim.training.weights import WeightLayout


@dataclass(frozen=True)
class VisibleWeights:
    """The choice for one strategy.

    Attributes:
        visible: positions in the ``state_dict`` of the arrays that the strategy gets and returns.
        averaged: positions of arrays that are the clients' mean instead of what the strategy returned.
        tied: position of an array → position of the array of which it is another name.
    """

    visible: Sequence[int]
    averaged: Sequence[int]
    tied: dict[int, int]

    @classmethod
    def all_of(cls, layout: WeightLayout, *, own_buffers: bool = False) -> VisibleWeights:
        """Show every array, as a user's own strategy expects it.

        Args:
            own_buffers: what the strategy makes of arrays that are not trained counts.
        """
        positions = range(len(layout.names))
        averaged = [] if own_buffers else [i for i in positions if i not in layout.trained and i not in layout.tied]
        return cls(positions, averaged, layout.tied)

    @classmethod
    def some_of(cls, layout: WeightLayout, visible: Sequence[int], *, averages_others: bool = True) -> VisibleWeights:
        """Show the arrays at ``visible``; the others are averaged, or stay as they are."""
        others = [i for i in range(len(layout.names)) if i not in visible and i not in layout.tied]
        return cls(visible, others if averages_others else [], layout.tied)

    def of(self, weights: NDArrays) -> NDArrays:
        """Return the arrays that the strategy sees."""
        return [weights[position] for position in self.visible]

    def whole(self, visible: NDArrays, others: NDArrays) -> NDArrays:
        """Return all arrays of the model: ``visible`` from the strategy, the rest of ``others``."""
        weights = list(others)
        for position, array in zip(self.visible, visible, strict=True):
            weights[position] = array
        return self._with_tied(weights)

    def with_mean(self, weights: NDArrays, clients: Sequence[ClientResult], total: WeightedSum) -> NDArrays:
        """Return ``weights`` with the clients' mean of each array that is not the strategy's.

        Args:
            total: the weighted sum of the clients; where it is empty, each of them has its weights.
        """
        if not self.averaged:
            return weights
        if total.num_examples:
            all_means = total.mean()
            means = [all_means[position] for position in self.averaged]
        else:
            part = WeightedSum()
            for client in clients:
                part.add([(client.weights or [])[position] for position in self.averaged], client.num_examples)
            means = part.mean()
        weights = list(weights)
        for position, mean in zip(self.averaged, means, strict=True):
            weights[position] = mean.astype(weights[position].dtype, copy=False)
        return self._with_tied(weights)

    def _with_tied(self, weights: NDArrays) -> NDArrays:
        for position, first in self.tied.items():
            weights[position] = weights[first]
        return weights
