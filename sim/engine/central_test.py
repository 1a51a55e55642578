"""The central test as strategies call it; the engine, once it is open, spreads its parts over its processes."""

from __future__ import annotations

from flwr.common import NDArrays, Scalar

from sim.client.runtime import ClientSpec, workbench
from sim.engine.contract import Dispatcher, TestSlice
from sim.errors import RunError


class CentralTest:
    """(round, weights, {}) → (loss, {"accuracy": …}), the ``evaluate_fn`` of Flower's strategies.

    The split is cut into the same parts in every engine and they are added up in order, so that the number of
    processes does not change a bit.
    """

    dispatcher: Dispatcher | None = None

    def __init__(self, program: ClientSpec) -> None:
        self.program = program

    def __call__(
        self, server_round: int, weights: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        """Test ``weights``.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
        """
        if self.dispatcher is None:
            raise RunError("the central test was called before the engine was open")
        slices = [TestSlice(server_round, first, last) for first, last in workbench(self.program).test_slices()]
        parts = self.dispatcher.test(weights, slices)
        num_examples = sum(part.num_examples for part in parts)
        loss = sum(part.loss for part in parts) / num_examples
        return loss, {"accuracy": sum(part.num_correct for part in parts) / num_examples}
