"""The central test as strategies call it: the engine's processes share its slices."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.common import NDArrays, Scalar

from sim.engine.interface import Dispatcher, TestSlice
from sim.training.local import means


class CentralTest:
    """(round, weights, {}) → (loss, {"accuracy": …}), the ``evaluate_fn`` of Flower's strategies.

    The split is cut into the same slices in every engine, and they are added up in order. The number of processes
    therefore does not change a bit of the result.
    """

    def __init__(self, dispatcher: Dispatcher, slices: Sequence[tuple[int, int]], *, validates: bool = False) -> None:
        """
        Args:
            slices: (first, last + 1) of each slice, see ``sim.client.runtime.test_slices``.
            validates: on the examples that are held out for validation, instead of the test split.
        """
        self._dispatcher = dispatcher
        self._slices, self._validates = slices, validates

    def __call__(
        self, server_round: int, weights: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        """Test ``weights``.

        Returns:
            The mean loss per example (NaN where the test gives none), and the metrics; accuracy is a fraction 0–1.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
        """
        slices = [TestSlice(server_round, first, last, self._validates) for first, last in self._slices]
        sums = self._dispatcher.test(weights, slices)
        loss, metrics = means(sums)
        return loss, dict(metrics)
