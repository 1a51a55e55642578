"""The round loop over any Flower strategy: sampling, failures, timing and records, the same in every engine."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import ERROR, INFO
from typing import NoReturn

from flwr.common import FitIns, NDArrays, Parameters, RecordDict, log, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_manager import ClientManager
from flwr.server.strategy import Strategy

from sim.client.runtime import test_slices
from sim.client.torch_client import fit_settings
from sim.engine.aggregation import fitted
from sim.engine.central_evaluation import CentralTest
from sim.engine.contract import ClientResult, Dispatcher
from sim.errors import ClientError, RunError, UsageError
from sim.run_folder.records import ClientRecord, Phase, RoundRecord
from sim.seeds import Purpose, seeded
from sim.server import strategy
from sim.server.legacy import Instructions, aggregate_evaluate, aggregate_fit, chunks_of, virtual_clients
from sim.server.prepared import Prepared
from sim.server.results import Failures, PhaseResults, client_quantiles, client_record, weighted_mean


@dataclass(frozen=True)
class FinishedRound:
    """A round that is over, with all that a checkpoint of it needs."""

    record: RoundRecord
    clients: list[ClientRecord]
    weights: NDArrays
    strategy: Strategy
    client_states: dict[int, RecordDict]


OnRound = Callable[[FinishedRound], None]

_CALLS = (
    "initialize_parameters",
    "configure_fit",
    "aggregate_fit",
    "configure_evaluate",
    "aggregate_evaluate",
    "evaluate",
)


class RoundServer:
    """A round loop that is a function of the seed.

    Clients are sampled and strategies called under a generator of (seed, round); results come in client order; weights
    keep the dtypes of the model; a failure stops the run, or the client is dropped and recorded, never silently.
    """

    def __init__(
        self,
        prepared: Prepared,
        dispatcher: Dispatcher,
        on_round: OnRound,
        client_manager: ClientManager | None = None,
    ) -> None:
        """
        Args:
            on_round: called after each round.
            client_manager: the clients that a strategy can sample; all virtual clients of the config for None.
        """
        config = prepared.config
        self.config = config
        self.client_manager = client_manager or virtual_clients(config.num_clients)
        self.failures = Failures()
        self._dispatcher = dispatcher
        self._on_round = on_round
        slices = test_slices(len(prepared.dataset.test), whole=config.test is not None)
        self._central_test = CentralTest(dispatcher, slices)
        try:
            built = strategy.build(config, prepared.initial_weights, self._central_test)
        except UsageError as error:  # it was built before, by prepare
            raise RunError(f"the strategy cannot be built a second time: {error}") from error
        self._strategy = built.strategy
        self._averages = built.averages
        # Running statistics must not be stepped by an adaptive strategy; the clients' mean replaces them.
        self._buffers = prepared.buffers if built.adaptive else frozenset()
        self._sizes = prepared.partition.sizes
        self._target_accuracy = math.inf if config.target_accuracy is None else config.target_accuracy
        self._weights = prepared.initial_weights
        self._states: dict[int, RecordDict] = {}
        self._next_round = 0
        self._parameters: Parameters | None = None
        if prepared.resume_point is not None:
            checkpoint = prepared.resume_point.checkpoint
            self._states = checkpoint.restore(self._strategy)
            self._accept(ndarrays_to_parameters(checkpoint.weights), checkpoint.round)
            self._next_round = checkpoint.round + 1

    def run(self) -> None:
        """Test the initial weights, then train for the rounds of the config, or until the target is reached.

        Raises:
            ClientError: a client raised, and ``on_client_error`` is stop, or no client is left.
            RunError: the strategy gave no clients or no weights.
        """
        try:
            if self._next_round == 0:
                with self._calling(0, "initialize_parameters"):
                    initial = self._strategy.initialize_parameters(self.client_manager)
                self._accept(initial or ndarrays_to_parameters(self._weights), 0)
            for server_round in range(self._next_round, self.config.num_rounds + 1):
                self._dispatcher.wait_until_ready()
                log(INFO, "[ROUND %s]", server_round)
                record, clients = self._round(server_round)
                self._on_round(FinishedRound(record, clients, self._weights, self._strategy, self._states))
                if record.test_accuracy is not None and record.test_accuracy >= self._target_accuracy:
                    break
        finally:
            for line in self.failures.summary():
                logging.getLogger("sim").warning("%s", line)

    @property
    def _global(self) -> Parameters:
        assert self._parameters is not None, "weights are accepted before the first round"
        return self._parameters

    def _round(self, server_round: int) -> tuple[RoundRecord, list[ClientRecord]]:
        record = RoundRecord(server_round)
        clients: list[ClientRecord] = []
        start = time.perf_counter()
        if server_round > 0:
            record, clients = self._fit(record)
        test_start = time.perf_counter()
        with self._calling(server_round, "evaluate"):
            tested = self._strategy.evaluate(server_round, self._global)
            loss, metrics = tested or self._central_test(server_round, self._weights, {})
        accuracy = metrics.get("accuracy")
        record = replace(
            record,
            test_loss=float(loss),
            test_accuracy=float(accuracy) if isinstance(accuracy, int | float) else None,
            test_seconds=time.perf_counter() - test_start,
        )
        if server_round > 0:
            record, evaluated = self._evaluate(record)
            clients = [*clients, *evaluated]
        return replace(record, round_seconds=time.perf_counter() - start), clients

    def _fit(self, record: RoundRecord) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round = record.round
        start = time.perf_counter()
        instructions = self._configure_fit(server_round)
        configured = time.perf_counter()
        lost: list[ClientRecord] = []
        while not (results := self._execute("fit", server_round, instructions)).succeeded:
            lost += results.records  # every client was lost: begin the round anew with those that come
            self._dispatcher.wait_until_ready()
            instructions = self._configure_fit(server_round)
        trained = time.perf_counter()
        proxies = {int(proxy.cid): proxy for proxy, _ in instructions}
        with self._calling(server_round, "aggregate_fit"):
            parameters = aggregate_fit(self._strategy, server_round, results, proxies, averages=self._averages)
        self._accept(parameters, server_round)
        self._keep_buffers(results)
        end = time.perf_counter()
        return replace(
            record,
            num_clients=len(results.succeeded),
            num_failures=len(results.failures) + len(lost),
            train_loss=weighted_mean([(r.num_examples, r.loss) for r in results.succeeded]),
            fit_seconds=trained - configured,
            **results.parts(configured, trained),
            aggregate_seconds=(configured - start) + (end - trained),
        ), [*lost, *results.records]

    def _configure_fit(self, server_round: int) -> Instructions:
        with self._calling(server_round, "configure_fit"):
            instructions = self._strategy.configure_fit(server_round, self._global, self.client_manager)
        if not instructions:
            raise RunError(f"round {server_round}: the strategy chose no clients")
        # What the strategy sends wins.
        settings = {"server_round": server_round, **fit_settings(self.config, server_round)}
        return [(proxy, FitIns(ins.parameters, {**settings, **ins.config})) for proxy, ins in instructions]

    def _evaluate(self, record: RoundRecord) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round = record.round
        start = time.perf_counter()
        with self._calling(server_round, "configure_evaluate"):
            instructions = self._strategy.configure_evaluate(server_round, self._global, self.client_manager)
        if not instructions:
            return record, []
        results = self._execute("evaluate", server_round, instructions)
        proxies = {int(proxy.cid): proxy for proxy, _ in instructions}
        with self._calling(server_round, "aggregate_evaluate"):
            measured = aggregate_evaluate(self._strategy, server_round, results, proxies)
        return replace(
            record,
            num_failures=(record.num_failures or 0) + len(results.failures),
            eval_loss=weighted_mean([(r.num_examples, r.loss) for r in measured]),
            eval_accuracy=weighted_mean([(r.num_examples, r.accuracy) for r in measured]),
            **client_quantiles([r.accuracy for r in measured if r.accuracy is not None]),
            eval_seconds=time.perf_counter() - start,
        ), results.records

    def _execute(self, phase: Phase, server_round: int, instructions: Instructions) -> PhaseResults:
        """Have clients execute instructions; collect what comes back, in client order."""
        chunks = chunks_of(
            phase,
            server_round,
            instructions,
            parameters=self._global,
            weights=self._weights,
            states=self._states,
            sizes=self._sizes,
            chunk_size=self.config.vectorized_clients,
            summed=phase == "fit" and self._averages,
        )
        collected = PhaseResults()
        for chunk_result in self._dispatcher.execute(chunks):
            collected.spans += chunk_result.spans
            collected.total.fold(chunk_result.total)
            for result in chunk_result.results:
                if result.state is not None:
                    self._states[result.client_id] = result.state
                if result.error is not None:
                    self.failures.add(result, phase, server_round)
                    if self.config.on_client_error == "stop" and not result.lost:
                        _stop(result, phase, server_round)
                collected.clients.append(result)
                collected.records.append(client_record(result, phase, server_round))
        if phase == "fit" and not collected.succeeded and not all(result.lost for result in collected.clients):
            others = f"; so did all {len(collected.clients)} clients of the round"
            _stop(collected.clients[0], phase, server_round, others)
        return collected

    def _accept(self, parameters: Parameters | None, server_round: int) -> None:
        """Make ``parameters`` the global ones, in the model's dtypes (FedAdam returns float64)."""
        if parameters is None:
            raise RunError(f"round {server_round}: the strategy returned no weights")
        self._weights = fitted(parameters_to_ndarrays(parameters), self._weights, server_round)
        self._parameters = ndarrays_to_parameters(self._weights)

    def _keep_buffers(self, results: PhaseResults) -> None:
        if not self._buffers:
            return
        if not self._averages:
            for result in results.succeeded:
                results.total.add(result.weights or [], result.num_examples)
        mean = results.total.mean()
        self._weights = [mean[i] if i in self._buffers else array for i, array in enumerate(self._weights)]
        self._parameters = ndarrays_to_parameters(self._weights)

    @contextmanager
    def _calling(self, server_round: int, call: str) -> Iterator[None]:
        """Seed a call of the strategy (or of the central test), and name it if it raises."""
        try:
            with seeded(self.config.seed, Purpose.STRATEGY, server_round, _CALLS.index(call)):
                yield
        except RunError:
            raise
        except Exception as error:
            log(ERROR, "%s, round %s:\n%s", call, server_round, traceback.format_exc())
            raise RunError(f"round {server_round}: {call} raised {type(error).__name__}: {error}") from error


def _stop(result: ClientResult, phase: Phase, server_round: int, more: str = "") -> NoReturn:
    raise ClientError(
        f"client {result.client_id} raised in round {server_round} ({phase}): {result.error}{more}"
    ) from result.cause
