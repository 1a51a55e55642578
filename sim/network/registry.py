"""The connected clients: a client manager that counts a connection only after its client has identified itself."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from flwr.common import (
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    ReconnectIns,
    Scalar,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from sim import private_names
from sim.errors import EngineError, one_line
from sim.network.identity import REFUSED, STOPPED, Identity, Shape

_DISCONNECT_SECONDS = 5.0  # for a client to receive the reason and to close the connection

log = logging.getLogger("sim")


class IdentifiedClient(ClientProxy):
    """A connection whose client has identified itself; its ``cid`` is the client id, as in every engine."""

    def __init__(self, identity: Identity, connection: ClientProxy) -> None:
        super().__init__(cid=str(identity.client_id))
        self.identity = identity
        self.connection = connection

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """Ask the client for its properties."""
        return self.connection.get_properties(ins, timeout, group_id)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """Ask the client for its weights."""
        return self.connection.get_parameters(ins, timeout, group_id)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Let the client train."""
        return self.connection.fit(ins, timeout, group_id)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Let the client evaluate."""
        return self.connection.evaluate(ins, timeout, group_id)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """Make the client close the connection."""
        return self.connection.reconnect(ins, timeout, group_id)


class Registry(ClientManager):
    """A client manager of Flower with identified clients only, ordered by client_id.

    Flower registers a connection as soon as it is made. Each connection is asked for its identity in a thread of its
    own, so that one that never answers does not delay the others.
    """

    def __init__(
        self,
        expected: Shape,
        *,
        num_clients: int | None,
        most_clients: int,
        min_clients: int | None,
        timeout_seconds: float,
        introduction_seconds: float,
    ) -> None:
        """
        Args:
            expected: the properties of data and model that every client must have.
            num_clients: number of clients of the run; None to take it from the clients. Until the run begins, clients
                that say different numbers wait beside each other, so that none of them excludes the others.
            most_clients: the largest number of clients that is possible.
            min_clients: number of clients that must be connected before a round begins; None for all.
            timeout_seconds: longest time to wait for these clients.
            introduction_seconds: time limit for a new connection to identify itself.
        """
        self.expected = expected
        self.num_clients = num_clients
        self.most_clients = most_clients
        self.min_clients = min_clients
        self.timeout_seconds = timeout_seconds
        self.introduction_seconds = introduction_seconds
        self.clients: dict[int, IdentifiedClient] = {}  # by client_id, in this order
        self._changed = threading.Condition()
        self._connections: dict[str, ClientProxy] = {}
        self._closed = False
        self._joined: dict[tuple[int, int], IdentifiedClient] = {}  # by num_clients and client_id, as they said
        self._is_fixed = num_clients is not None
        self._on_join: Callable[[Identity], None] | None = None

    def register(self, client: ClientProxy) -> bool:
        """Add a new connection, and ask it for its identity."""
        with self._changed:
            if self._closed or client.cid in self._connections:
                return False
            self._connections[client.cid] = client
        threading.Thread(target=self._introduce, args=(client,), daemon=True).start()
        return True

    def unregister(self, client: ClientProxy) -> None:
        """Close and remove a connection; its client may connect again."""
        connection = client.connection if isinstance(client, IdentifiedClient) else client
        private_names.close_connection(connection)
        with self._changed:
            self._connections.pop(connection.cid, None)
            left = next((key for key, known in self._joined.items() if known.connection is connection), None)
            if left is None:
                return
            del self._joined[left]
            self._update()
            closed = self._closed
        if not closed:
            log.warning("client %d disconnected", left[1])

    def _introduce(self, client: ClientProxy) -> None:
        try:
            result = client.get_properties(GetPropertiesIns({}), self.introduction_seconds, None)
        except Exception as error:  # noqa: BLE001 - it left, did not answer, or sent something else
            # Programs other than sim often connect, and leave when they are asked; an error of a client matters.
            foreign = private_names.is_closed_connection(error)
            logger, level = (logging.getLogger("flwr"), logging.INFO) if foreign else (log, logging.WARNING)
            text = one_line(str(error)) or type(error).__name__
            with self._changed:
                closed = self._closed
            if not closed:  # else the server itself has closed it, and Flower's logger writes to the screen again
                logger.log(level, "a connection did not identify itself: %s", text)
            self.unregister(client)
            return
        try:
            identity = Identity.from_properties(result.properties)
        except ValueError as error:
            self._refuse(client, str(error))
            return
        with self._changed:
            reason = self._reason_against(identity)
            if reason is None:
                self._joined[identity.num_clients, identity.client_id] = IdentifiedClient(identity, client)
                self._update()
            others = self.num_clients
        if reason is not None:
            self._refuse(client, f"client {identity.client_id} was refused: {reason}")
            return
        log.info("client %d joined with %d examples", identity.client_id, identity.num_examples)
        if identity.num_clients != others:
            message = "note: client %d has --num-clients %d, others have %s; the run begins with those who agree"
            log.warning(message, identity.client_id, identity.num_clients, others)
        elif self._on_join is not None:
            self._on_join(identity)

    def begin(self, on_join: Callable[[Identity], None]) -> None:
        """Call ``on_join`` for each client that is connected or joins later."""
        with self._changed:
            self._on_join = on_join
            connected = list(self.clients.values())
        for client in connected:
            on_join(client.identity)

    def _reason_against(self, identity: Identity) -> str | None:
        if identity.num_clients < (self.min_clients or 1):
            return f"--num-clients {identity.num_clients}: the server waits for --min-clients {self.min_clients}"
        if identity.num_clients > self.most_clients:
            return f"--num-clients {identity.num_clients}: at most {self.most_clients} are possible in this run"
        reason = identity.mismatch(self.expected, self.num_clients if self._is_fixed else None)
        if reason is None and (identity.num_clients, identity.client_id) in self._joined:
            reason = f"--client-id {identity.client_id}: another client has this number"
        return reason

    def _update(self) -> None:
        """Choose the clients of the run among those that joined, and wake those who wait for them."""
        if not self._is_fixed:
            counts = Counter(num_clients for num_clients, _ in self._joined)
            self.num_clients = max(
                counts, key=lambda n: (counts[n] >= (self.min_clients or n), counts[n], -n), default=None
            )
        # Ordered by client_id as in a simulation, so that the same random numbers select the same clients.
        self.clients = {
            client_id: known
            for (n, client_id), known in sorted(self._joined.items(), key=lambda pair: pair[0])
            if n == self.num_clients
        }
        self._changed.notify_all()

    def _fix_num_clients(self) -> None:
        """Begin with the clients that agree on their number; refuse the others."""
        self._is_fixed = True
        for (num_clients, client_id), known in list(self._joined.items()):
            if num_clients != self.num_clients:
                del self._joined[num_clients, client_id]
                reason = f"client {client_id} was refused: --num-clients {num_clients}: the run has {self.num_clients}"
                threading.Thread(target=self._refuse, args=(known.connection, reason), daemon=True).start()

    def _refuse(self, client: ClientProxy, reason: str) -> None:
        reason = one_line(reason)
        log.warning("%s", reason)
        _disconnect(client, {REFUSED: reason})
        self.unregister(client)

    def proxy_of(self, client_id: int) -> ClientProxy | None:
        """Return the connection to a client; None if it is not connected."""
        return self.clients.get(client_id)

    def num_examples_of(self, client_id: int) -> int:
        """Return the number of training examples that a client said it has; 0 if it is not connected."""
        known = self.clients.get(client_id)
        return 0 if known is None else known.identity.num_examples

    def num_available(self) -> int:
        """Return the number of connected clients."""
        return len(self.clients)

    def all(self) -> dict[str, ClientProxy]:
        """Return the connected clients by their ``cid``, in the order of client_ids."""
        return {client.cid: client for client in self.clients.values()}

    def wait_for(self, num_clients: int, timeout: int = 86_400) -> bool:
        """Wait until so many clients are connected; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.clients) >= num_clients, timeout)

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        """Draw clients as Flower does, but at most as many as are connected, because some may have left."""
        connected: list[ClientProxy] = [c for c in self.clients.values() if criterion is None or criterion.select(c)]
        return random.sample(connected, min(num_clients, len(connected)))

    def wait_for_enough(self, timeout_seconds: float | None = None) -> None:
        """Wait until ``min_clients`` are connected; log the number of missing clients whenever it changes.

        Args:
            timeout_seconds: used instead of that of the registry; it may be infinite.

        Raises:
            EngineError: too few clients connected in time.
        """
        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + limit
        logged = -1
        with self._changed:
            while (connected := len(self.clients)) < (needed := self.min_clients or self.num_clients or 1):
                if connected != logged:
                    noun = "client" if needed - connected == 1 else "clients"
                    message = "waiting for %d more %s, %d of %d are connected"
                    log.warning(message, needed - connected, noun, connected, needed)
                    logged = connected
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    raise EngineError(
                        f"--min-clients {needed}: only {connected} connected within --round-timeout {limit:g} s"
                    )
                self._changed.wait(min(seconds_left, threading.TIMEOUT_MAX))
            if not self._is_fixed:
                self._fix_num_clients()

    def close(self, reason: str | None) -> None:
        """Accept no more connections; if the run ends early, send ``reason`` to the connected clients."""
        with self._changed:
            self._closed = True
            proxies = list(self.clients.values())
        if reason is not None:
            threads = [threading.Thread(target=_disconnect, args=(p, {STOPPED: reason}), daemon=True) for p in proxies]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * _DISCONNECT_SECONDS)


def _disconnect(client: ClientProxy, reason: dict[str, Scalar]) -> None:
    """Send a client the reason, and make it close the connection."""
    deadline = time.monotonic() + _DISCONNECT_SECONDS
    while True:
        try:
            client.get_properties(GetPropertiesIns(reason), _DISCONNECT_SECONDS, None)
            client.reconnect(ReconnectIns(seconds=None), _DISCONNECT_SECONDS, None)
        except ValueError:  # from Flower's bridge: the client has not answered the previous request yet
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
        except Exception as error:  # noqa: BLE001 - the connection is closed anyway
            logging.getLogger("flwr").info("a connection ended before it received the reason: %r", error)
        return
