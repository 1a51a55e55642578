"""The Server that Flower's runtimes start: it waits for clients and hands them to the round loop."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.common import Scalar
from flwr.server import History, Server

from sim.engine.remote import SHARED, RemoteDispatcher
from sim.engine.worker import Worker
from sim.errors import EngineError, UsageError
from sim.network.identity import Identity, Shape, fingerprint
from sim.network.registry import Registry
from sim.run_folder.folder import Run
from sim.setup.prepare import Prepared, prepare
from sim.setup.session import OnRecord, Session, recorded


class Host(Server):
    """Conducts one run over clients that are elsewhere.

    A runtime of Flower's registers connections with ``client_manager()`` and calls ``fit`` once.
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
        **surroundings: Any,
    ) -> None:
        """
        Args:
            counted: the config's ``num_clients`` was chosen; otherwise the first client's is taken.
            min_clients: how many must be there for a round to begin; None for all.
            first_wait: seconds to wait for them before the first round.
            round_timeout: seconds to wait for them later, and for the answer of one.
            introduction_seconds: for a new connection to say who it is.
            on_record, surroundings: see ``recorded``.
        """
        self.registry = Registry(
            Shape.of(prepared.dataset, prepared.initial_weights),
            num_clients=prepared.config.num_clients if counted else None,
            min_clients=min_clients,
            timeout_seconds=round_timeout,
            introduction_seconds=introduction_seconds,
        )
        super().__init__(client_manager=self.registry)
        self._prepared = prepared
        self._first_wait = first_wait
        self._round_timeout = round_timeout
        self._on_record = on_record
        self._surroundings = surroundings

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Open the run folder, wait for the clients, run the rounds.

        Raises:
            RunFolderError: the folder exists or cannot be written.
            RunError: too few clients came, or the round loop stopped.
        """
        with recorded(self._prepared, self._on_record, **self._surroundings) as session:
            self.run = session.run
            reason: str | None = "the server was interrupted"
            try:
                history = self._conduct(session, num_rounds, timeout)
                reason = None
            except Exception as error:
                reason = f"the server stopped: {error}"
                raise
            finally:
                self.registry.close(reason)
        return history

    def _conduct(self, session: Session, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        self.registry.wait_for_enough(self._first_wait)
        num_clients = self.registry.num_clients
        if num_clients is not None and num_clients != session.config.num_clients:
            try:
                config = replace(session.config, num_clients=num_clients)
                session.adopt(prepare(config, alone=True))
            except UsageError as error:
                raise EngineError(f"the clients have --num-clients {num_clients}: {error}") from error
        self.registry.begin(partial(_compare_with_partition, session.prepared))
        program = session.prepared.program
        shared: dict[str, Scalar] = {SHARED[name]: getattr(program, name) for name in SHARED}
        worker = Worker(program, session.config.num_clients, program.seed)
        dispatcher = RemoteDispatcher(self.registry, worker, shared, self._round_timeout)
        return session.server(lambda _: nullcontext(dispatcher), self.registry).fit(num_rounds, timeout)


def _compare_with_partition(prepared: Prepared, identity: Identity) -> None:
    """Say when a client holds something else than the run's config would deal."""
    indices = prepared.partition.of(identity.client_id)
    if identity.examples != fingerprint(indices):
        logging.getLogger("sim").warning(
            "note: client %d has %d examples of its own; the server's config deals it %d others",
            identity.client_id,
            identity.num_examples,
            len(indices),
        )
