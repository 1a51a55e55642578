"""Executes the clients of a chunk, one after another, in the process that holds model and data."""

from __future__ import annotations

import copy
import faulthandler
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from flwr.app import DEFAULT_TTL
from flwr.client import Client
from flwr.common import (
    Context,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    NDArrays,
    RecordDict,
)

from sim import private_names
from sim.client.algorithm_client import FINE_TUNE_EPOCHS
from sim.client.flower_program import FlowerRuntime, FlowerSpec, node_of
from sim.client.message_contents import Packer, as_bytes, numbers_of, unpack, weights_of, without_arrays
from sim.client.runtime import ClientRuntime, ClientSpec, message_of
from sim.client.torch_client import TorchClient
from sim.compression.message import RESIDUAL
from sim.engine import vectorized
from sim.engine.aggregation import (
    NonFiniteError,
    WeightedSum,
    check_finite,
    in_dtypes_of,
    in_float_dtypes_of,
    same_shapes,
)
from sim.engine.client_calls import asked, check_count, check_fit, checked_metrics, evaluate, fit, is_number, weight_in
from sim.engine.interface import Chunk, ChunkResult, ClientResult, Task, TestSlice, other_timeout
from sim.engine.liveness import SETTING_UP, TESTING, Liveness
from sim.errors import BrokenProcessError, described, many_lines
from sim.metrics import spelled
from sim.process_settings import in_own_context
from sim.run_folder.client_states import ClientState, ClientStateError
from sim.run_folder.records import Phase
from sim.seeds import Purpose, generator, reseed, restored, seeded
from sim.training.local import TestSums
from sim.training.weights import WeightLayout, set_weights, view_weights

_EXAMPLES = ("num-examples", "num_examples")  # a client's number of examples, as apps and Flower call it
_PURPOSES: dict[Phase, Purpose] = {"fit": Purpose.FIT, "evaluate": Purpose.EVALUATE, "query": Purpose.QUERY}


@dataclass
class Worker:
    """Makes the clients of a spec and calls them; the same code in the driver and in an actor.

    Attributes:
        client_fn: makes the clients instead of the runtime.
        liveness: where it records which client it executes.
        own_process: this process serves nobody else, so it ends when it can be of no more use.
        client_timeout: seconds after which this process ends itself, where no other process could see that it hangs.
    """

    spec: ClientSpec | FlowerSpec
    num_clients: int
    seed: int
    actor: int = 0
    client_fn: Callable[[Context], Client] | None = None
    liveness: Liveness | None = None
    own_process: bool = False
    client_timeout: float | None = None

    def __post_init__(self) -> None:
        self._can_vectorize = self.spec.vectorized_clients > 1
        self._decoded: tuple[NDArrays, list[bytes]] = [], []  # arrays of the last messages, as bytes
        self._sentinel = os.open(os.devnull, os.O_RDONLY)  # closed by a client that closes what is not its own
        self._sentinel_stat = os.fstat(self._sentinel)

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._sentinel)

    @cached_property
    def runtime(self) -> ClientRuntime | FlowerRuntime:
        """Model, data and functions, set up in this process at first use."""
        with self._at(SETTING_UP, other_timeout(self.client_timeout)):
            return self.spec.open()

    @property
    def torch_runtime(self) -> ClientRuntime:
        """The runtime of a PyTorch program, which has data, model and central test."""
        runtime = self.runtime
        assert isinstance(runtime, ClientRuntime), "a Flower program has its own"
        return runtime

    def run(self, chunk: Chunk) -> ChunkResult:
        """Execute every client of ``chunk``; what a client raises becomes its result."""
        start = time.perf_counter()
        executed = None
        runtime = self.runtime  # before the first client begins, because setting it up takes time
        if isinstance(runtime, ClientRuntime) and self._vectorizes(chunk):
            executed = self._vectorized(runtime, chunk)
        results, total = executed or self._one_by_one(runtime, chunk)
        self._end()
        for result in results:
            result.actor = self.actor
        return ChunkResult(results, total, [(self.actor, start, time.perf_counter())])

    def _vectorizes(self, chunk: Chunk) -> bool:
        if chunk.phase != "fit" or not self._can_vectorize:
            return False
        reason = vectorized.reason_against(chunk)
        if reason is not None and self.spec.vectorized_only:
            self._can_vectorize = False
            logging.getLogger("sim").warning("note: clients are trained one after another: %s", reason)
        return reason is None

    def _begin(self, client_id: int, num_clients: int = 1, timeout: float | None = None) -> None:
        if self.liveness is not None:
            self.liveness.begin(self.actor, client_id, num_clients)
        timeout = self.client_timeout if timeout is None else timeout
        if timeout is not None:
            # A thread of C code ends the process, also one that hangs in C and never returns to Python.
            faulthandler.dump_traceback_later(timeout * num_clients, exit=True, file=2)

    def _end(self) -> None:
        if self.liveness is not None:
            self.liveness.end(self.actor)
        if self.client_timeout is not None:
            faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def _at(self, occupation: int, timeout: float | None) -> Iterator[None]:
        self._begin(occupation, timeout=timeout)
        try:
            yield
        finally:
            self._end()

    def _vectorized(self, runtime: ClientRuntime, chunk: Chunk) -> tuple[list[ClientResult], WeightedSum] | None:
        self._begin(chunk.tasks[0].client_id, len(chunk.tasks))
        try:
            return vectorized.fit(runtime, chunk, self.seed)
        except Exception as error:
            if self.spec.vectorized_only:
                reason = f"vectorized training failed: {described(error)}"
                trace = many_lines(traceback.format_exc())
                return [ClientResult(t.client_id, error=reason, traceback=trace) for t in chunk.tasks], WeightedSum()
            self._can_vectorize = False
            logging.getLogger("sim").exception(
                "vectorized training failed; from now on this process trains one client after another"
            )
            return None

    def _one_by_one(
        self, runtime: ClientRuntime | FlowerRuntime, chunk: Chunk
    ) -> tuple[list[ClientResult], WeightedSum]:
        total = WeightedSum(exact=chunk.untrained, num_extras=chunk.num_extras)
        results = []
        purpose = _PURPOSES[chunk.phase]
        with restored():
            for task in chunk.tasks:
                start = time.perf_counter()
                self._begin(task.client_id)
                try:
                    key = (purpose, chunk.server_round) if chunk.batch is None else (Purpose.QUERY, chunk.batch)
                    stream = reseed(self.seed, *key, task.client_id, task.repeat)
                    with runtime.isolated(stream):
                        result = self._call(runtime, chunk, task)
                    if result.weights is not None and chunk.summed:
                        # In the model's dtypes, so that the sum does not depend on which client comes first in it.
                        by = task.message.weighted_by if task.message else ""
                        count = weight_in(result, by) if by else 1 if chunk.uniform else result.num_examples
                        same = same_shapes(result.weights, chunk.weights)
                        in_dtypes = in_dtypes_of if isinstance(runtime, ClientRuntime) else in_float_dtypes_of
                        weights = in_dtypes(chunk.weights, result.weights) if same else result.weights
                        total.add(weights, count)
                        result.weights = None
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and not self.own_process:
                        raise  # Ctrl-C; an actor gets none, so that there a client has raised it
                    if self.own_process and _broke_the_device(error):
                        traceback.print_exc()
                        os._exit(1)  # CUDA no longer works in this process; another one executes its clients
                    result = ClientResult(
                        task.client_id,
                        error=described(error),
                        traceback=many_lines(traceback.format_exc()),
                        cause=error,
                        stops_run=isinstance(error, ClientStateError),
                    )
                self._check_descriptors(task.client_id)
                result.seconds = time.perf_counter() - start
                results.append(result)
        return results, total

    def _check_descriptors(self, client_id: int) -> None:
        """End where a client has closed open files and connections of this process, which then cannot go on.

        Raises:
            BrokenProcessError: this process is not the worker's own.
        """
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._sentinel), self._sentinel_stat):
                return
        reason = f"client {client_id} closed open files of the process that executes it"
        if self.own_process:
            print(reason, file=sys.stderr, flush=True)
            os._exit(1)
        raise BrokenProcessError(reason)

    def test(self, weights: NDArrays, part: TestSlice) -> TestSums:
        """Test ``weights`` on a part of the central test split.

        Raises:
            RunError: see ``ClientRuntime.central_test``.
        """
        runtime = self.torch_runtime
        runtime.renew_net()
        set_weights(runtime.net, weights)
        with (
            self._at(TESTING, other_timeout(self.client_timeout)),
            seeded(self.seed, Purpose.TEST, part.server_round) as stream,
        ):
            return runtime.central_test(stream, part.first, part.last, validates=part.validates)

    @in_own_context
    def _call(self, runtime: ClientRuntime | FlowerRuntime, chunk: Chunk, task: Task) -> ClientResult:
        # In a process of its own a task is a copy already; here the server still holds its state.
        state = task.state if self.own_process else copy.deepcopy(task.state)
        is_app = isinstance(runtime, FlowerRuntime) and runtime.client_app is not None
        context = Context(
            run_id=1 if is_app else 0,
            node_id=node_of(task.client_id) if is_app else task.client_id,
            node_config={"partition-id": task.client_id, "num-partitions": self.num_clients},
            state=RecordDict() if state is None else state,
            run_config=runtime.own_run_config(),
        )
        if isinstance(runtime, FlowerRuntime):
            result = self._flower_result(runtime, chunk, task, context)
        else:
            result = self._result(runtime, chunk, task, context)
        if task.state is not None or any(context.state.values()):
            result.state = copy.deepcopy(context.state)  # the client may keep the one that it was given
        return result

    def _result(self, runtime: ClientRuntime, chunk: Chunk, task: Task, context: Context) -> ClientResult:
        """Call a client around a PyTorch program."""
        client: Any = (self.client_fn or runtime.client)(context)
        # Straight to the NumPyClient where there is one: Flower's wrapper would copy the weights to bytes and back.
        client = getattr(client, "numpy_client", client)
        state = self._state_of(runtime, chunk, task)
        if runtime.algorithm is not None:
            return self._with_algorithm(runtime, client, chunk, task, state)
        weights = chunk.weights
        built_in = type(client) is TorchClient
        if task.asks is not None:
            if built_in:  # its net is that of the process
                set_weights(client.net, weights)
            return asked(client, task)
        if not built_in:
            # A user's client may write to the arrays that it gets; other clients still read them.
            weights = [array.copy() for array in weights]
        result = ClientResult(task.client_id)
        if chunk.phase == "fit" and built_in and chunk.summed:
            # Added to the sum before the net is used again, so that no copy is needed.
            result.num_examples, result.metrics = client.train_from(weights, dict(task.config))
            result.weights = view_weights(client.net, runtime.weight_names)
        elif chunk.phase == "fit":
            result.weights, result.num_examples, result.metrics = fit(client, weights, task)
        else:
            result.loss, result.num_examples, result.metrics = evaluate(client, weights, task)
            check_count(result.num_examples, 0, chunk.phase)
        result.metrics = checked_metrics(result.metrics, chunk.phase)
        if chunk.phase == "fit":
            result.loss = check_fit(result, chunk.weights, runtime.weight_names)
            self._send(runtime, chunk, task, result, state)
        return result

    def _with_algorithm(
        self, runtime: ClientRuntime, client: TorchClient, chunk: Chunk, task: Task, state: ClientState
    ) -> ClientResult:
        """Have a client execute the client part of the run's algorithm."""
        result = ClientResult(task.client_id)
        config, number = dict(task.config), chunk.server_round
        of_algorithm = {name: arrays for name, arrays in state.items() if name != RESIDUAL}
        local = runtime.algorithm_client(client, chunk.weights, config, number, of_algorithm)
        if chunk.phase == "evaluate" and FINE_TUNE_EPOCHS in config:
            begin_tuning = partial(reseed, self.seed, Purpose.FINE_TUNE, number, task.client_id)
            result.num_examples, found = local.evaluate_all(int(config[FINE_TUNE_EPOCHS]), begin_tuning)
            for model, metrics in found.items():
                numbers = checked_metrics(metrics, chunk.phase)
                result.metrics |= {f"{model}_{name}": value for name, value in numbers.items()}
            return result
        if chunk.phase == "evaluate":
            result.loss, result.num_examples, metrics = local.evaluate()
            result.metrics = checked_metrics(metrics, chunk.phase)
            return result
        result.weights, result.num_examples, metrics, new_state = local.fit()
        result.metrics = checked_metrics(metrics, chunk.phase)
        result.loss = check_fit(result, chunk.weights, runtime.weight_names)
        self._send(runtime, chunk, task, result, state, new_state)
        if not chunk.summed:
            result.weights = [array.copy() for array in result.weights]
        return result

    def _state_of(self, runtime: ClientRuntime | FlowerRuntime, chunk: Chunk, task: Task) -> ClientState:
        """Return what a client kept in the round in which it last trained; empty if it never did."""
        is_needed = isinstance(runtime, ClientRuntime) and runtime.algorithm is not None
        if task.state_round is None or not (is_needed or chunk.phase == "fit"):
            return {}
        return runtime.states.read(task.client_id, task.state_round)

    def _send(
        self,
        runtime: ClientRuntime | FlowerRuntime,
        chunk: Chunk,
        task: Task,
        result: ClientResult,
        state: ClientState,
        new_state: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Let a result hold what the server makes of what the client sends, and keep the client's state.

        Args:
            state, new_state: what the client kept before, and what its algorithm keeps now.
        """
        kept = dict(new_state or {})
        layout, sends_updates = WeightLayout.unknown([]), False
        if isinstance(runtime, ClientRuntime):
            layout = runtime.shared_layout
            sends_updates = runtime.algorithm is not None and runtime.algorithm.SENDS_UPDATES
        message = message_of(runtime.spec, layout, chunk.server_round, chunk.untrained)
        compression, weights = runtime.spec.compression, result.weights or []
        if compression.up is None:
            result.bytes_up = message.num_bytes(weights, None)
        else:
            result.weights, result.bytes_up, residual = message.reconstructed(
                weights,
                chunk.weights,
                compression,
                generator(self.seed, Purpose.COMPRESS_UP, chunk.server_round, task.client_id, task.repeat),
                residual=state.get(RESIDUAL, ()),
                values=range(0 if sends_updates else len(weights) - chunk.num_extras, len(weights)),
            )
            if residual:
                kept[RESIDUAL] = residual
        if any(kept.values()):
            runtime.states.write(task.client_id, task.state_number or chunk.server_round, kept)
            result.wrote_state = True

    def _flower_result(self, runtime: FlowerRuntime, chunk: Chunk, task: Task, context: Context) -> ClientResult:
        """Call a client of a Flower program."""
        unit = 100 if runtime.spec.accuracy_in_percent else 1
        if task.message is not None:
            return self._reply(runtime, chunk, task, context, unit)
        result = ClientResult(task.client_id, accuracy_unit=unit)
        client: Any
        if runtime.client_app is not None:
            client = AppClient(runtime, context)
        else:
            client = runtime.client(context)
            client = getattr(client, "numpy_client", client)
        if task.asks is not None:
            return asked(client, task)
        weights = [array.copy() for array in chunk.weights]
        if chunk.phase == "fit":
            result.weights, result.num_examples, result.metrics = fit(client, weights, task)
        else:
            result.loss, result.num_examples, result.metrics = evaluate(client, weights, task)
            check_count(result.num_examples, 0, chunk.phase)
        result.metrics = checked_metrics(result.metrics, chunk.phase, any_accuracy=True)
        if chunk.phase == "fit":
            result.loss = check_fit(result, chunk.weights, others=True)
            self._send(runtime, chunk, task, result, self._state_of(runtime, chunk, task))
        return result

    def _reply(self, runtime: FlowerRuntime, chunk: Chunk, task: Task, context: Context, unit: int) -> ClientResult:
        """Have a Flower app answer a message."""
        message = task.message
        assert message is not None
        if self._decoded[0] is not chunk.weights:
            self._decoded = chunk.weights, as_bytes(chunk.weights)
        content = runtime.reply_to(
            message.message_type,
            message.message_id,
            message.group_id,
            message.ttl_seconds,
            unpack(message.records, self._decoded[1]),
            context,
        )
        numbers = {name: value for name, value in numbers_of(content).items() if is_number(value)}
        counts = [numbers[name] for name in _EXAMPLES if name in numbers]
        weight = numbers.get(message.weighted_by, 0)
        count = counts[0] if counts else weight if weight % 1 == 0 else 0  # a weight of 0.5 counts no examples
        metrics = {name: value for name, value in numbers.items() if name not in _EXAMPLES}
        result = ClientResult(task.client_id, num_examples=int(count), metrics=metrics, accuracy_unit=unit)
        result.loss = spelled(metrics, "loss")
        if chunk.summed:
            result.weights, result.records = weights_of(content), without_arrays(content)
            try:
                check_finite(result.weights, [])
            except NonFiniteError:  # a mask of −∞, say, which was sent so
                check_finite(result.weights, weights_of(unpack(message.records, self._decoded[1])))
        else:
            packer = Packer()
            result.records, result.weights = packer.pack(content), packer.arrays
        return result


class AppClient:
    """A ClientApp as the client of a strategy of the older form, whose instructions travel as messages."""

    def __init__(self, runtime: FlowerRuntime, context: Context) -> None:
        self._runtime, self._context = runtime, context
        self._compat = private_names.legacy_messages()

    def fit(self, ins: FitIns) -> FitRes:
        """Train, as the app does it."""
        reply = self._answer("train", self._compat.fitins_to_recorddict(ins, keep_input=True))
        found: FitRes = self._compat.recorddict_to_fitres(reply, keep_input=False)
        return found

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        """Evaluate, as the app does it."""
        reply = self._answer("evaluate", self._compat.evaluateins_to_recorddict(ins, keep_input=True))
        found: EvaluateRes = self._compat.recorddict_to_evaluateres(reply)
        return found

    def _answer(self, message_type: str, content: RecordDict) -> RecordDict:
        return self._runtime.reply_to(message_type, "1", "", DEFAULT_TTL, content, self._context)


def _broke_the_device(error: BaseException) -> bool:
    """Whether a process cannot use its GPU after this error; out of memory is not of that kind."""
    accelerator_error: type[BaseException] | tuple[()] = getattr(torch, "AcceleratorError", ())  # since PyTorch 2.8
    return isinstance(error, accelerator_error) or "CUDA error" in described(error)
