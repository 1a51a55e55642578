"""Who is there: a client manager for which a connection counts when it has said who it is."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from flwr.common import GetPropertiesIns, ReconnectIns, Scalar
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion
from flwr.server.superlink.fleet.grpc_bidi.grpc_bridge import GrpcBridgeClosed

from sim.errors import EngineError
from sim.network.identity import REFUSED, STOPPED, Identity, Shape

FAREWELL_SECONDS = 5.0  # for a client to take note that it is not wanted

log = logging.getLogger("sim")


class Registry(SimpleClientManager):
    """Flower's client manager, of identified clients only, in the order of their client_ids.

    Flower registers a connection the moment it is made. Each is asked who it is in a thread of its own, so that
    one that never speaks holds up nobody.
    """

    def __init__(
        self,
        expected: Shape,
        *,
        num_clients: int | None,
        min_clients: int | None,
        timeout_seconds: float,
        introduction_seconds: float,
    ) -> None:
        """
        Args:
            expected: what data and model of every client must be like.
            num_clients: of the run; None to take that of the first client.
            min_clients: how many must be there for a round to begin; None for all.
            timeout_seconds: how long to wait for them.
            introduction_seconds: how long a new connection has to say who it is.
        """
        super().__init__()
        self.expected = expected
        self.num_clients = num_clients
        self.min_clients = min_clients
        self.timeout_seconds = timeout_seconds
        self.introduction_seconds = introduction_seconds
        self._identities: dict[int, Identity] = {}
        self._connections: dict[str, ClientProxy] = {}
        self._closed = False
        self._num_clients_chosen = num_clients
        self._begun = False
        self._on_join: Callable[[Identity], None] | None = None

    def register(self, client: ClientProxy) -> bool:
        """Take note of a new connection and ask it who it is."""
        with self._cv:
            if self._closed or client.cid in self._connections:
                return False
            self._connections[client.cid] = client
        threading.Thread(target=self._introduce, args=(client,), daemon=True).start()
        return True

    def unregister(self, client: ClientProxy) -> None:
        """End and forget a connection; its client may come again."""
        bridge = getattr(client, "bridge", None)
        if bridge is not None:
            bridge.close()  # a stream that stayed open would take one of the server's thousand threads
        with self._cv:
            self._connections.pop(client.cid, None)
            if client.cid not in self.clients:
                return
            self.clients = {cid: proxy for cid, proxy in self.clients.items() if cid != client.cid}
            if not self.clients and not self._begun:
                self.num_clients = self._num_clients_chosen
            self._cv.notify_all()
            closed = self._closed
        if not closed:
            log.warning("client %d is gone", client.partition_id)  # type: ignore[attr-defined]

    def _introduce(self, client: ClientProxy) -> None:
        try:
            answer = client.get_properties(GetPropertiesIns({}), self.introduction_seconds, None)
        except Exception as error:  # noqa: BLE001 - it left, never spoke, or sent something else
            # Strangers come and go by the hundred, and leave when they are asked; what a client raised matters.
            stranger = isinstance(error, GrpcBridgeClosed)
            logger, level = (logging.getLogger("flwr"), logging.INFO) if stranger else (log, logging.WARNING)
            logger.log(level, "a connection did not say who it is: %s", error or type(error).__name__)
            self.unregister(client)
            return
        try:
            identity = Identity.from_properties(answer.properties)
        except ValueError as error:
            self._refuse(client, str(error))
            return
        with self._cv:
            reason = self._reason_against(identity)
            if reason is None:
                self.num_clients = identity.num_clients
                self._identities[identity.client_id] = identity
                client.partition_id = identity.client_id  # type: ignore[attr-defined]
                known = {**self.clients, client.cid: client}
                # In the order of client_ids, as the clients of a simulation are: the same draw picks the same ones.
                self.clients = dict(sorted(known.items(), key=lambda item: item[1].partition_id))  # type: ignore[attr-defined]
                self._cv.notify_all()
        if reason is not None:
            self._refuse(client, f"client {identity.client_id} was refused: {reason}")
            return
        log.info("client %d joined with %d examples", identity.client_id, identity.num_examples)
        if self._on_join is not None:
            self._on_join(identity)

    def begin(self, on_join: Callable[[Identity], None]) -> None:
        """Hold on to the number of clients, and tell of each client that is there and of those that come."""
        with self._cv:
            self._begun, self._on_join = True, on_join
            there = [self._identities[p.partition_id] for p in self.clients.values()]  # type: ignore[attr-defined]
        for identity in there:
            on_join(identity)

    def _reason_against(self, identity: Identity) -> str | None:
        if identity.num_clients < (self.min_clients or 1):
            return f"--num-clients {identity.num_clients}: the server waits for --min-clients {self.min_clients}"
        reason = identity.mismatch(self.expected, self.num_clients)
        if reason is None and self.proxy_of(identity.client_id) is not None:
            reason = f"--client-id {identity.client_id}: another client has it"
        return reason

    def _refuse(self, client: ClientProxy, reason: str) -> None:
        log.warning("%s", reason)
        _take_leave(client, {REFUSED: reason})
        self.unregister(client)

    def proxy_of(self, client_id: int) -> ClientProxy | None:
        """The connection to a client; None if it is gone."""
        found = (proxy for proxy in self.clients.values() if proxy.partition_id == client_id)  # type: ignore[attr-defined]
        return next(found, None)

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        """Draw clients as Flower does, but no more than there are: some may have left."""
        there = [p for p in self.clients.values() if criterion is None or criterion.select(p)]
        return random.sample(there, min(num_clients, len(there)))

    def wait_for_enough(self, timeout_seconds: float | None = None) -> None:
        """Return when ``min_clients`` are there; say how many are missing whenever that changes.

        Args:
            timeout_seconds: instead of the usual; infinity is fine.

        Raises:
            EngineError: they did not come in time.
        """
        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + limit
        said = -1
        with self._cv:
            while (there := len(self.clients)) < (needed := self.min_clients or self.num_clients or 1):
                if there != said:
                    noun = "client" if needed - there == 1 else "clients"
                    log.warning("waiting for %d more %s, %d of %d are there", needed - there, noun, there, needed)
                    said = there
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise EngineError(f"--min-clients {needed}: only {there} came within --round-timeout {limit:g} s")
                self._cv.wait(min(rest, threading.TIMEOUT_MAX))

    def close(self, reason: str | None) -> None:
        """Take no more connections, and tell those that are there why the run ends early, if it does."""
        with self._cv:
            self._closed = True
            proxies = list(self.clients.values())
        if reason is not None:
            threads = [threading.Thread(target=_take_leave, args=(p, {STOPPED: reason}), daemon=True) for p in proxies]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * FAREWELL_SECONDS)


def _take_leave(client: ClientProxy, words: dict[str, Scalar]) -> None:
    deadline = time.monotonic() + FAREWELL_SECONDS
    while True:
        try:
            client.get_properties(GetPropertiesIns(words), FAREWELL_SECONDS, None)
            client.reconnect(ReconnectIns(seconds=None), FAREWELL_SECONDS, None)
        except ValueError:  # Flower's bridge: it has not answered the last request yet
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
        except Exception as error:  # noqa: BLE001 - it is to go anyway
            logging.getLogger("flwr").info("a connection ended before it was told: %r", error)
        return
