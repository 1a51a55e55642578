"""The process that executes chunks, as Ray starts it. It imports only what that takes, and only in that process."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sim.engine.ray import output
from sim.processes import uncollected

if TYPE_CHECKING:
    from flwr.common import NDArrays

    from sim.client.flower_program import FlowerSpec
    from sim.engine.client_execution import Worker
    from sim.engine.interface import Chunk, ChunkResult, TestSlice
    from sim.engine.ray.driver_state import DriverState
    from sim.engine.ray.shipping import CachedFiles
    from sim.training.local import TestSums


INLINE_BYTES = 4 * 2**20  # the most that travels in a message itself; more goes through Ray's shared memory


@dataclass(frozen=True)
class ActorAssignment:
    """The run whose clients an actor executes.

    Attributes:
        spec: pickled, because the arrays in what Ray itself has pickled would be read-only.
        log_path: where the output of the process goes.
        liveness_path: see ``sim.engine.liveness``; on another machine there is no such file.
        from_node: the node of a cluster where the driver is, which has the data.
        session: name of a Ray that serves this run alone; empty on a cluster.
    """

    spec: bytes
    num_clients: int
    log_path: Path
    liveness_path: Path
    client_timeout: float | None
    from_node: str
    session: str


@ray.remote
class ChunkActor:
    """A process that executes chunks; model, data and buffers stay in it from round to round.

    It can start before anybody knows what it will execute: ``begin`` says that.
    """

    worker: Worker

    def __init__(self, command_line: list[str]) -> None:
        """
        Args:
            command_line: that of the driver, which modules of the user's may read when they are imported.
        """
        sys.argv = command_line
        with uncollected():
            import sim.engine.client_execution  # noqa: F401 - takes seconds, during which the driver prepares the run
        gc.freeze()  # what was imported is never garbage, and user code may collect garbage for each client
        self.weights: NDArrays = []
        self.problems: list[str] = []  # what the script has set and this process could not take over

    def resemble(self, driver: DriverState) -> None:
        """Take over what the driver's process has; a call of its own before ``begin``, whose arguments need modules."""
        self.problems = driver.use()

    def begin(self, assignment: ActorAssignment, cached_files: CachedFiles | None, actor: int) -> None:
        """Take the clients of a run.

        Args:
            cached_files: data set and partition, for the nodes of a cluster where the driver is not.
            actor: the number of this actor in the run.
        """
        from sim.client.runtime import ClientSpec
        from sim.engine.client_execution import Worker
        from sim.engine.liveness import Liveness
        from sim.engine.ray.shipping import unpack
        from sim.reaper import SESSION_VARIABLE

        if assignment.session:
            os.environ[SESSION_VARIABLE] = assignment.session  # what clients start inherits it
        # What a client prints belongs to the run, not to Ray's session folder.
        with suppress(OSError):  # on another machine, the run's folder is not there
            output.redirect(assignment.log_path, assignment.liveness_path, actor)
        for problem in self.problems:
            logging.getLogger("sim").warning("note: this process has not what the script has set: %s", problem)
        spec: ClientSpec | FlowerSpec = ray.cloudpickle.loads(assignment.spec)
        self.other_clock = ray.get_runtime_context().get_node_id() != assignment.from_node
        if cached_files is not None and self.other_clock:
            spec = unpack(spec, cached_files)
        if assignment.session and isinstance(spec, ClientSpec) and spec.own_folder is not None:
            # That of the session, which is removed after it, also if this process is killed.
            own_folder = replace(spec.own_folder, temporary=assignment.liveness_path.parent)
            spec = replace(spec, own_folder=own_folder)
        self.worker = Worker(spec, assignment.num_clients, spec.seed, own_process=True, actor=actor)
        if assignment.liveness_path.is_file():
            self.worker.liveness = Liveness(assignment.liveness_path)
            self.worker.liveness.end(actor)  # from now on the driver knows this process
        else:  # on another machine, where the driver cannot see what this process executes
            self.worker.client_timeout = assignment.client_timeout

    def set_up(self) -> None:
        """Load model and data, which is not part of any client's time."""
        with suppress(Exception):  # the first client raises it again, and it is reported there
            _ = self.worker.runtime

    def run_chunks(self, chunks: list[Chunk], weights: NDArrays | None, actor: int) -> list[ChunkResult]:
        """Execute chunks.

        Args:
            chunks: with their weights, or without if all have the same.
            weights: of all of them, read-only; None for those that the last such call had.
        """
        self.worker.actor = actor
        if weights is not None:
            self.weights = weights
        with _noted() as notes:
            chunk_results = [
                self.worker.run(chunk if chunk.weights else replace(chunk, weights=self.weights)) for chunk in chunks
            ]
        chunk_results[-1].notes = notes
        for chunk_result in chunk_results:
            if self.other_clock:
                chunk_result.spans = [(number, math.nan, math.nan) for number, _, _ in chunk_result.spans]
            for result in chunk_result.results:
                result.cause = None  # an exception object of the user's code may not be serializable
        return chunk_results

    def run_tests(self, parts: list[TestSlice], weights: NDArrays) -> list[TestSums] | str:
        """Execute parts of the central test; return what is wrong with the user's ``test``, if something is."""
        from sim.errors import RunError

        try:
            return [self.worker.test(weights, part) for part in parts]
        except RunError as error:
            return str(error)


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect what is logged as sim, for the driver, which shows it to the user."""

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    notes: list[str] = []
    logger, handler = logging.getLogger("sim"), Collecting(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)


def start_actor(**resources: float) -> Any:
    """Start an actor; the resources are Ray's, ``num_cpus`` and ``num_gpus``."""
    actor_class: Any = ChunkActor
    return actor_class.options(**resources).remote(sys.argv)
