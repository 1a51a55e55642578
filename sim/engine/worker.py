"""Executes the clients of a chunk, one after another, in the process that holds model and data."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.common import (
    Code,
    Context,
    EvaluateIns,
    FitIns,
    NDArrays,
    RecordDict,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)

from sim.client.runtime import CifarClient, ClientRuntime, ClientSpec, set_weights, view_weights, workbench
from sim.engine import vectorized
from sim.engine.aggregation import WeightedSum, check_finite
from sim.engine.contract import Chunk, ChunkResult, ClientResult, Task, TestSlice
from sim.engine.liveness import Liveness
from sim.seeds import Purpose, reseed, restored, seeded
from sim.training.local import TestSums


class WrongReturnError(TypeError):
    """A client returned something that is not what Flower expects."""


@dataclass
class Worker:
    """Makes the clients of a program and calls them; the same code in this process and in an actor.

    Attributes:
        client_fn: makes them instead of the program's own.
        board: where it notes which client it executes.
        own_process: nobody else needs this process, so it ends when it can be of no use any more.
        client_timeout: seconds after which the system ends this process, where nobody else would see that it hangs.
    """

    program: ClientSpec
    num_clients: int
    seed: int
    actor: int = 0
    client_fn: Callable[[Context], Client] | None = None
    board: Liveness | None = None
    own_process: bool = False
    client_timeout: float | None = None
    _names: Sequence[str] = ()

    def run(self, chunk: Chunk) -> ChunkResult:
        """Execute every client of ``chunk``; what one raises becomes its outcome."""
        began = time.perf_counter()
        done = None
        bench = workbench(self.program)  # before the first client begins: it may take its time
        self._names = list(bench.net.state_dict()) if not self._names else self._names
        if chunk.phase == "fit" and self.program.vectorized_clients > 1 and vectorized.can_fit(chunk):
            done = self._together(bench, chunk)
        outcomes, total = done or self._one_by_one(chunk)
        if self.board is not None:
            self.board.end(self.actor)
        if self.client_timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for outcome in outcomes:
            outcome.actor = self.actor
        return ChunkResult(outcomes, total, [(self.actor, began, time.perf_counter())])

    def _begin(self, client_id: int, together: int = 1) -> None:
        if self.board is not None:
            self.board.begin(self.actor, client_id, together)
        if self.client_timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, self.client_timeout * together)  # what hangs in C does not escape it

    def _together(self, bench: ClientRuntime, chunk: Chunk) -> tuple[list[ClientResult], WeightedSum] | None:
        self._begin(chunk.tasks[0].client_id, len(chunk.tasks))
        try:
            return vectorized.fit(bench, chunk, self.seed)
        except Exception:
            logging.getLogger("sim").exception("training together failed; trying one client after another")
            return None

    def _one_by_one(self, chunk: Chunk) -> tuple[list[ClientResult], WeightedSum]:
        total = WeightedSum()
        outcomes = []
        purpose = Purpose.FIT if chunk.phase == "fit" else Purpose.EVALUATE
        with restored():
            for task in chunk.tasks:
                start = time.perf_counter()
                self._begin(task.client_id)
                try:
                    reseed(self.seed, purpose, chunk.server_round, task.client_id)
                    outcome = self._call(chunk, task)
                    if outcome.weights is not None and chunk.summed:
                        total.add(outcome.weights, outcome.num_examples)
                        outcome.weights = None
                except (Exception, SystemExit) as error:  # noqa: BLE001 - the round loop decides what it means
                    if self.own_process and _broke_the_device(error):
                        traceback.print_exc()
                        os._exit(1)  # CUDA is of no use to this process any more; another one does its clients
                    outcome = ClientResult(
                        task.client_id,
                        error=f"{type(error).__name__}: {error}",
                        traceback=traceback.format_exc(),
                        cause=error,
                    )
                outcome.seconds = time.perf_counter() - start
                outcomes.append(outcome)
        return outcomes, total

    def test(self, weights: NDArrays, part: TestSlice) -> TestSums:
        """Test ``weights`` on a part of the central test split.

        Raises:
            RunError: see ``ClientRuntime.central_test``.
        """
        bench = workbench(self.program)
        set_weights(bench.net, weights)
        with seeded(self.seed, Purpose.TEST, part.server_round):
            return bench.central_test(part.first, part.last)

    def _call(self, chunk: Chunk, task: Task) -> ClientResult:
        context = Context(
            run_id=0,
            node_id=task.client_id,
            node_config={"partition-id": task.client_id, "num-partitions": self.num_clients},
            state=RecordDict() if task.state is None else task.state,
            run_config={},
        )
        client: Any = (self.client_fn or workbench(self.program).client)(context)
        # Straight to the NumPyClient where there is one: Flower's wrapper would copy the weights to bytes and back.
        client = getattr(client, "numpy_client", client)
        weights = chunk.weights
        ours = type(client) is CifarClient
        if not ours:
            # A user's client may write to what it gets; others still read these arrays.
            weights = [array.copy() for array in weights]
        outcome = ClientResult(task.client_id)
        if chunk.phase == "fit" and ours and chunk.summed:
            # Added to the sum before the net is used again, so that nobody needs a copy.
            outcome.num_examples, outcome.metrics = client.train_from(weights, dict(task.config))
            outcome.weights = view_weights(client.net)
            outcome.loss = check_fit(outcome, chunk.weights, self._names)
        elif chunk.phase == "fit":
            outcome.weights, outcome.num_examples, outcome.metrics = _fit(client, weights, task)
            outcome.loss = check_fit(outcome, chunk.weights, self._names)
        else:
            outcome.loss, outcome.num_examples, outcome.metrics = _evaluate(client, weights, task)
        outcome.state = context.state if any(context.state.values()) else None
        return outcome


def _fit(client: Any, weights: NDArrays, task: Task) -> tuple[NDArrays, int, dict[str, Any]]:
    if not isinstance(client, NumPyClient):
        result = client.fit(FitIns(ndarrays_to_parameters(weights), dict(task.config)))
        _check_status(result.status)
        return parameters_to_ndarrays(result.parameters), result.num_examples, result.metrics
    returned = client.fit(weights, dict(task.config))
    match returned:
        case (list() as arrays, int() as num_examples, dict() as metrics):
            return arrays, num_examples, metrics
    raise WrongReturnError(f"fit must return (list of arrays, int, dict), not {_shape_of(returned)}")


def _evaluate(client: Any, weights: NDArrays, task: Task) -> tuple[float, int, dict[str, Any]]:
    if not isinstance(client, NumPyClient):
        result = client.evaluate(EvaluateIns(ndarrays_to_parameters(weights), dict(task.config)))
        _check_status(result.status)
        return result.loss, result.num_examples, result.metrics
    returned = client.evaluate(weights, dict(task.config))
    match returned:
        case (float() as loss, int() as num_examples, dict() as metrics):
            return loss, num_examples, metrics
    raise WrongReturnError(f"evaluate must return (float, int, dict), not {_shape_of(returned)}")


def _check_status(status: Any) -> None:
    if status.code != Code.OK:
        raise RuntimeError(f"the client answered {status.code.name}: {status.message}")


def _broke_the_device(error: BaseException) -> bool:
    """Whether a process cannot use its GPU after this error; out of memory is not of that kind."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def _shape_of(returned: Any) -> str:
    if isinstance(returned, tuple):
        return f"({', '.join(type(item).__name__ for item in returned)})"
    return type(returned).__name__


def check_fit(outcome: ClientResult, sent: NDArrays, names: Sequence[str] = ()) -> float | None:
    """Check what a client's ``fit`` returned; return its loss, if it gave one.

    Args:
        sent: the weights it started from.
        names: of the arrays, for the message.

    Raises:
        WrongReturnError: the arrays have other shapes, or there are no examples.
        NonFiniteError: a weight is NaN or infinite.
    """
    shapes, wanted = [np.shape(w) for w in outcome.weights or []], [w.shape for w in sent]
    if shapes != wanted:
        raise WrongReturnError(f"fit returned arrays of shapes {shapes}, the model has {wanted}")
    dtypes = [(np.asarray(w).dtype, s.dtype) for w, s in zip(outcome.weights or [], sent, strict=True)]
    if not all(np.can_cast(dtype, wanted_dtype, "same_kind") for dtype, wanted_dtype in dtypes):
        raise WrongReturnError(f"fit returned arrays of types {[d.name for d, _ in dtypes]}, the model has others")
    if outcome.num_examples < 1:
        raise WrongReturnError(f"fit returned num_examples {outcome.num_examples}; at least 1 is needed")
    check_finite(outcome.weights or [], names)
    loss = outcome.metrics.get("loss")
    return float(loss) if isinstance(loss, int | float) else None
