"""The engine over a network: the clients are elsewhere, behind Flower's client proxies."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from flwr.common import (
    Code,
    EvaluateIns,
    FitIns,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
)
from flwr.server.client_proxy import ClientProxy

from sim.data.load_dataset import Dataset
from sim.engine.aggregation import WeightedSum, in_dtypes_of
from sim.engine.client_calls import WrongReturnError, check_fit, checked_metrics
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ChunkResult, ClientResult, Task, TestSlice
from sim.errors import described, one_line
from sim.training.local import TestSums

# Metrics of the transport alone: the client's seconds, and its loss, which EvaluateRes would round to 32 bits.
SECONDS, LOSS = "sim_seconds", "sim_loss"
# Fields of ClientSpec that the server decides → the keys of FitIns.config under which they travel.
SHARED = {
    "seed": "sim_seed",
    "augment": "sim_augment",
    "noise_step": "sim_noise_step",
    "eval_share": "sim_eval_share",
    "batch_size": "sim_batch_size",
}
ALGORITHM = "sim_algorithm"  # another key, for what clients do beside training
DECIDED = "sim_decided"  # settings that the server decides, as JSON


class Connections(Protocol):
    """The clients that can be reached now."""

    def wait_for_enough(self) -> None:
        """Return when a round can begin.

        Raises:
            EngineError: too few clients came in time.
        """

    def proxy_of(self, client_id: int) -> ClientProxy | None:
        """The connection to a client; None if it is gone."""

    def num_examples_of(self, client_id: int) -> int:
        """The number of training examples that a client said it has when it joined; 0 if it is gone."""

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

    @property
    def _dataset(self) -> Dataset:
        runtime: Any = self.worker.runtime  # only PyTorch programs are served over a network
        found: Dataset = runtime.dataset
        return found

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
        asked = []
        packed: tuple[NDArrays, Parameters] | None = None  # consecutive chunks with the same weights share one copy
        for chunk in chunks:
            if packed is None or packed[0] is not chunk.weights:
                packed = chunk.weights, ndarrays_to_parameters(chunk.weights)
            asked.append([_in_a_thread(self._call, chunk, task, packed[1]) for task in chunk.tasks])
        for chunk, futures in zip(chunks, asked, strict=True):
            total, results = WeightedSum(exact=chunk.untrained, num_extras=chunk.num_extras), []
            for future in futures:
                result = future.result()
                if result.weights is not None and chunk.summed:
                    count = 1 if chunk.uniform else result.num_examples
                    total.add(in_dtypes_of(chunk.weights, result.weights), count)
                    result.weights = None
                results.append(result)
            yield ChunkResult(results, total)

    def _call(self, chunk: Chunk, task: Task, parameters: Parameters) -> ClientResult:
        start = time.perf_counter()
        proxy = self.connections.proxy_of(task.client_id)
        own_examples = self.connections.num_examples_of(task.client_id)
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
            return ClientResult(task.client_id, waited, error=one_line(reason + detail), lost=True)
        waited = time.perf_counter() - start
        most = own_examples
        if chunk.phase == "evaluate":  # a client of the user's own may evaluate on the test split
            most = max(most, self._dataset.num_test_examples)
        try:
            result = _read(chunk, task, answer, most)
            _take_transport_metrics(result, waited)
        except Exception as error:  # noqa: BLE001 - whatever came over the wire
            return ClientResult(task.client_id, waited, error=described(error))
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


def _read(chunk: Chunk, task: Task, answer: Any, most_examples: int) -> ClientResult:
    """Return what a client answered.

    Args:
        most_examples: the largest number of examples that the client can have used.

    Raises:
        WrongReturnError: a number or an array cannot be what the client was asked for; the message names it.
    """
    if answer.status.code != Code.OK:
        return ClientResult(task.client_id, error=one_line(answer.status.message or answer.status.code.name))
    result = ClientResult(
        task.client_id, num_examples=answer.num_examples, metrics=checked_metrics(answer.metrics, chunk.phase)
    )
    if not 0 <= result.num_examples <= most_examples:
        raise WrongReturnError(
            f"{chunk.phase} returned num_examples {result.num_examples}; it must be from 0 to {most_examples}, the "
            "number of examples that the client has"
        )
    if chunk.phase == "evaluate":
        result.loss = answer.loss
    else:
        result.weights = _arrays(answer.parameters, chunk.weights)
        result.loss = check_fit(result, chunk.weights)
    return result


def _arrays(parameters: Parameters, sent: NDArrays) -> NDArrays:
    """Read arrays of the shapes that were sent; a header with another shape or type is not believed.

    Memory is allocated by what a header says, so it is compared before its array is read.
    """
    if len(parameters.tensors) != len(sent):
        raise WrongReturnError(f"fit returned {len(parameters.tensors)} arrays, the model has {len(sent)}")
    arrays = []
    for position, (content, expected) in enumerate(zip(parameters.tensors, sent, strict=True)):
        stream = BytesIO(content)
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
        except (ValueError, SyntaxError) as error:
            raise WrongReturnError(f"fit returned no array at position {position}: {error}") from None
        if shape != expected.shape or not np.can_cast(dtype, expected.dtype, "same_kind"):
            raise WrongReturnError(
                f"fit returned an array of shape {shape} and type {dtype.name} at position {position}; the model has "
                f"{expected.shape} and {expected.dtype.name}"
            )
        arrays.append(np.load(BytesIO(content), allow_pickle=False))
    return arrays


def _take_transport_metrics(result: ClientResult, waited: float) -> None:
    """Move the client's seconds and exact loss from its metrics to their fields, and check the loss.

    An evaluation that gives metrics need not give a loss; Flower's answer then says NaN.

    Args:
        waited: seconds from the call to the answer; the client cannot have taken longer.

    Raises:
        WrongReturnError: the loss is NaN.
    """
    is_evaluation = result.weights is None
    seconds, loss = result.metrics.pop(SECONDS, None), result.metrics.pop(LOSS, None)
    result.seconds = seconds if isinstance(seconds, float) and 0 <= seconds <= waited else waited
    if isinstance(loss, float):
        result.loss = loss
    may_have_none = is_evaluation and bool(result.metrics)
    if result.error is None and result.loss is not None and math.isnan(result.loss) and not may_have_none:
        raise WrongReturnError(f"it returned the loss {result.loss}; a number is needed")
