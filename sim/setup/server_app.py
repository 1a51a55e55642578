"""Executes a ServerApp in this process: its rounds are those of our own loop, its messages go through the engine."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flwr.common import (
    ArrayRecord,
    ConfigRecord,
    Context,
    GetParametersIns,
    Message,
    MetricRecord,
    NDArrays,
    RecordDict,
    parameters_to_ndarrays,
)
from flwr.server import History, Server, ServerConfig, SimpleClientManager
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy as FitInsStrategy
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from sim import private_names
from sim.client.flower_program import FlowerSpec, node_of
from sim.engine.interface import ClientResult, Dispatcher
from sim.errors import RunError, RunFolderError, SimError, StateError, described, many_lines
from sim.process_settings import restored_settings
from sim.run_folder.records import ClientRecord, Phase, RoundRecord
from sim.run_folder.records import MetricRecord as MetricRow
from sim.seeds import Purpose, seeded
from sim.server import strategy
from sim.server.adapter import StrategyAdapter
from sim.server.executor import Executor
from sim.server.fit_ins_strategies import FitInsAdapter
from sim.server.flower_grid import EngineGrid
from sim.server.message_strategies import MessageAdapter, StartArguments
from sim.server.prepared_run import Prepared
from sim.server.results import PhaseResults, client_quantiles, metric_records, weighted_mean
from sim.server.rounds import FinishedRound, RoundServer
from sim.server.server_variables import ServerVariables
from sim.server.virtual_clients import VirtualClientProxy, virtual_clients
from sim.setup.run_session import Session
from sim.training.weights import WeightLayout


class ServerAppRun:
    """One execution of a ServerApp.

    What its first strategy does is executed, recorded and checkpointed round by round. What it sends through the grid
    by itself is recorded: a round begins with each batch of training messages.
    """

    def __init__(self, prepared: Prepared, dispatcher: Dispatcher, session: Session) -> None:
        self._prepared, self._dispatcher, self._session = prepared, dispatcher, session
        config = prepared.config
        self._executor = Executor(dispatcher, on_client_error=config.on_client_error)
        self._grid = EngineGrid(self._executor, config.num_clients, self._round_of, self._on_batch)
        self._has_started = False  # a strategy of the app
        self._in_rounds = False
        self._own: _OwnRound | None = None
        self._round, self._recorded = 0, -1
        self._group = ""
        self._has_noted = self._has_noted_again = False

    def run(self) -> None:
        """Execute the app.

        Raises:
            RunError: it raised; a client raised, and ``on_client_error`` is stop; or nothing can be measured.
        """
        config, spec = self._prepared.config, self._prepared.spec
        assert isinstance(spec, FlowerSpec)
        private_names.set_task_identity(node_of(-1))
        self._context = Context(1, node_of(-1), {}, RecordDict(), dict(spec.run_config))
        try:
            with (
                private_names.server_app_calls(start=self._start, start_grid=self._start_grid, fit=self._fit),
                restored_settings(),
                seeded(config.seed, Purpose.SERVER_APP),
            ):
                self._prepared.server_app(self._grid, self._context)
                self._grid.pull_messages([])  # what the app has pushed without asking for replies
        except (SimError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error.__context__, SimError):  # the app has put an error of ours into one of its own
                raise error.__context__ from None
            logging.getLogger("flwr").error("the ServerApp raised:\n%s", many_lines(traceback.format_exc()))
            raise RunError(f"the ServerApp raised {described(error)}") from error
        finally:
            self._finish_own_round()
            self._executor.log_summary()
        if not self._has_started and not self._grid.has_sent:
            logging.getLogger("sim").warning("note: the ServerApp ended without a message to any client")

    def _start(
        self,
        flowers: Callable[..., Result],
        used: Strategy,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Execute the rounds of ``Strategy.start``."""
        arguments = StartArguments(
            initial_arrays,
            ConfigRecord() if train_config is None else train_config,
            ConfigRecord() if evaluate_config is None else evaluate_config,
            evaluate_fn,
        )
        if grid is not self._grid or self._has_started:
            self._note_second()
            return flowers(
                used,
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                arguments.train_config,
                arguments.evaluate_config,
                evaluate_fn,
            )
        used.summary()
        config = self._prepared.config
        adapter = MessageAdapter(used, grid, arguments, config.num_clients, self._grid.number)
        self._run_rounds(adapter, adapter.initial(), adapter.names, num_rounds, evaluate_fn)
        return adapter.result

    def _start_grid(
        self,
        flowers: Callable[..., History],
        *,
        grid: Grid,
        server: Server | None = None,
        config: ServerConfig | None = None,
        strategy: FitInsStrategy | None = None,
        client_manager: ClientManager | None = None,
    ) -> History:
        """Execute a ``Server``, whose clients are known before it begins."""
        if self._has_started or grid is not self._grid:
            return flowers(grid=grid, server=server, config=config, strategy=strategy, client_manager=client_manager)
        manager = client_manager if server is None else server.client_manager()
        manager = virtual_clients(self._prepared.config.num_clients, manager, self._proxy)
        used = Server(client_manager=manager, strategy=strategy) if server is None else server
        plan = config or ServerConfig()
        history, _ = used.fit(num_rounds=plan.num_rounds, timeout=plan.round_timeout)
        return history

    def _proxy(self, client_id: int) -> ClientProxy:
        return private_names.client_proxy(client_id, node_of(client_id), self._grid) or VirtualClientProxy(client_id)

    def _fit(
        self, flowers: Callable[..., tuple[History, float]], server: Server, num_rounds: int, timeout: float | None
    ) -> tuple[History, float]:
        """Execute the rounds of ``Server.fit``."""
        if self._has_started:
            self._note_second()
            return flowers(server, num_rounds, timeout)
        if private_names.has_own_rounds(server):
            self._note_not_resumable(f"the server {type(server).__name__}")
            return flowers(server, num_rounds, timeout)
        start = time.perf_counter()
        weights = self._first_weights(server.strategy, server.client_manager())
        names = [f"array_{number}" for number in range(len(weights))]
        config = self._prepared.config
        built = strategy.build(config, weights, WeightLayout.unknown(names), None, server.strategy)
        adapter = FitInsAdapter(built, config, server.client_manager(), (), sends_settings=False, may_skip=True)
        history = self._run_rounds(adapter, weights, names, num_rounds, server, server.client_manager())
        server.parameters = adapter.parameters
        return history, time.perf_counter() - start

    def _first_weights(self, used: FitInsStrategy, manager: ClientManager) -> NDArrays:
        """Return what the strategy begins with, or what a client answers: client 0, or the choice of an own manager.

        Flower's server has its manager sample a client for that, which counts as a turn of one that takes turns.
        """
        parameters = used.initialize_parameters(manager)
        if parameters:
            return parameters_to_ndarrays(parameters)
        compat = private_names.legacy_messages()
        content = compat.getparametersins_to_recorddict(GetParametersIns({}))
        client_id = 0 if type(manager) is SimpleClientManager else int(manager.sample(1)[0].cid)
        (reply,) = self._grid.send_and_receive([Message(content, node_of(client_id), "get_parameters")])
        if reply.has_error():
            raise RunError(f"there are no first weights: get_parameters of client {client_id}: {reply.error.reason}")
        return parameters_to_ndarrays(compat.recorddict_to_getparametersres(reply.content, False).parameters)

    def _run_rounds(
        self, adapter: StrategyAdapter, weights: NDArrays, names: list[str], num_rounds: int, *others: Any
    ) -> History:
        """Execute the rounds of the app's first strategy.

        Args:
            others: objects and functions of the app, which belong to its strategy.
        """
        if self._round > 0:
            self._finish_own_round()
        elif self._prepared.resume_point is not None:
            self._own = None  # what came before the first round is recorded already
        config = self._prepared.config
        prepared = replace(
            self._prepared,
            config=replace(config, num_rounds=config.num_rounds or num_rounds),
            initial_weights=weights,
            layout=WeightLayout.unknown(names),
        )
        self._session.begin(prepared, adapter.strategy)
        self._has_started = self._in_rounds = True
        point = self._prepared.resume_point
        self._round = -1 if point is None else point.checkpoint.round  # before the first round that is executed
        try:
            rounds = RoundServer(
                prepared,
                self._dispatcher,
                self._on_round,
                adapter=adapter,
                executor=self._executor,
                variables=ServerVariables([adapter.strategy, *others, self._context.run_config], self._context.state),
                before_round=self._session.before_round,
            )
            rounds.run()
        except StateError as error:
            raise RunFolderError(f"{self._session.run.path}: does not belong to this strategy: {error}") from error
        finally:
            self._in_rounds = False
        return rounds.history

    def _on_round(self, finished: FinishedRound) -> None:
        self._round = self._recorded = finished.record.round
        own, self._own = self._own, None
        if own is not None:  # what the strategy or the app has asked clients by itself
            clients, metrics = [*own.clients, *finished.clients], [*own.metrics, *finished.metrics]
            finished = replace(finished, clients=clients, metrics=metrics)
        self._session.on_round(finished)

    # What the app sends by itself.

    def _round_of(self, phase: Phase, group_id: str) -> int:
        """Return the round of a batch; one of training begins a round, unless it is of the same group as the last.

        So does any batch whose group has a higher number than that of the round.
        """
        if self._in_rounds:
            return self._round + 1
        is_next = group_id.isdecimal() and self._group.isdecimal() and int(group_id) > int(self._group)
        if is_next or (phase == "fit" and not (group_id and group_id == self._group)):
            self._group = group_id
            self._finish_own_round()
            self._round += 1
            self._session.before_round(self._round)
            if self._round == 1 and not self._has_started:
                self._note_not_resumable("rounds of its own")
        return self._round

    def _on_batch(self, phase: Phase, results: PhaseResults, seconds: float) -> None:
        if self._own is None:
            self._own = _OwnRound(RoundRecord(self._round + 1 if self._in_rounds else self._round))
        is_again = self._own.add(phase, results, seconds)
        if is_again and phase == "evaluate" and not self._has_noted_again:
            self._has_noted_again = True
            logging.getLogger("sim").warning(
                "note: the ServerApp has clients evaluate several times in round %d; rounds.csv has the last of these "
                "evaluations, clients.csv and metrics.csv have all of them",
                self._own.record.round,
            )

    def _finish_own_round(self) -> None:
        own, self._own = self._own, None
        if own is not None and not self._in_rounds:
            record = own.record if own.record.round > self._recorded else None
            self._recorded = own.record.round
            self._session.on_own_round(record, own.clients, own.metrics)

    def _note_not_resumable(self, what: str) -> None:
        if self._has_noted:
            return
        self._has_noted = True
        self._session.keep_no_checkpoints()
        logging.getLogger("sim").warning(
            "note: this run cannot be resumed, because the ServerApp has %s instead of calling Strategy.start", what
        )

    def _note_second(self) -> None:
        logging.getLogger("sim").warning(
            "note: the ServerApp starts a strategy again; its rounds are recorded after those of the first, without "
            "checkpoints"
        )


class _OwnRound:
    """A round that an app makes of its own messages."""

    def __init__(self, record: RoundRecord) -> None:
        self.record = record
        self.clients: list[ClientRecord] = []
        self.metrics: list[MetricRow] = []
        self._done: dict[Phase, dict[int, ClientResult]] = {}  # the last results of each client

    def add(self, phase: Phase, results: PhaseResults, seconds: float) -> bool:
        """Add a batch of messages; return whether a client did the same in this round before.

        An evaluation of such a client is one of another model, of which a mean is not that of the one before.
        """
        record = self.record
        self.clients += results.records
        self.metrics += metric_records(results.succeeded, phase, record.round, {})
        last = {result.client_id: result for result in results.succeeded}
        before = self._done.get(phase, {})
        is_again = len(last) < len(results.succeeded) or not last.keys().isdisjoint(before)
        self._done[phase] = last if is_again and phase == "evaluate" else before | last
        done = self._done[phase].values()
        loss = weighted_mean([(r.num_examples, r.loss) for r in done])
        failures = (record.num_failures or 0) + len(results.failures)
        record = replace(record, num_failures=failures, round_seconds=(record.round_seconds or 0.0) + seconds)
        if phase == "fit":
            fit_seconds = (record.fit_seconds or 0.0) + seconds
            record = replace(record, num_clients=len(done), train_loss=loss, fit_seconds=fit_seconds)
        elif phase == "evaluate":
            record = replace(
                record,
                eval_loss=loss,
                eval_accuracy=weighted_mean([(r.num_examples, r.accuracy) for r in done]),
                **client_quantiles([r.accuracy for r in done if r.accuracy is not None]),
                eval_seconds=(record.eval_seconds or 0.0) + seconds,
            )
        self.record = record
        return is_again
