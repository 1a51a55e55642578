"""The engine over a network: the clients are elsewhere, behind Flower's client proxies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from flwr.common import (
    Code,
    EvaluateIns,
    FitIns,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_proxy import ClientProxy

from sim.engine.aggregation import WeightedSum
from sim.engine.contract import Chunk, ChunkResult, ClientResult, Task, TestSlice
from sim.engine.worker import Worker, check_fit
from sim.training.local import TestSums

# Metrics of the transport alone: the client's seconds, and its loss, which EvaluateRes would round to 32 bits.
SECONDS, LOSS = "sim_seconds", "sim_loss"
# Fields of ClientSpec that the server decides → the keys of FitIns.config under which they travel.
SHARED = {"seed": "sim_seed", "augment": "sim_augment", "eval_share": "sim_eval_share", "batch_size": "sim_batch_size"}


class Connections(Protocol):
    """The clients that can be reached now."""

    def wait_for_enough(self) -> None:
        """Return when a round can begin.

        Raises:
            EngineError: too few clients came in time.
        """

    def proxy_of(self, client_id: int) -> ClientProxy | None:
        """The connection to a client; None if it is gone."""

    def unregister(self, client: ClientProxy) -> None:
        """Forget a connection that ended."""


class RemoteDispatcher:
    """Sends every client of a round its instructions at once and waits for the answers."""

    def __init__(
        self, connections: Connections, worker: Worker, shared: dict[str, Scalar], timeout_seconds: float
    ) -> None:
        """
        Args:
            worker: executes the central test, in this process.
            shared: settings that each client gets with its instructions; a simulation knows them without that.
            timeout_seconds: how long the server waits for the answer of one client.
        """
        self.connections = connections
        self.worker = worker
        self.shared = shared
        self.timeout_seconds = timeout_seconds

    def wait_until_ready(self) -> None:
        """Return when there are enough clients for a round to begin.

        Raises:
            EngineError: too few clients came in time.
        """
        self.connections.wait_for_enough()

    def test(self, weights: NDArrays, slices: Sequence[TestSlice]) -> list[TestSums]:
        """Test ``weights`` on each slice, in order.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
        """
        return [self.worker.test(weights, part) for part in slices]

    def execute(self, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Yield the result of each chunk, in order; a lost client has a result, too."""
        packed: dict[int, Parameters] = {}
        asked = []
        for chunk in chunks:
            key = id(chunk.weights)
            if key not in packed:
                packed[key] = ndarrays_to_parameters(chunk.weights)
            asked.append([_in_a_thread(self._call, chunk, task, packed[key]) for task in chunk.tasks])
        for chunk, futures in zip(chunks, asked, strict=True):
            total, results = WeightedSum(exact=chunk.untrained), []
            for future in futures:
                result = future.result()
                if result.weights is not None and chunk.summed:
                    total.add(result.weights, result.num_examples)
                    result.weights = None
                results.append(result)
            yield ChunkResult(results, total)

    def _call(self, chunk: Chunk, task: Task, parameters: Parameters) -> ClientResult:
        start = time.perf_counter()
        proxy = self.connections.proxy_of(task.client_id)
        if proxy is None:
            return ClientResult(task.client_id, error="the connection was lost", lost=True)
        config = {**task.config, **self.shared, "server_round": chunk.server_round}
        call: Callable[..., Any] = proxy.fit if chunk.phase == "fit" else proxy.evaluate
        instructions = FitIns if chunk.phase == "fit" else EvaluateIns
        try:
            answer = call(instructions(parameters, config), timeout=self.timeout_seconds, group_id=chunk.server_round)
        except Exception as error:  # noqa: BLE001 - each runtime of Flower has errors of its own
            self.connections.unregister(proxy)
            waited = time.perf_counter() - start
            late = waited >= self.timeout_seconds
            reason = f"no answer within {self.timeout_seconds:g} s" if late else "the connection was lost"
            detail = f": {error}" if str(error) else ""
            return ClientResult(task.client_id, waited, error=reason + detail, lost=True)
        try:
            result = _read(chunk, task, answer)
        except Exception as error:  # noqa: BLE001 - whatever came over the wire
            result = ClientResult(task.client_id, error=f"{type(error).__name__}: {error}")
        result.seconds = time.perf_counter() - start
        seconds, loss = result.metrics.pop(SECONDS, None), result.metrics.pop(LOSS, None)
        if isinstance(seconds, float) and (loss is None or isinstance(loss, float)):
            result.seconds, result.loss = seconds, loss
        return result


def _in_a_thread(function: Callable[..., ClientResult], *arguments: Any) -> Future[ClientResult]:
    """Call in a daemon thread: unlike with an executor, a run that stops does not wait for its slowest client."""
    future: Future[ClientResult] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised where the result is read
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def _read(chunk: Chunk, task: Task, answer: Any) -> ClientResult:
    if answer.status.code != Code.OK:
        return ClientResult(task.client_id, error=answer.status.message or answer.status.code.name)
    result = ClientResult(task.client_id, num_examples=answer.num_examples, metrics=answer.metrics)
    if chunk.phase == "evaluate":
        result.loss = answer.loss
        return result
    result.weights = parameters_to_ndarrays(answer.parameters)
    result.loss = check_fit(result, chunk.weights)
    return result
