"""The round loop over any Flower Strategy: sampling, failures, timing and records, the same in every engine."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import ERROR, INFO
from typing import NoReturn

import numpy as np
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    NDArrays,
    Parameters,
    RecordDict,
    Scalar,
    Status,
    log,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import History, Server
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy
from numpy.typing import NDArray

from sim.engine.aggregation import cut, fitted
from sim.engine.central_test import CentralTest
from sim.engine.contract import Chunk, ClientResult, Dispatcher, OpenDispatcher, Task
from sim.errors import ClientError, RunError
from sim.run_folder.records import ClientRecord, Phase, RoundRecord
from sim.seeds import Purpose, seeded
from sim.server.results import Failures, PhaseResults, aggregate, client_record, spread, weighted_mean


@dataclass(frozen=True)
class Start:
    """Where a run goes on: the next round, the global weights, and the state of each client that left one."""

    round: int
    weights: NDArrays
    states: dict[int, RecordDict]


OnRound = Callable[[RoundRecord, list[ClientRecord], NDArrays], None]
Instructions = Sequence[tuple[ClientProxy, FitIns] | tuple[ClientProxy, EvaluateIns]]

_CALLS = (
    "initialize_parameters",
    "configure_fit",
    "aggregate_fit",
    "configure_evaluate",
    "aggregate_evaluate",
    "evaluate",
)
_OK = Status(Code.OK, "")


class RoundServer(Server):
    """Flower's Server with a round loop that is a function of the seed.

    Clients are sampled and strategies called under a generator of (seed, round); results come in client
    order; weights keep the model's dtypes; a failure stops the run or is dropped and recorded, never silent.
    """

    def __init__(
        self,
        *,
        client_manager: ClientManager,
        strategy: Strategy,
        averages: bool,
        buffers: Collection[int],
        initial_weights: NDArrays,
        open_dispatcher: OpenDispatcher,
        central_test: CentralTest,
        fit_config: Callable[[int], dict[str, Scalar]],
        on_round: OnRound,
        on_client_error: str,
        seed: int,
        chunk_size: int | None = None,
        sizes: Sequence[int] | NDArray[np.int64] = (),
        target_accuracy: float | None = None,
        start: Start | None = None,
    ) -> None:
        """
        Args:
            averages: the strategy uses the clients' weighted mean only.
            buffers: which arrays are running statistics that an adaptive strategy must not step; the clients' mean
                replaces what it returns for them. Empty for strategies that leave them to themselves.
            central_test: for a strategy that has no test of its own.
            fit_config: round → training settings that every FitIns.config carries; what the strategy sends wins.
            on_round: called after each round with its record, its clients' records and the new weights.
            on_client_error: ``stop`` or ``drop``.
            chunk_size: clients that one process executes in one call; see ``cut`` for None.
            sizes: examples of each client, so that the longest begin first; empty where nobody knows.
            target_accuracy: the round whose test accuracy reaches it is the last.
            start: go on there; the strategy is in its state of the round before.
        """
        super().__init__(client_manager=client_manager, strategy=strategy)
        self.averages = averages
        self.buffers = buffers
        self.weights = initial_weights
        self.open_dispatcher = open_dispatcher
        self.central_test = central_test
        self.fit_config = fit_config
        self.on_round = on_round
        self.on_client_error = on_client_error
        self.seed = seed
        self.chunk_size = chunk_size
        self.sizes = sizes
        self.target_accuracy = math.inf if target_accuracy is None else target_accuracy
        self.start = start
        self.failures = Failures()
        self.states: dict[int, RecordDict] = dict(start.states) if start else {}

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Test the initial weights, then train for ``num_rounds``.

        Raises:
            ClientError: a client raised, and ``on_client_error`` is stop, or no client is left.
            RunError: the strategy gave no clients or no weights.
        """
        start = time.perf_counter()
        history = History()
        with self.open_dispatcher(self.client_manager()) as dispatcher:
            self.central_test.dispatcher = dispatcher
            self._begin()
            for server_round in range(self.start.round if self.start else 0, num_rounds + 1):
                dispatcher.wait_until_ready()
                log(INFO, "[ROUND %s]", server_round)
                record, clients = self._round(server_round, dispatcher)
                self.on_round(record, clients, self.weights)
                if record.test_loss is not None:
                    history.add_loss_centralized(server_round, record.test_loss)
                if record.test_accuracy is not None:
                    history.add_metrics_centralized(server_round, {"accuracy": record.test_accuracy})
                    if record.test_accuracy >= self.target_accuracy:
                        break
        return history, time.perf_counter() - start

    def _begin(self) -> None:
        if self.start is not None:
            self._accept(ndarrays_to_parameters(self.start.weights), self.start.round - 1)
            return
        with self._calling(0, "initialize_parameters"):
            initial = self.strategy.initialize_parameters(self.client_manager())
        self._accept(initial or ndarrays_to_parameters(self.weights), 0)

    def disconnect_all_clients(self, timeout: float | None) -> None:
        """Virtual clients have no connection; Flower would start a thread for each of them."""

    def _round(self, server_round: int, dispatcher: Dispatcher) -> tuple[RoundRecord, list[ClientRecord]]:
        record = RoundRecord(server_round)
        clients: list[ClientRecord] = []
        start = time.perf_counter()
        if server_round > 0:
            record, clients = self._fit(record, dispatcher)
        tested = time.perf_counter()
        with self._calling(server_round, "evaluate"):
            result = self.strategy.evaluate(server_round, self.parameters)
            loss, metrics = result or self.central_test(server_round, self.weights, {})
        accuracy = metrics.get("accuracy")
        record = replace(
            record,
            test_loss=float(loss),
            test_accuracy=float(accuracy) if isinstance(accuracy, int | float) else None,
            test_seconds=time.perf_counter() - tested,
        )
        if server_round > 0:
            record, evaluated = self._evaluate(record, dispatcher)
            clients = [*clients, *evaluated]
        return replace(record, round_seconds=time.perf_counter() - start), clients

    def _fit(self, record: RoundRecord, dispatcher: Dispatcher) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round = record.round
        start = time.perf_counter()
        asked = self._configure_fit(server_round)
        configured = time.perf_counter()
        lost: list[ClientRecord] = []
        while not (answers := self._ask("fit", server_round, asked, dispatcher)).ok:
            lost += answers.records  # every one of them: begin the round anew with those that come
            dispatcher.wait_until_ready()
            asked = self._configure_fit(server_round)
        trained = time.perf_counter()
        proxies = {_client_id(proxy): proxy for proxy, _ in asked}
        with self._calling(server_round, "aggregate_fit"):
            parameters = aggregate(self.strategy, server_round, answers, proxies, averages=self.averages)
        self._accept(parameters, server_round)
        self._keep_buffers(answers)
        end = time.perf_counter()
        return replace(
            record,
            num_clients=len(answers.ok),
            num_failures=len(answers.failures) + len(lost),
            train_loss=weighted_mean([(o.num_examples, o.loss) for o in answers.ok]),
            fit_seconds=trained - configured,
            **answers.parts(configured, trained),
            aggregate_seconds=(configured - start) + (end - trained),
        ), [*lost, *answers.records]

    def _configure_fit(self, server_round: int) -> Instructions:
        with self._calling(server_round, "configure_fit"):
            asked = self.strategy.configure_fit(server_round, self.parameters, self.client_manager())
        if not asked:
            raise RunError(f"round {server_round}: the strategy chose no clients")
        settings = {"server_round": server_round, **self.fit_config(server_round)}
        return [(proxy, FitIns(ins.parameters, {**settings, **ins.config})) for proxy, ins in asked]

    def _evaluate(self, record: RoundRecord, dispatcher: Dispatcher) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round = record.round
        start = time.perf_counter()
        with self._calling(server_round, "configure_evaluate"):
            asked = self.strategy.configure_evaluate(server_round, self.parameters, self.client_manager())
        if not asked:
            return record, []
        answers = self._ask("evaluate", server_round, asked, dispatcher)
        proxies = {_client_id(proxy): proxy for proxy, _ in asked}
        # A client too small to keep examples for evaluation has nothing to say.
        spoken = [o for o in answers.ok if o.num_examples > 0]
        results = [(proxies[o.client_id], EvaluateRes(_OK, o.loss or 0.0, o.num_examples, o.metrics)) for o in spoken]
        with self._calling(server_round, "aggregate_evaluate"):
            self.strategy.aggregate_evaluate(server_round, results, answers.failures)
        return replace(
            record,
            num_failures=(record.num_failures or 0) + len(answers.failures),
            eval_loss=weighted_mean([(o.num_examples, o.loss) for o in spoken]),
            eval_accuracy=weighted_mean([(o.num_examples, o.accuracy) for o in spoken]),
            **spread([o.accuracy for o in spoken if o.accuracy is not None]),
            eval_seconds=time.perf_counter() - start,
        ), answers.records

    def _ask(self, phase: Phase, server_round: int, asked: Instructions, dispatcher: Dispatcher) -> PhaseResults:
        """Send instructions to clients and collect what comes back, in client order."""
        answers = PhaseResults()
        for result in dispatcher.execute(self._chunks(phase, server_round, asked)):
            answers.spans += result.spans
            answers.total.fold(result.total)
            for outcome in result.outcomes:
                if outcome.state is not None:
                    self.states[outcome.client_id] = outcome.state
                if outcome.error is not None:
                    self.failures.add(outcome, phase, server_round)
                    if self.on_client_error == "stop" and not outcome.lost:
                        _stop(outcome, phase, server_round)
                answers.outcomes.append(outcome)
                answers.records.append(client_record(outcome, phase, server_round))
        if phase == "fit" and not answers.ok and not all(outcome.lost for outcome in answers.outcomes):
            _stop(
                answers.outcomes[0],
                phase,
                server_round,
                f"; so did all {len(answers.outcomes)} clients of the round",
            )
        return answers

    def _chunks(self, phase: Phase, server_round: int, asked: Instructions) -> list[Chunk]:
        ordered = sorted(asked, key=lambda pair: _client_id(pair[0]))
        weights: dict[int, NDArrays] = {id(self.parameters): self.weights}
        chunks = []
        for part in cut(ordered, self.chunk_size):
            groups: list[tuple[Parameters, list[Task]]] = []
            for proxy, ins in part:
                if not groups or groups[-1][0] is not ins.parameters:
                    groups.append((ins.parameters, []))
                client_id = _client_id(proxy)
                size = int(self.sizes[client_id]) if len(self.sizes) else 0
                groups[-1][1].append(Task(client_id, ins.config, self.states.get(client_id), size))
            for parameters, tasks in groups:
                key = id(parameters)
                if key not in weights:
                    weights[key] = fitted(parameters_to_ndarrays(parameters), self.weights, server_round)
                summed = phase == "fit" and self.averages
                chunks.append(Chunk(phase, server_round, tasks, weights[key], summed))
        return chunks

    def _accept(self, parameters: Parameters | None, server_round: int) -> None:
        """Make ``parameters`` the global ones, in the model's dtypes (FedAdam returns float64)."""
        if parameters is None:
            raise RunError(f"round {server_round}: the strategy returned no weights")
        self.weights = fitted(parameters_to_ndarrays(parameters), self.weights, server_round)
        self.parameters = ndarrays_to_parameters(self.weights)

    def _keep_buffers(self, answers: PhaseResults) -> None:
        if not self.buffers:
            return
        if not self.averages:
            for outcome in answers.ok:
                answers.total.add(outcome.weights or [], outcome.num_examples)
        mean = answers.total.mean()
        self.weights = [mean[i] if i in self.buffers else array for i, array in enumerate(self.weights)]
        self.parameters = ndarrays_to_parameters(self.weights)

    @contextmanager
    def _calling(self, server_round: int, call: str) -> Iterator[None]:
        """Seed a call of the strategy (or of the central test), and name it if it raises."""
        try:
            with seeded(self.seed, Purpose.STRATEGY, server_round, _CALLS.index(call)):
                yield
        except RunError:
            raise
        except Exception as error:
            log(ERROR, "%s, round %s:\n%s", call, server_round, traceback.format_exc())
            raise RunError(f"round {server_round}: {call} raised {type(error).__name__}: {error}") from error


def _client_id(proxy: ClientProxy) -> int:
    # Flower's cid is a random number here; the partition is the client.
    client_id: int = proxy.partition_id  # type: ignore[attr-defined]
    return client_id


def _stop(outcome: ClientResult, phase: Phase, server_round: int, more: str = "") -> NoReturn:
    raise ClientError(
        f"client {outcome.client_id} raised in round {server_round} ({phase}): {outcome.error}{more}"
    ) from outcome.cause
