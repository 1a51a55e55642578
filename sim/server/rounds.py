"""The round loop over any Flower strategy: sampling, failures, timing and records, the same in every engine."""

from __future__ import annotations

import itertools
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from logging import ERROR, INFO
from typing import Any

import numpy as np
from flwr.common import FitIns, NDArrays, RecordDict, Scalar, log
from flwr.server import History
from flwr.server.client_manager import ClientManager

from sim.client.runtime import ClientSpec
from sim.engine.aggregation import NonFiniteError, check_finite
from sim.engine.central_evaluation import CentralTest
from sim.engine.interface import MOST_ACCURACY, Chunk, Dispatcher
from sim.errors import RunError, UsageError, described, many_lines, one_line
from sim.metrics import Target, spelled
from sim.process_settings import restored_settings
from sim.run_folder.checkpoint import Checkpoint
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord
from sim.seeds import Purpose, seeded
from sim.server import strategy
from sim.server.adapter import CALLS, StrategyAdapter
from sim.server.async_rounds import AsyncRounds
from sim.server.attacks import Attackers
from sim.server.dropout import dropout_record, dropouts, without
from sim.server.executor import Executor
from sim.server.fit_ins_strategies import FitInsAdapter
from sim.server.make_adapter import adapter_of
from sim.server.prepared_run import Prepared
from sim.server.privacy import Privacy
from sim.server.results import (
    PhaseResults,
    bytes_of,
    client_quantiles,
    metric_records,
    nothing_trained,
    numbers_of,
    test_records,
    totals,
    weighted_mean,
)
from sim.server.round_schedule import RoundSchedule
from sim.server.server_variables import ServerVariables
from sim.server.traffic import Traffic
from sim.server.validation import Validation
from sim.server.virtual_clients import Call, VirtualClientProxy, virtual_clients
from sim.server.virtual_rounds import Planned, VirtualRounds, clock_of, not_used, with_virtual_time


@dataclass(frozen=True)
class FinishedRound:
    """A round that is over, with all that a checkpoint of it needs.

    Attributes:
        best: the best round by the validation so far, and its weights; None without one.
        variables: what the server's code keeps outside of the strategy.
    """

    record: RoundRecord
    clients: list[ClientRecord]
    weights: NDArrays
    strategy: Any
    client_states: dict[int, RecordDict]
    metrics: list[MetricRecord] = field(default_factory=list)
    state_rounds: dict[int, int] = field(default_factory=dict)
    best: tuple[int, NDArrays] | None = None
    variables: ServerVariables | None = None


_STREAMS_PER_ATTEMPT = 100
_MOST_ASKED = 2**20  # of clients in a round, by the strategy itself


@dataclass(frozen=True)
class _Trained:
    """The clients that have trained in a round.

    Attributes:
        records: of all clients that were asked, also of those that are not among the results.
        begin, end: of the execution, in seconds of ``time.perf_counter()``.
        virtual_seconds: when the round ends; None without devices.
    """

    results: PhaseResults
    records: list[ClientRecord]
    begin: float
    end: float
    virtual_seconds: float | None = None
    schedule: RoundSchedule | None = None


OnRound = Callable[[FinishedRound], None]
_Step = Callable[[RoundRecord], tuple[RoundRecord, list[ClientRecord]]]


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
        adapter: StrategyAdapter | None = None,
        executor: Executor | None = None,
        history: History | None = None,
        *,
        variables: ServerVariables | None = None,
        counts_bytes: bool = True,
        before_round: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            on_round: called after each round.
            client_manager: the clients that a strategy can sample; all virtual clients of the config for None.
            adapter: of the strategy; None for the one that the config names.
            executor: calls the clients; None for one of this loop's own.
            history: is filled as Flower's own loop fills it.
            variables: what the server's code keeps outside of the strategy; for None, what the strategy's own does.
            counts_bytes: clients are simulated, and so is what they send.
            before_round: called before each round with its number.
        """
        config = prepared.config
        self.config = config
        self.history = history or History()
        self._owns_executor = executor is None
        if executor is None:
            traffic = Traffic(prepared) if counts_bytes else None
            executor = Executor(dispatcher, on_client_error=config.on_client_error, traffic=traffic)
        self._executor = executor
        self._dispatcher = dispatcher
        self._on_round, self._before_round = on_round, before_round
        slices = prepared.test_slices
        self._central_test = CentralTest(dispatcher, slices) if slices else None
        self._validation = Validation(prepared, dispatcher) if len(prepared.partition.validation) else None
        self._server_lr = 1.0  # unless the strategy says otherwise
        self._clock: VirtualRounds | None = None
        self._asynchronous: AsyncRounds | None = None
        if prepared.strategy is not None and config.is_asynchronous:
            self._asynchronous = AsyncRounds(prepared, self._executor)
            client_manager = virtual_clients(config.num_clients)
        elif prepared.strategy is not None and prepared.strategy.has_clock:
            self._clock = clock_of(prepared)
            client_manager = virtual_clients(config.num_clients, self._clock.clients)
        elif client_manager is None:
            has_algorithm = isinstance(prepared.spec, ClientSpec) and prepared.spec.algorithm is not None
            # A call would write the state that a client keeps for its next round.
            proxy_of = VirtualClientProxy if has_algorithm or prepared.spec.keeps_state else self._proxy
            client_manager = virtual_clients(config.num_clients, prepared.objects.client_manager, proxy_of)
        self._adapter = adapter or self._built(prepared, client_manager)
        self._variables = variables or ServerVariables([self._adapter.strategy, client_manager])
        algorithm = None if prepared.strategy is None else prepared.strategy.algorithm
        self._privacy = Privacy(config, self._adapter.strategy, algorithm)
        self._layout, self._names = prepared.layout, prepared.layout.names
        self._attackers = Attackers.of(config, prepared.layout)
        self._target, self._is_reached = Target.of(vars(config)), False
        self._num_test_examples = 0 if prepared.dataset is None else prepared.dataset.num_test_examples
        self._has_noted_skipped = False
        self._num_tested: int | None = None  # examples of the central test in the present round
        self._asked: list[ClientRecord] = []  # what the strategy has asked of clients by itself in the present round
        self._metrics: list[MetricRecord] = []  # of the present round
        self._weights = prepared.initial_weights
        self._next_round = 0
        self._adapter.set_weights(self._weights)
        if prepared.resume_point is not None:
            self._restore(prepared.resume_point.checkpoint)
            self._privacy.restore(prepared.resume_point.run, prepared.resume_point.checkpoint.round)
            self._is_reached = prepared.resume_point.run.reached(self._target)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = self._kept()
        self._executor.states = checkpoint.restore(state)
        if self._clock is not None:
            self._clock.restore(state["clock"])
        if self._asynchronous is not None:
            self._asynchronous.restore(state["clock"], checkpoint.round)
        if self._validation is not None:
            self._validation.restore(state["validation"], checkpoint.weights)
        self._executor.state_rounds = dict(checkpoint.state_rounds)
        self._adapter.restore(state)
        self._variables.restore(checkpoint.kept_variables(self._variables.present()))
        self._set_weights(checkpoint.weights)
        self._next_round = checkpoint.round + 1

    def _built(self, prepared: Prepared, client_manager: ClientManager) -> StrategyAdapter:
        config, given = prepared.config, prepared.objects.strategy
        try:
            evaluate_fn = self._evaluate_fn if self._central_test is not None else None
            built = strategy.build(config, prepared.initial_weights, prepared.layout, evaluate_fn, given)
        except UsageError as error:  # it was built before, by prepare
            raise RunError(f"the strategy cannot be built a second time: {error}") from error
        self._view, self._server_lr = built.view, built.server_lr
        return adapter_of(prepared, built, client_manager)

    def _proxy(self, client_id: int) -> VirtualClientProxy:
        return VirtualClientProxy(client_id, self._answer)

    def _answer(self, client_id: int, ins: Call) -> Any:
        """Have a client do at once what the strategy asks of it by itself.

        Raises:
            RuntimeError: the client raised, and the run goes on without clients that do; or a flag of the run would
                not reach its training.
        """
        config = self.config
        ignored = {"--attack": config.attack, "--client-dropout": config.client_dropout, "--compress": config.compress}
        flag = next((flag for flag, value in ignored.items() if value), None)
        if flag is not None and isinstance(ins, FitIns):
            raise RuntimeError(f"client {client_id} cannot be asked to train here, where {flag} would not reach it")
        adapter, server_round = self._adapter, self._next_round
        assert isinstance(adapter, FitInsAdapter), "strategies of the newer form have no proxies"
        batch = server_round * _MOST_ASKED + len(self._asked)  # the same in a resumed run
        results = self._executor.execute_alone(
            adapter.asked(server_round, client_id, ins, self._executor.states.get(client_id), batch)
        )
        self._asked += results.records
        (result,) = results.clients
        if result.error is not None:
            raise RuntimeError(f"client {client_id} raised {one_line(result.error)}")
        return adapter.answer(ins, result)

    @property
    def executor(self) -> Executor:
        """What calls the clients, and keeps their states."""
        return self._executor

    @property
    def weights(self) -> NDArrays:
        """The global weights."""
        return self._weights

    @property
    def last_round(self) -> int:
        """The last round that is done; −1 before the first."""
        return self._next_round - 1

    def _kept(self) -> Any:
        """Return what belongs to a checkpoint, see ``BuiltStrategy.kept``."""
        kept, clock, validation = self._adapter.strategy, self._clock or self._asynchronous, self._validation
        others = {} if clock is None else {"clock": clock.state()}
        if validation is not None:
            others["validation"] = validation.state(self._next_round)
        return {**(kept if isinstance(kept, dict) else {"strategy": kept}), **others} if others else kept

    def run(self) -> None:
        """Test the initial weights, then train for the rounds of the config, or until the target is reached, or
        until the validation was not better for as long as the patience of the config.

        Raises:
            ClientError: a client raised, and ``on_client_error`` is stop, or no client is left.
            RunError: the strategy gave no clients or no weights.
        """
        try:
            if self._next_round == 0:
                with self._calling(0, "initial"):
                    initial = self._adapter.initial()
                self._accept(initial, 0)
                if self._asynchronous is not None:
                    self._asynchronous.set_weights(0, self._weights)
            for server_round in range(self._next_round, self.config.num_rounds + 1):
                if self._is_reached or (self._validation is not None and self._validation.is_over):
                    break
                self._dispatcher.wait_until_ready()
                log(INFO, "[ROUND %s]", server_round)
                if self._before_round is not None:
                    self._before_round(server_round)
                record, clients = self._round(server_round)
                finished = FinishedRound(
                    record,
                    clients,
                    self._weights,
                    self._kept(),
                    self._executor.states,
                    self._metrics,
                    self._executor.state_rounds,
                    None if self._validation is None else self._validation.best_weights,
                    self._variables,
                )
                self._on_round(finished)
                self._next_round = server_round + 1
                if server_round == 0:
                    self._check_target(record)
                if self._target is not None:
                    self._is_reached = self._target.is_reached_by(record.tested(self._target.name))
            if self._asynchronous is not None:
                self._asynchronous.finish()
        finally:
            if self._owns_executor:
                self._executor.log_summary()

    def _round(self, server_round: int) -> tuple[RoundRecord, list[ClientRecord]]:
        clock = self._clock or self._asynchronous
        record = RoundRecord(server_round, virtual_seconds=None if clock is None else clock.seconds)
        clients: list[ClientRecord] = []
        self._metrics, self._num_tested = [], None
        start = time.perf_counter()
        if server_round > 0:
            record, clients = self._fit(record)
        steps: list[_Step] = []
        if self._is_due(server_round, self.config.test_every):
            steps.append(self._test)
            if self._validation is not None:
                steps.append(self._validate)
        nobody_evaluates = self._asynchronous is not None and not self.config.num_evaluate_clients
        if server_round > 0 and self._is_due(server_round, self.config.evaluate_every) and not nobody_evaluates:
            steps.append(self._evaluate)
        if steps and self._asynchronous is not None:
            self._asynchronous.finish()
        for step in reversed(steps) if self._adapter.tests_last else steps:
            record, more = step(record)
            clients = [*clients, *more]
        clients, self._asked = [*self._asked, *clients], []
        return replace(
            record,
            **totals(clients, drops=self.config.client_dropout > 0),
            **bytes_of(clients),
            round_seconds=time.perf_counter() - start,
        ), clients

    def _is_due(self, server_round: int, every: int) -> bool:
        return server_round % every == 0 or server_round == self.config.num_rounds

    def _test(self, record: RoundRecord) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round = record.round
        start = time.perf_counter()
        with self._calling(server_round, "evaluate"):
            own = self._adapter.evaluate(server_round)
            loss, metrics = own or self._tested(self._weights, server_round)
        if own is not None:
            if loss is not None:
                self.history.add_loss_centralized(server_round, loss)
            self.history.add_metrics_centralized(server_round, dict(metrics))
        loss = math.nan if loss is None else float(loss)
        accuracy, numbers = self._accuracy_of(metrics), numbers_of(metrics)
        self._metrics += test_records(server_round, "test", self._num_tested, loss, numbers)
        return replace(
            record,
            test_loss=None if math.isnan(loss) else loss,
            test_accuracy=self._fraction(accuracy, server_round),
            test_seconds=time.perf_counter() - start,
            test_metrics={name: value for name, value in numbers.items() if name != "loss"},
        ), []

    def _validate(self, record: RoundRecord) -> tuple[RoundRecord, list[ClientRecord]]:
        assert self._validation is not None
        record, rows = self._validation.measure(record, self._weights)
        self._metrics += rows
        return record, []

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

    def _accuracy_of(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the accuracy of a central test; that of a Flower program may be spelled and scaled otherwise."""
        if not self.config.has_own_data:
            value = metrics.get("accuracy")
            return float(value) if isinstance(value, int | float | np.number) else None
        measured = spelled(metrics, "accuracy")
        if measured is None:
            return None
        fraction = measured / (100 if self.config.accuracy_in_percent else 1)
        return fraction if 0 <= fraction <= MOST_ACCURACY else None

    def _fraction(self, value: float | None, server_round: int) -> float | None:
        if value is None:
            return None
        if not 0 <= value <= MOST_ACCURACY:
            raise RunError(
                f"round {server_round}: the strategy's evaluate returned accuracy {value}; a fraction 0–1 is expected"
            )
        return value

    def _fit(self, record: RoundRecord) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round, start = record.round, time.perf_counter()
        trained = self._version(server_round) if self._asynchronous is not None else self._trained(server_round)
        results, succeeded = trained.results, trained.results.succeeded
        if self._attackers is not None:
            self._attackers.forge(server_round, self._weights, succeeded)
        metrics: Mapping[str, Any] = {}
        if succeeded or self._adapter.may_skip:
            with self._calling(server_round, "aggregate_fit"):
                weights, metrics = self._adapter.aggregate_fit(server_round, results)
                if self._clock is not None:
                    self._clock.observe(server_round, trained.schedule, succeeded)
            if weights is not None:
                weights = self._stepped(weights)
                own_clients = self.config.client is not None or self.config.has_own_data
                if server_round == 1 and self._layout.is_untrained(self._weights, weights):
                    logging.getLogger("sim").warning(nothing_trained(own_clients=own_clients))
            if weights is not None or not self._adapter.may_skip:
                self._accept(weights, server_round)
            else:
                self._note_skipped(server_round, results, trained.records)
        if self._asynchronous is not None:
            self._asynchronous.set_weights(server_round, self._weights)
        self.history.add_metrics_distributed_fit(server_round, dict(metrics))
        aggregated = {**numbers_of(metrics), **self._privacy.spent(server_round, succeeded)}
        self._metrics += metric_records(succeeded, "fit", server_round, aggregated)
        return replace(
            record,
            num_clients=len(succeeded),
            num_failures=sum(client.status == "failed" for client in trained.records),
            train_loss=weighted_mean([(r.num_examples, r.loss) for r in succeeded]),
            fit_seconds=trained.end - trained.begin,
            **results.parts(trained.begin, trained.end),
            aggregate_seconds=(trained.begin - start) + (time.perf_counter() - trained.end),
            virtual_seconds=trained.virtual_seconds,
        ), trained.records

    def _note_skipped(self, server_round: int, results: PhaseResults, records: Sequence[ClientRecord]) -> None:
        """Say once that a strategy makes no new weights in a round, which may be meant."""
        if self._has_noted_skipped or (records and not results.clients):  # all clients dropped out, as was asked for
            return
        self._has_noted_skipped = True
        what = "returned no weights" if results.clients else "chose no clients"
        failures = f" ({len(results.failures)} of its clients failed)" if results.failures else ""
        logging.getLogger("sim").warning(
            "note: round %d: the strategy %s%s, so that the weights stay as they were", server_round, what, failures
        )

    def _stepped(self, made: NDArrays) -> NDArrays:
        """Return w + η · (w' − w) for the weights w' that the strategy has made, with the learning rate of the server.

        What is not trained is as the strategy made it.
        """
        rate, layout = self._server_lr, self._layout
        if rate == 1 or len(made) != len(self._weights):
            return made
        stepped = list(made)
        for position in layout.trained if layout.is_known else range(len(made)):
            before, after = self._weights[position], made[position]
            if after.dtype.kind == "f" and before.shape == after.shape:
                with np.errstate(invalid="ignore"):  # a mask of −∞ stays as it is
                    stepped[position] = np.where(before == after, after, before + rate * (after - before))
        for position, first in layout.tied.items():
            stepped[position] = stepped[first]
        return stepped

    def _version(self, server_round: int) -> _Trained:
        """Have clients train until there are enough updates for a new version of an asynchronous run."""
        assert self._asynchronous is not None
        begin = time.perf_counter()
        results, records = self._asynchronous.execute(server_round)
        return _Trained(results, records, begin, time.perf_counter(), self._asynchronous.seconds)

    def _trained(self, server_round: int) -> _Trained:
        """Have the clients that the strategy chooses train."""
        others: list[ClientRecord] = []  # of clients that are not among the results
        chunks, schedule = self._begin_fit(server_round, others)
        begin, results = time.perf_counter(), PhaseResults()
        while chunks and not (results := self._executor.execute("fit", server_round, chunks)).succeeded:
            # Every client was lost: begin the round anew with those that come.
            others, results = [*(each for each in others if each.status != "dropped"), *results.records], PhaseResults()
            self._dispatcher.wait_until_ready()
            chunks, schedule = self._begin_fit(server_round, others)
        end = time.perf_counter()
        if schedule is None:
            now = None if self._clock is None else self._clock.seconds
            return _Trained(results, [*others, *results.records], begin, end, now)
        records = with_virtual_time(results.records, schedule.participations)
        return _Trained(results, [*others, *records], begin, end, schedule.end, schedule)

    def _begin_fit(self, server_round: int, others: list[ClientRecord]) -> tuple[Sequence[Chunk], RoundSchedule | None]:
        """Have the strategy choose clients; repeat that where too few of them finish in virtual time.

        Args:
            others: gets the records of the clients that do not finish.
        """
        clock = self._clock
        for attempt in itertools.count():
            if clock is not None:
                clock.begin(server_round, attempt)
            chunks = self._configure_fit(server_round, attempt)
            dropped = self._dropouts(chunks, server_round, attempt)
            planned = Planned(list(chunks), None) if clock is None else clock.planned(chunks, dropped)
            if clock is None or planned.schedule is None:
                asked = [(chunk, task.client_id) for chunk in chunks for task in chunk.tasks]
                others += [self._dropout_record(chunk, client_id) for chunk, client_id in asked if client_id in dropped]
                return without(planned.chunks, dropped), None
            is_void = clock.is_void(planned)
            others += not_used(planned, server_round, is_void=is_void)
            if not is_void:
                return planned.chunks, planned.schedule
        raise AssertionError("the clock gives up before")

    def _dropouts(self, chunks: Sequence[Chunk], server_round: int, attempt: int = 0) -> frozenset[int]:
        client_ids = (task.client_id for chunk in chunks for task in chunk.tasks)
        return dropouts(self.config, server_round, client_ids, attempt)

    def _dropout_record(self, chunk: Chunk, client_id: int) -> ClientRecord:
        traffic = self._executor.traffic
        return dropout_record(chunk.server_round, client_id, None if traffic is None else traffic.bytes_down(chunk))

    def _configure_fit(self, server_round: int, attempt: int = 0) -> list[Chunk]:
        with self._calling(server_round, "configure_fit", attempt):
            chunks = self._adapter.configure("fit", server_round, self._executor.states)
        if not chunks and not self._adapter.may_skip:
            raise RunError(f"round {server_round}: the strategy chose no clients")
        return chunks

    def _evaluate(self, record: RoundRecord) -> tuple[RoundRecord, list[ClientRecord]]:
        server_round = record.round
        start = time.perf_counter()
        with self._calling(server_round, "configure_evaluate"):
            chunks = self._adapter.configure("evaluate", server_round, self._executor.states)
        if not chunks and not self._adapter.may_skip:
            return record, []
        results = self._executor.execute("evaluate", server_round, chunks) if chunks else PhaseResults()
        with self._calling(server_round, "aggregate_evaluate"):
            measured, loss, metrics = self._adapter.aggregate_evaluate(server_round, results)
        if loss is not None:
            self.history.add_loss_distributed(server_round, loss)
            self.history.add_metrics_distributed(server_round, dict(metrics))
        self._metrics += metric_records(measured, "evaluate", server_round, numbers_of(metrics))
        return replace(
            record,
            num_failures=(record.num_failures or 0) + len(results.failures),
            eval_loss=weighted_mean([(r.num_examples, r.loss) for r in measured]),
            eval_accuracy=weighted_mean([(r.num_examples, r.accuracy) for r in measured]),
            **client_quantiles([r.accuracy for r in measured if r.accuracy is not None]),
            eval_seconds=time.perf_counter() - start if chunks else None,
        ), results.records

    def _accept(self, weights: NDArrays | None, server_round: int) -> None:
        """Make ``weights`` the global ones, if all are numbers."""
        if weights is None:
            raise RunError(f"round {server_round}: the strategy returned no weights")
        try:
            check_finite(weights, self._weights, self._names)
        except NonFiniteError as error:
            raise RunError(
                f"round {server_round}: --strategy {self.config.strategy} made weights that are no numbers: {error}"
            ) from error
        self._set_weights(weights)

    def _set_weights(self, weights: NDArrays) -> None:
        self._weights = weights
        self._adapter.set_weights(weights)

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
    def _calling(self, server_round: int, call: str, attempt: int = 0) -> Iterator[None]:
        """Seed a call of the strategy (or of the central test), and name it if it raises.

        Args:
            attempt: how often the call was made in this round.
        """
        number = CALLS.index(call)
        stream = number + attempt * _STREAMS_PER_ATTEMPT
        chooses = call.startswith("configure")
        seed = self.config.seed_of_samples if chooses else self.config.seed
        try:
            with restored_settings(), seeded(seed, Purpose.STRATEGY, server_round, stream):
                yield
        except (RunError, KeyboardInterrupt):
            raise
        except BaseException as error:
            name = self._adapter.calls[number]
            log(ERROR, "%s, round %s:\n%s", name, server_round, many_lines(traceback.format_exc()))
            raise RunError(f"round {server_round}: {name} raised {described(error)}") from error
        changed = self._adapter.changed()
        if changed is not None:
            self._accept(changed, server_round)
