"""The process that executes chunks, as Ray starts it. It imports no more than that takes, and only in that process."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from sim.processes import uncollected

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.common import NDArrays

    from sim.client.runtime import ClientSpec
    from sim.engine.contract import Chunk, ChunkResult, TestSlice
    from sim.engine.ray.shipping import Parcel
    from sim.training.local import TestSums


@ray.remote
class ChunkActor:
    """A process that executes chunks; model, data and buffers stay in it from round to round.

    It can start before anybody knows what it will execute: ``begin`` says that.
    """

    def __init__(self) -> None:
        with uncollected():
            import sim.engine.worker  # noqa: F401 - takes its time, in which the driver prepares the run
        self.weights: NDArrays = []

    def begin(
        self, program: ClientSpec, num_clients: int, seed: int, log: Path, board: Path, client_timeout: float | None
    ) -> None:
        """Take the clients of a run."""
        from sim.engine.liveness import Liveness
        from sim.engine.worker import Worker

        # Whatever a client prints belongs to the run, not to Ray's session folder.
        with suppress(OSError):  # on another machine, the run's folder is not there
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
        self.worker = Worker(program, num_clients, seed, own_process=True)
        if board.is_file():
            self.worker.board = Liveness(board)
        else:  # on another machine, where the driver cannot see what goes on
            self.worker.client_timeout = client_timeout

    def set_up(self) -> None:
        """Load model and data: that is no client's time."""
        from sim.client.runtime import workbench

        with suppress(Exception):  # raised again, and told, by the first client
            workbench(self.worker.program)

    def receive(self, parcel: Parcel, from_node: str) -> None:
        """Take the data of the run, if this is another node than the one that sends them."""
        from sim.engine.ray.shipping import unpack

        if ray.get_runtime_context().get_node_id() != from_node:
            self.worker.program = unpack(self.worker.program, parcel)

    def run_chunks(self, chunks: list[Chunk], weights: NDArrays | None, actor: int) -> list[ChunkResult]:
        """Execute chunks that travelled without their weights.

        Args:
            weights: of all of them, read-only; None for those that the last call had.
        """
        self.worker.actor = actor
        if weights is not None:
            self.weights = weights
        results = [self.worker.run(replace(chunk, weights=self.weights)) for chunk in chunks]
        for result in results:
            for outcome in result.outcomes:
                outcome.cause = None  # an exception object of the user's may not travel
        return results

    def run_tests(self, parts: list[TestSlice], weights: NDArrays) -> list[TestSums] | str:
        """Execute parts of the central test; return what is wrong with the user's ``test``, if it is."""
        from sim.errors import RunError

        try:
            return [self.worker.test(weights, part) for part in parts]
        except RunError as error:
            return str(error)


def start_actor(**options: Any) -> Any:
    """Start an actor; the options are Ray's, e.g. ``num_cpus``."""
    actor_class: Any = ChunkActor
    return actor_class.options(**options).remote()
