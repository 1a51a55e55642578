"""``sim client``: Flower's ``start_client`` with one client of the run.

The only file that touches ``start_client`` (deprecated in Flower 1.13, working in 1.41 and 1.42).
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from flwr.client import Client, start_client
from flwr.common import (
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

from sim.client.runtime import ClientSpec, get_weights, workbench
from sim.config.run_config import RunConfig
from sim.engine.contract import Chunk, ClientResult, Task
from sim.engine.remote import LOSS, SECONDS, SHARED
from sim.engine.worker import Worker
from sim.errors import ConfigError, EngineError, RefusedError
from sim.network.identity import REFUSED, STOPPED, Identity, introduce
from sim.network.options import ClientOptions
from sim.network.probe import wait_for_server
from sim.run_folder.log import notes, quiet
from sim.run_folder.records import Phase
from sim.setup import dry_run
from sim.setup.prepare import check_device, fit_config

_OK = Status(Code.OK, "")

log = logging.getLogger("sim")


class RemoteClient(Client):
    """Makes the client of its partition with ``client_fn`` for each call, as a simulation does.

    Seed, augmentation and share of examples for evaluation come from the server with each call, as all that it
    trains with; the examples are its own.
    """

    def __init__(self, program: ClientSpec, identity: Identity, own: Context) -> None:
        """
        Args:
            own: whose ``state`` is the client's, which lasts from call to call.
        """
        self.program = program
        self.identity = identity
        self.own = own
        self.farewell: tuple[str, str] | None = None
        self.num_rounds = 0
        self._told = False

    def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:
        """Say who this is; note if the server says goodbye."""
        for kind in (REFUSED, STOPPED):
            if kind in ins.config:
                self.farewell = kind, str(ins.config[kind])
        return GetPropertiesRes(_OK, self.identity.to_properties())

    def fit(self, ins: FitIns) -> FitRes:
        """Train from the given weights; a failure is an answer, too."""
        outcome = self._execute("fit", ins)
        if outcome.error is not None:
            nothing = Parameters([], "numpy.ndarray")
            return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, outcome.error), nothing, 0, {})
        self.num_rounds += 1
        parameters = ndarrays_to_parameters(outcome.weights or [])
        return FitRes(_OK, parameters, outcome.num_examples, _timed(outcome))

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        """Evaluate the given weights on the client's own examples."""
        outcome = self._execute("evaluate", ins)
        if outcome.error is not None:
            return EvaluateRes(Status(Code.EVALUATE_NOT_IMPLEMENTED, outcome.error), 0.0, 0, {})
        return EvaluateRes(_OK, outcome.loss or 0.0, outcome.num_examples, _timed(outcome))

    def _execute(self, phase: Phase, ins: FitIns | EvaluateIns) -> ClientResult:
        if not self._told:
            log.info("client %d takes part with %d examples", self.identity.client_id, self.identity.num_examples)
            self._told = True
        config: dict[str, Any] = dict(ins.config)
        shared = {name: config.pop(key) for name, key in SHARED.items()}
        program, server_round = replace(self.program, **shared), int(config["server_round"])
        task = Task(self.identity.client_id, config, self.own.state)
        chunk = Chunk(phase, server_round, [task], parameters_to_ndarrays(ins.parameters), summed=False)
        worker = Worker(program, self.identity.num_clients, program.seed)
        (outcome,) = worker.run(chunk).outcomes
        if outcome.state is not None:
            self.own.state = outcome.state
        _make_sendable(outcome)
        if outcome.error is not None:
            log.error("round %d: %s failed: %s\n%s", server_round, phase, outcome.error, outcome.traceback)
        else:
            loss = "" if outcome.loss is None else f" · loss {outcome.loss:.4f}"
            log.info("round %d · %s%s · %.1f s", server_round, phase, loss, outcome.seconds)
        return outcome


def _make_sendable(outcome: ClientResult) -> None:
    """Turn numpy's numbers among the metrics into Python's; what cannot travel is the client's failure."""
    metrics = {k: v.item() if isinstance(v, np.generic) else v for k, v in outcome.metrics.items()}
    unfit = [f"{k} is {type(v).__name__}" for k, v in metrics.items() if type(v) not in (bool, int, float, str, bytes)]
    if unfit:
        outcome.error = f"metrics must be bool, int, float, str or bytes to be sent: {', '.join(unfit)}"
    outcome.metrics = metrics
    loss = metrics.get("loss")
    if outcome.loss is None and isinstance(loss, float):
        outcome.loss = loss


def _timed(outcome: ClientResult) -> dict[str, Scalar]:
    exact: dict[str, Scalar] = {} if outcome.loss is None else {LOSS: outcome.loss}
    return {**outcome.metrics, **exact, SECONDS: outcome.seconds}


def join(config: RunConfig, options: ClientOptions) -> int:
    """Be client ``options.client_id`` of the server at ``options.address`` until it ends.

    Returns:
        The number of rounds in which it trained.

    Raises:
        UsageError: config, data, address or certificates do not work, or the server refuses this client.
        EngineError: there is no server, it died, or it stopped early.
    """
    client_id = options.client_id
    if client_id is None or client_id >= config.num_clients:
        raise ConfigError(
            f"--client-id {'is missing' if client_id is None else client_id}: must be from 0 to "
            f"--num-clients - 1 = {config.num_clients - 1}"
        )
    options.resolve()
    check_device(config)
    member = introduce(config)
    program = member.program
    dry_run.check_user_code(workbench(program), get_weights(workbench(program).net), fit_config(config, 1))
    authority = wait_for_server(options)
    client = RemoteClient(program, member.identity(client_id), Context(0, client_id, {}, RecordDict(), {}))
    # The probe was direct, and a server of this kind is behind no proxy.
    os.environ["no_grpc_proxy"] = options.host  # noqa: SIM112 - so gRPC reads it
    with notes(), quiet("flwr", show=config.verbose):
        try:
            start_client(server_address=options.address, client=client, root_certificates=authority)
        except (grpc.RpcError, StopIteration) as error:
            if client.farewell is None:
                detail = error.details() if isinstance(error, grpc.Call) else "the connection ended"
                raise EngineError(f"--address {options.address}: the server is gone: {detail}") from None
    if client.farewell is not None:
        kind, reason = client.farewell
        raise RefusedError(reason) if kind == REFUSED else EngineError(reason)
    return client.num_rounds
