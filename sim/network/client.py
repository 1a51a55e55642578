"""``sim client``: one client of a server elsewhere, through Flower's ``start_client``.

The only file that uses ``start_client`` (deprecated in Flower 1.13, present in 1.41 and 1.42).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flwr.client
import grpc
from flwr.client import Client
from flwr.common import (
    Array,
    ArrayRecord,
    Code,
    Context,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    RecordDict,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)

from sim.algorithms.by_name import AlgorithmSpec
from sim.client.runtime import ClientSpec
from sim.client.torch_client import fit_settings
from sim.config.fields import flag_of
from sim.config.run_config import RunConfig
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ClientResult, Task
from sim.engine.network import ALGORITHM, DECIDED, LOSS, SECONDS, SHARED
from sim.errors import ConfigError, EngineError, RefusedError, one_line
from sim.network.identity import REFUSED, STOPPED, Identity, prepare_client
from sim.network.options import ClientOptions
from sim.network.probe import wait_for_server
from sim.private_names import is_watch_of_closed_channel
from sim.run_folder.client_states import ClientState, StatesInMemory
from sim.run_folder.log import notes, quiet, say
from sim.run_folder.records import Phase
from sim.setup import dry_run
from sim.setup.prepare import check_device

_OK = Status(Code.OK, "")
_KEPT = "sim.algorithm"  # the record of a context that holds what a client of an algorithm keeps

log = logging.getLogger("sim")


class LastWorker:
    """Keeps the worker of the last call, so that the next call with the same spec finds its model and data ready."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def get(self, spec: ClientSpec, num_clients: int) -> Worker:
        """Return a worker for these clients."""
        if self._worker is None or (self._worker.spec, self._worker.num_clients) != (spec, num_clients):
            self._worker = Worker(spec, num_clients, spec.seed)
        return self._worker


class RemoteClient(Client):
    """Executes the instructions of a server as the worker of a simulation does.

    Seed, augmentation, noise and share of examples for evaluation come from the server with each call, like all
    settings of the training; the examples are the client's own.
    """

    def __init__(
        self,
        spec: ClientSpec,
        identity: Identity,
        context: Context,
        last_worker: LastWorker,
        flags: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            context: its ``state`` is the client's and lasts from call to call.
            flags: settings that this client was given, which are noted where the server's are others.
        """
        self.spec = spec
        self.identity = identity
        self.context = context
        self.closing_message: tuple[str, str] | None = None  # REFUSED or STOPPED, and the server's reason
        self.num_rounds = 0
        self._last_worker = last_worker
        self._flags = flags or {}
        self._was_called = False

    def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:
        """Return the identity of this client; keep the server's closing message, if it sends one."""
        for kind in (REFUSED, STOPPED):
            if kind in ins.config:
                self.closing_message = kind, str(ins.config[kind])
        return GetPropertiesRes(_OK, self.identity.to_properties())

    def fit(self, ins: FitIns) -> FitRes:
        """Train from the given weights; a failure is returned as a status."""
        result = self._execute("fit", ins)
        if result.error is not None:
            nothing = Parameters([], "numpy.ndarray")
            return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, one_line(result.error)), nothing, 0, {})
        self.num_rounds += 1
        parameters = ndarrays_to_parameters(result.weights or [])
        return FitRes(_OK, parameters, result.num_examples, _with_transport_metrics(result))

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        """Evaluate the given weights on the client's own examples; a failure is returned as a status."""
        result = self._execute("evaluate", ins)
        if result.error is not None:
            return EvaluateRes(Status(Code.EVALUATE_NOT_IMPLEMENTED, one_line(result.error)), 0.0, 0, {})
        return EvaluateRes(_OK, result.loss or 0.0, result.num_examples, _with_transport_metrics(result))

    def _note_other_settings(self, config: Mapping[str, Any]) -> None:
        """Log a note for each flag that is another one on the server."""
        decided = json.loads(config.get(DECIDED, "{}"))
        sent = decided | dict(config) | {name: config[key] for name, key in SHARED.items() if key in config}
        for name in sorted(self._flags.keys() & sent.keys() - {"seed"}):  # by which the client finds its examples
            if name == "lr" and sent["server_round"] != 1:  # it may follow a schedule
                continue
            if self._flags[name] != sent[name]:
                message = "note: %s %s of this client is not used: %s comes from the server, and is %s"
                shown = "not given" if sent[name] is None else _in_words(sent[name])
                log.warning(message, flag_of(name), _in_words(self._flags[name]), name, shown)

    def _execute(self, phase: Phase, ins: FitIns | EvaluateIns) -> ClientResult:
        if not self._was_called:
            log.info("client %d takes part with %d examples", self.identity.client_id, self.identity.num_examples)
            self._was_called = True
            self._note_other_settings(ins.config)
        config: dict[str, Any] = dict(ins.config)
        shared = {name: config.pop(key) for name, key in SHARED.items()}
        server_round = int(config["server_round"])
        config.pop(DECIDED, None)
        text = config.pop(ALGORITHM, None)
        algorithm = None if text is None else AlgorithmSpec.from_text(str(text))
        client_id = self.identity.client_id
        kept = self.context.state.pop(_KEPT, None)
        task = Task(client_id, config, self.context.state, state_round=None if kept is None else 0)
        chunk = Chunk(phase, server_round, [task], parameters_to_ndarrays(ins.parameters), summed=False)
        spec = replace(self.spec, algorithm=algorithm, **shared)
        worker = self._last_worker.get(spec, self.identity.num_clients)
        states = StatesInMemory({} if kept is None else {(client_id, 0): _state_in(kept)})
        worker.torch_runtime.states = states
        (result,) = worker.run(chunk).results
        if result.state is not None:
            self.context.state = result.state
        if result.wrote_state:
            kept = _record_of(states.read(client_id, server_round))
        if kept is not None:
            self.context.state[_KEPT] = kept
        if result.error is not None:
            log.error("round %d: %s failed: %s\n%s", server_round, phase, one_line(result.error), result.traceback)
        else:
            loss = "" if result.loss is None else f" · loss {result.loss:.4f}"
            log.info("round %d · %s%s · %.1f s", server_round, phase, loss, result.seconds)
        return result


def _record_of(state: ClientState) -> ArrayRecord:
    """Return what a client of an algorithm keeps, as a record of its context."""
    return ArrayRecord(
        {f"{name}.{i}": Array(array) for name, arrays in state.items() for i, array in enumerate(arrays)}
    )


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return " ".join(f"{key}={each}" for key, each in value.items()) or "not given"


def _state_in(record: Any) -> ClientState:
    state: ClientState = {}
    for key, array in record.items():  # in the order in which they were kept
        state.setdefault(key.rpartition(".")[0], []).append(array.numpy())
    return state


def join(config: RunConfig, options: ClientOptions, flags: Mapping[str, Any] | None = None) -> int:
    """Be client ``options.client_id`` of the server at ``options.address`` until the server ends.

    Args:
        flags: settings that were given for this client; a note names those for which the server has another value.

    Returns:
        The number of rounds in which the client trained.

    Raises:
        UsageError: config, data, address or certificates do not work, or the server refuses this client.
        EngineError: there is no server, it died, or it stopped early.
    """
    start_client = getattr(flwr.client, "start_client", None)
    if start_client is None:
        raise ConfigError("sim client: this version of Flower no longer has start_client; install flwr 1.42")
    client_id = options.client_id
    if client_id is None:
        raise ConfigError("--client-id is missing: must be from 0 to num_clients - 1")
    options.resolve()
    check_device(config)
    program = prepare_client(config)
    last = program.partition.num_clients - 1  # which the data or the partitioner may have decided
    if client_id > last:
        raise ConfigError(f"--client-id {client_id}: must be from 0 to num_clients - 1 = {last}")
    found = dry_run.check_user_code(program.spec, program.initial_weights, fit_settings(config, 1))
    context = Context(0, client_id, {}, RecordDict(), {})
    client = RemoteClient(program.spec, program.identity(client_id), context, LastWorker(), flags)
    # The probe connected directly, so gRPC must not use a proxy either.
    os.environ["no_grpc_proxy"] = options.host  # noqa: SIM112 - the spelling that gRPC reads
    with notes(), quiet("flwr", show=config.verbose):
        say(found.notes)
        authority = wait_for_server(options)
        log.info("client %d has found the server at %s and waits to be called", client_id, options.address)
        _expect_closed_channel()
        try:
            start_client(server_address=options.address, client=client, root_certificates=authority)
        except (grpc.RpcError, StopIteration) as error:
            if client.closing_message is None:
                detail = error.details() if isinstance(error, grpc.Call) else "the connection ended"
                raise EngineError(f"--address {options.address}: the server is gone: {detail}") from None
    if client.closing_message is not None:
        kind, reason = client.closing_message
        raise RefusedError(reason) if kind == REFUSED else EngineError(reason)
    return client.num_rounds


def _expect_closed_channel() -> None:
    """Let gRPC's thread that watches the connection find it closed without a traceback on the screen.

    ``start_client`` closes its channel while that thread may be about to look at it, and gRPC then raises an error that
    nobody can act upon. Errors of all other threads are reported as before.
    """
    report = threading.excepthook

    def report_others(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or not is_watch_of_closed_channel(args.exc_value):
            report(args)

    threading.excepthook = report_others


def _with_transport_metrics(result: ClientResult) -> dict[str, Scalar]:
    exact: dict[str, Scalar] = {} if result.loss is None else {LOSS: result.loss}
    return {**result.metrics, **exact, SECONDS: result.seconds}
