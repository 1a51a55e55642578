"""The Server that Flower's runtimes start: it waits for clients and hands them to the round loop."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace

from flwr.common import Scalar
from flwr.server import History, Server

from sim.engine.remote import RemoteDispatcher
from sim.errors import EngineError, UsageError
from sim.network.identity import Shape
from sim.network.registry import Registry
from sim.preparation import prepare
from sim.recording import Session


class Host(Server):
    """Runs a session's round loop over clients that are elsewhere.

    A runtime of Flower's registers connections with ``client_manager()`` and calls ``fit`` once.
    """

    def __init__(self, session: Session, *, counted: bool, min_clients: int, round_timeout: float) -> None:
        """
        Args:
            counted: the config's ``num_clients`` was chosen; otherwise the first client's is taken.
            min_clients, round_timeout: see ``ServerOptions``.
        """
        prepared = session.prepared
        registry = Registry(
            Shape.of(prepared.dataset, prepared.initial_weights),
            num_clients=session.config.num_clients if counted else None,
            min_clients=min_clients,
            timeout_seconds=round_timeout,
        )
        super().__init__(client_manager=registry)
        self.session = session
        self.registry = registry
        self.round_timeout = round_timeout

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Wait for the clients, then run the rounds.

        Raises:
            EngineError: too few clients came.
            RunError: the round loop stopped.
        """
        reason: str | None = "the server stopped"
        try:
            self.registry.wait_for_enough()
            self._adopt_num_clients()
            self._compare_with_partition()
            dispatcher = RemoteDispatcher(self.registry, self._shared(), self.round_timeout)
            history = self.session.server(lambda _: nullcontext(dispatcher), self.registry).fit(num_rounds, timeout)
            reason = None
        except Exception as error:
            reason = f"the server stopped: {error}"
            raise
        finally:
            self.registry.close(reason)
        return history

    def _adopt_num_clients(self) -> None:
        config, num_clients = self.session.config, self.registry.num_clients
        if num_clients is None or num_clients == config.num_clients:
            return
        try:
            config = replace(config, num_clients=num_clients)
            self.session.adopt(config, prepare(config, alone=True))
        except UsageError as error:
            raise EngineError(f"the clients have --num-clients {num_clients}: {error}") from error

    def _compare_with_partition(self) -> None:
        """Say where a client holds something else than the run's config would deal."""
        prepared = self.session.prepared
        for client_id, identity in sorted(self.registry.identities.items()):
            dealt = int(prepared.partition.sizes[client_id])
            if identity.num_examples != dealt:
                logging.getLogger("sim").warning(
                    "note: client %d has %d examples, the server's config would deal it %d",
                    client_id,
                    identity.num_examples,
                    dealt,
                )

    def _shared(self) -> dict[str, Scalar]:
        program = self.session.prepared.program
        return {"seed": program.seed, "augment": program.augment, "eval_share": program.eval_share}
