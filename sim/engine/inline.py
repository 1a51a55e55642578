"""The engine without Ray: every client in this process, one after another, with the user's own stack trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flwr.common import NDArrays

from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ChunkResult, TestSlice
from sim.training.local import TestSums


class InlineDispatcher:
    """Executes chunks at once, in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def wait_until_ready(self) -> None:
        """Virtual clients are always there."""

    def execute(self, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Yield the result of each chunk, in order."""
        return map(self.worker.run, chunks)

    def test(self, weights: NDArrays, slices: Sequence[TestSlice]) -> list[TestSums]:
        """Test ``weights`` on each slice, in order.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
        """
        return [self.worker.test(weights, part) for part in slices]
