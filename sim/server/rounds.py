"""The round loop over any Flower strategy: sampling, failures, timing and records, the same in every engine."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from logging import ERROR, INFO
from typing import NoReturn

import numpy as np
from flwr.common import (
    FitIns,
    NDArrays,
    Parameters,
    RecordDict,
    Scalar,
    log,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.strategy import Strategy

from sim.client.runtime import test_slices, tests_whole
from sim.client.torch_client import fit_settings
from sim.engine.aggregation import NonFiniteError, check_finite
from sim.engine.central_evaluation import CentralTest
from sim.engine.contract import ClientResult, Dispatcher
from sim.engine.worker import MOST_ACCURACY
from sim.errors import ClientError, RunError, UsageError, described, many_lines, one_line
from sim.metrics import Target
from sim.process_settings import restored_settings
from sim.run_folder.records import ClientRecord, MetricRecord, Phase, RoundRecord
from sim.seeds import Purpose, seeded
from sim.server import strategy
from sim.server.legacy import Instructions, aggregate_evaluate, aggregate_fit, chunks_of, virtual_clients
from sim.server.prepared import Prepared
from sim.server.results import (
    Failures,
    PhaseResults,
    client_quantiles,
    client_record,
    metric_records,
    numbers_of,
    test_records,
    weighted_mean,
)
from sim.server.stragglers import with_stragglers


@dataclass(frozen=True)
class FinishedRound:
    """A round that is over, with all that a checkpoint of it needs."""

    record: RoundRecord
    clients: list[ClientRecord]
    weights: NDArrays
    strategy: Strategy
    client_states: dict[int, RecordDict]
    metrics: list[MetricRecord] = field(default_factory=list)


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
        slices = test_slices(prepared.dataset.num_test_examples, whole=tests_whole(prepared.spec))
        self._central_test = CentralTest(dispatcher, slices) if slices else None
        try:
            built = strategy.build(
                config, prepared.initial_weights, prepared.layout, self._evaluate_fn, prepared.objects.strategy
            )
        except UsageError as error:  # it was built before, by prepare
            raise RunError(f"the strategy cannot be built a second time: {error}") from error
        self._built, self._strategy, self._view = built, built.strategy, built.view
        self._names = prepared.layout.names
        self._sizes = prepared.partition.sizes
        self._target = Target.of(vars(config))
        self._num_test_examples = prepared.dataset.num_test_examples
        self._num_tested: int | None = None  # examples of the central test in the present round
        self._metrics: list[MetricRecord] = []  # of the present round
        self._weights = prepared.initial_weights
        self._states: dict[int, RecordDict] = {}
        self._next_round = 0
        self._parameters: Parameters | None = None
        self._tensors: tuple[bytes, ...] = ()  # of the parameters when they were made; a strategy may change them
        if prepared.resume_point is not None:
            checkpoint = prepared.resume_point.checkpoint
            self._states = checkpoint.restore(self._strategy)
            self._set_weights(checkpoint.weights)
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
                self._accept(initial or ndarrays_to_parameters(self._view.of(self._weights)), 0)
            for server_round in range(self._next_round, self.config.num_rounds + 1):
                self._dispatcher.wait_until_ready()
                log(INFO, "[ROUND %s]", server_round)
                record, clients = self._round(server_round)
                finished = FinishedRound(record, clients, self._weights, self._strategy, self._states, self._metrics)
                self._on_round(finished)
                if server_round == 0:
                    self._check_target(record)
                if self._target is not None and self._target.is_reached_by(record.tested(self._target.name)):
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
        self._metrics, self._num_tested = [], None
        start = time.perf_counter()
        if server_round > 0:
            record, clients = self._fit(record)
        test_start = time.perf_counter()
        with self._calling(server_round, "evaluate"):
            tested = self._strategy.evaluate(server_round, self._global)
            loss, metrics = tested or self._tested(self._weights, server_round)
        accuracy, numbers = metrics.get("accuracy"), numbers_of(metrics)
        self._metrics += test_records(server_round, self._num_tested, float(loss), numbers)
        record = replace(
            record,
            test_loss=None if math.isnan(loss) else float(loss),
            test_accuracy=self._fraction(accuracy, server_round),
            test_seconds=time.perf_counter() - test_start,
            test_metrics={name: value for name, value in numbers.items() if name != "loss"},
        )
        if server_round > 0:
            record, evaluated = self._evaluate(record)
            clients = [*clients, *evaluated]
        return replace(record, round_seconds=time.perf_counter() - start), clients

    def _check_target(self, record: RoundRecord) -> None:
        """Say that a target cannot be reached as far as the first test shows; a strategy may test otherwise later."""
        if self._target is not None and record.tested(self._target.name) is None:
            measured = [name for name in ("loss", *record.test_metrics) if record.tested(name) is not None]
            logging.getLogger("sim").warning(
                "note: the target %s is not reached without the metric %s; the central test measured %s",
                self._target,
                self._target.name,
                one_line(", ".join(measured)) or "nothing",
            )

    def _fraction(self, accuracy: object, server_round: int) -> float | None:
        if not isinstance(accuracy, int | float | np.number):
            return None
        value = float(accuracy)
        if not 0 <= value <= MOST_ACCURACY:
            raise RunError(
                f"round {server_round}: the strategy's evaluate returned accuracy {value}; a fraction 0–1 is expected"
            )
        return value

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
            parameters, aggregated = aggregate_fit(self._built, server_round, results, proxies)
        self._accept(parameters, server_round, results)
        self._metrics += metric_records(results.succeeded, "fit", server_round, aggregated)
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
        complete = [(proxy, FitIns(ins.parameters, {**settings, **ins.config})) for proxy, ins in instructions]
        return with_stragglers(complete, self.config, server_round)

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
            measured, aggregated = aggregate_evaluate(self._strategy, server_round, results, proxies)
        self._metrics += metric_records(measured, "evaluate", server_round, aggregated)
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
            global_tensors=self._tensors,
            weights=self._weights,
            view=self._view,
            states=self._states,
            sizes=self._sizes,
            chunk_size=self.config.vectorized_clients,
            summed=phase == "fit" and self._built.averages,
        )
        collected = PhaseResults()
        for chunk_result in self._dispatcher.execute(chunks):
            collected.spans += chunk_result.spans
            collected.total.fold(chunk_result.total)
            for result in chunk_result.results:
                if result.error is None and result.state is not None:
                    self._keep_state(result.client_id, result.state)
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

    def _keep_state(self, client_id: int, state: RecordDict) -> None:
        if any(state.values()):
            self._states[client_id] = state
        else:
            self._states.pop(client_id, None)

    def _accept(self, parameters: Parameters | None, server_round: int, results: PhaseResults | None = None) -> None:
        """Make ``parameters`` the global ones, in the model's dtypes (FedAdam returns float64).

        Args:
            results: of the clients from which they were made.
        """
        if parameters is None:
            raise RunError(f"round {server_round}: the strategy returned no weights")
        weights = self._view.whole(parameters_to_ndarrays(parameters), self._weights, server_round)
        if results is not None:
            weights = self._view.with_untrained(weights, self._weights, results.succeeded, results.total)
        try:
            check_finite(weights, self._weights, self._names)
        except NonFiniteError as error:
            raise RunError(
                f"round {server_round}: --strategy {self.config.strategy} made weights that are no numbers: {error}"
            ) from error
        self._set_weights(weights)

    def _set_weights(self, weights: NDArrays) -> None:
        self._weights = weights
        self._parameters = ndarrays_to_parameters(self._view.of(weights))
        self._tensors = tuple(self._parameters.tensors)

    def _evaluate_fn(
        self, server_round: int, visible: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        """The central test as strategies call it, with the arrays that they see."""
        return self._tested(self._view.whole(visible, self._weights, server_round), server_round)

    def _tested(self, weights: NDArrays, server_round: int) -> tuple[float, dict[str, Scalar]]:
        """Return what the central test measures: (NaN, {}) where there is none."""
        if self._central_test is None:
            return math.nan, {}
        self._num_tested = self._num_test_examples
        return self._central_test(server_round, weights, {})

    @contextmanager
    def _calling(self, server_round: int, call: str) -> Iterator[None]:
        """Seed a call of the strategy (or of the central test), and name it if it raises."""
        try:
            with restored_settings(), seeded(self.config.seed, Purpose.STRATEGY, server_round, _CALLS.index(call)):
                yield
        except (RunError, KeyboardInterrupt):
            raise
        except BaseException as error:
            log(ERROR, "%s, round %s:\n%s", call, server_round, many_lines(traceback.format_exc()))
            raise RunError(f"round {server_round}: {call} raised {described(error)}") from error
        if self._parameters is not None and tuple(self._parameters.tensors) != self._tensors:
            # The strategy wrote into the parameters that it was given, which are the server's own.
            self._accept(self._parameters, server_round)


def _stop(result: ClientResult, phase: Phase, server_round: int, more: str = "") -> NoReturn:
    if "Expected more than 1 value per channel" in (result.error or ""):
        more += "; its last batch is a single example, which BatchNorm cannot take: another --batch-size avoids that"
    raise ClientError(
        f"client {result.client_id} raised in round {server_round} ({phase}): {result.error}{more}"
    ) from result.cause
