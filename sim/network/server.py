"""``sim server``: Flower's ``start_server`` around the round loop.

The only file that uses ``start_server`` (deprecated in Flower 1.13, present in 1.41 and 1.42).
"""

from __future__ import annotations

import errno
import json
import logging
import math
import resource
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import flwr.server
from flwr.common import Scalar
from flwr.server import History, Server, ServerConfig

from sim.config.fields import MOST
from sim.config.run_config import RunConfig
from sim.engine.client_execution import Worker
from sim.engine.network import ALGORITHM, DECIDED, SHARED, RemoteDispatcher
from sim.errors import ConfigError, EngineError, UsageError
from sim.interrupts import listened_to
from sim.network.identity import Identity, Shape, fingerprint
from sim.network.options import OF_THE_SERVER, ServerOptions
from sim.network.registry import Registry
from sim.processes import imports_are_no_garbage
from sim.run_folder import log as run_log
from sim.run_folder.callbacks import Callback, OnRecord, check_callbacks
from sim.run_folder.folder import Run
from sim.server.prepared_run import Prepared
from sim.server.rounds import RoundServer
from sim.setup.prepare import check_device, prepare
from sim.setup.run_session import Session, open_session
from sim.tracking.by_name import check_trackers


class NetworkServer(Server):
    """Runs the rounds of one run over clients that are elsewhere.

    A runtime of Flower registers connections with ``client_manager()`` and calls ``fit`` once.
    """

    run: Run | None = None

    def __init__(
        self,
        prepared: Prepared,
        *,
        counted: bool,
        min_clients: int | None,
        first_wait: float,
        round_timeout: float,
        introduction_seconds: float,
        on_record: OnRecord | None = None,
        callbacks: Sequence[Callback] = (),
        **surroundings: Any,
    ) -> None:
        """
        Args:
            counted: the ``num_clients`` of the config was chosen; otherwise that of the clients is used.
            min_clients: number of clients that must be connected before a round begins; None for all.
            first_wait: seconds to wait for them before the first round.
            round_timeout: seconds to wait for them later, and for the answer of one client.
            introduction_seconds: time limit for a new connection to identify itself.
            on_record, callbacks, surroundings: see ``open_session``.
        """
        self.registry = Registry(
            Shape.of(prepared.data, prepared.initial_weights),
            num_clients=prepared.config.num_clients if counted else None,
            most_clients=len(prepared.data.train) if prepared.partition.is_known else MOST,
            min_clients=min_clients,
            timeout_seconds=round_timeout,
            introduction_seconds=introduction_seconds,
        )
        super().__init__(client_manager=self.registry)
        self._prepared = prepared
        self._first_wait = first_wait
        self._round_timeout = round_timeout
        self._on_record, self._callbacks = on_record, callbacks
        self._surroundings = surroundings

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Open the run folder, wait for the clients, run the rounds.

        Raises:
            RunFolderError: the folder exists or cannot be written.
            RunError: too few clients came, or the round loop stopped.
        """
        start = time.perf_counter()
        # "server" says that the examples were elsewhere, also where a runtime of Flower chose the address.
        surroundings = {"server": {}, **self._surroundings}
        with open_session(self._prepared, self._on_record, self._callbacks, **surroundings) as session:
            self.run = session.run
            reason: str | None = "the server was interrupted"
            try:
                self._run_rounds(session)
                reason = None
            except Exception as error:
                reason = f"the server stopped: {error}"
                raise
            finally:
                self.registry.close(reason)
        return History(), time.perf_counter() - start

    def _run_rounds(self, session: Session) -> None:
        self.registry.wait_for_enough(self._first_wait)
        num_clients, config = self.registry.num_clients, session.prepared.config
        if num_clients is not None and num_clients != config.num_clients:
            try:
                session.adopt(prepare(replace(config, num_clients=num_clients), alone=True))
            except UsageError as error:
                raise EngineError(f"the clients have --num-clients {num_clients}: {error}") from error
        prepared, spec = session.prepared, session.prepared.spec
        self.registry.begin(partial(_compare_with_partition, prepared))
        shared: dict[str, Scalar] = {SHARED[name]: getattr(spec, name) for name in SHARED}
        decided = {name: getattr(prepared.config, name) for name in OF_THE_SERVER}
        shared[DECIDED] = json.dumps(decided)
        if prepared.torch_spec.algorithm is not None:
            shared[ALGORITHM] = prepared.torch_spec.algorithm.to_text()
        worker = Worker(spec, prepared.config.num_clients, spec.seed)
        dispatcher = RemoteDispatcher(self.registry, worker, shared, self._round_timeout)
        rounds = RoundServer(
            prepared,
            dispatcher,
            session.on_round,
            self.registry,
            counts_bytes=False,
            before_round=session.before_round,
        )
        with imports_are_no_garbage():
            rounds.run()


def _compare_with_partition(prepared: Prepared, identity: Identity) -> None:
    """Log a note if a client holds other examples than the run's config would assign to it."""
    if not prepared.partition.is_known:
        return
    indices = prepared.partition.of(identity.client_id)
    if identity.examples != fingerprint(indices):
        logging.getLogger("sim").warning(
            "note: client %d has %d examples of its own; the server's config assigns %d others to it",
            identity.client_id,
            identity.num_examples,
            len(indices),
        )


_NUM_SOCKETS = 65_536
_INTRODUCTION_SECONDS = 10.0


def serve(
    config: RunConfig,
    options: ServerOptions,
    *,
    counted: bool = True,
    on_record: OnRecord | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Wait for clients at ``options.address``, train with them and return the run folder.

    Args:
        counted: ``config.num_clients`` was chosen; otherwise that of the clients is used.
        on_record: called with the record of each round after it is on disk.
        callbacks: told of each round and of the end, see docs/callbacks-and-trackers.md.

    Raises:
        UsageError: config, data, address or certificates do not work; nothing was written.
        RunError: the run stopped, or too few clients came; the rounds that were done are on disk.
    """
    check_callbacks(callbacks)
    check_trackers(config.track)
    start_server = getattr(flwr.server, "start_server", None)
    if start_server is None:
        raise ConfigError("sim server: this version of Flower no longer has start_server; install flwr 1.42")
    with run_log.notes():
        certificates = options.certificates()
    reserved = _reserve(options)
    check_device(config)
    prepared = prepare(config, alone=True)
    tls = certificates is not None
    server = {"address": options.address, "tls": tls, "min_clients": options.min_clients}
    _allow_many_sockets()
    host = _GracefulServer(
        prepared,
        counted=counted,
        min_clients=options.min_clients,
        first_wait=math.inf,  # a server without clients loses nothing by waiting
        round_timeout=options.round_timeout,
        introduction_seconds=_INTRODUCTION_SECONDS,
        on_record=on_record,
        callbacks=callbacks,
        server=server,
    )
    with run_log.notes(), run_log.quiet("flwr", show=config.verbose):
        try:
            start_server(
                server_address=options.address,
                server=host,
                config=ServerConfig(config.num_rounds, round_timeout=options.round_timeout),
                certificates=certificates,
            )
        except SystemExit as error:  # another program took the port since it was checked
            raise EngineError(f"--address {options.address}: {error}") from None
        finally:
            reserved.close()
    if host.error is not None:
        raise host.error
    assert host.run is not None
    return host.run


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the run; further signals, as of a script that ends all its processes, do not interrupt its writing."""
    for other in listened_to():
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


class _GracefulServer(NetworkServer):
    """A host after whose failure Flower still closes the port and every connection."""

    error: BaseException | None = None

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Run the rounds; what is raised is kept in ``error``."""
        # start_server has put its own handlers in place of Python's.
        for number in listened_to():
            signal.signal(number, _interrupt)
        try:
            return super().fit(num_rounds, timeout)
        except BaseException as error:  # noqa: BLE001 - raised again when the port is closed
            self.error = error
            return History(), 0.0

    def disconnect_all_clients(self, timeout: float | None) -> None:
        """Let every client end; one that does not answer is cut off."""
        super().disconnect_all_clients(min(timeout or 10.0, 10.0))


def _reserve(options: ServerOptions) -> socket.socket:
    """Check that the server can listen at its address, and keep other servers of sim away from it.

    gRPC lets several servers listen at one address, and each would get some of the clients. Two servers that start at
    the same moment both find the port free; the name of a Unix socket in the abstract namespace belongs to one of them,
    and to nobody when its process has ended.

    Returns:
        A socket with this name, to be closed when the server has ended.

    Raises:
        ConfigError: it cannot.
    """
    family, kind, protocol, _, place = options.resolve()[0]
    reserved = socket.socket(socket.AF_UNIX)
    try:
        reserved.bind(f"\0sim server {place[0]} {place[1]}")
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(1)
    except OSError as error:
        reserved.close()
        words: dict[Any, str] = {
            errno.EADDRINUSE: "the port is in use; choose another",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }
        reason = words.get(error.errno, f"cannot listen there: {error.strerror}")
        raise ConfigError(f"--address {options.address}: {reason}") from None
    return reserved


def _allow_many_sockets() -> None:
    """Raise the soft limit on open files, so that foreign connections leave room for clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _NUM_SOCKETS if hard == resource.RLIM_INFINITY else min(hard, _NUM_SOCKETS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
