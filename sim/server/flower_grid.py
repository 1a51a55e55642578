"""The grid of a ServerApp: its messages go to clients through the engine, and come back in the order of the clients."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from flwr.common import Message

from sim import private_names
from sim.run_folder.records import Phase
from sim.server.executor import Executor
from sim.server.message_strategies import Batch, NodesGrid, nodes, phase_of
from sim.server.results import PhaseResults
from sim.server.virtual_clients import check_there

_MOST_BATCHES = 2**20  # of a round
_MANY_TIMES, _POLLING_SECONDS = 5, 3.0  # an app that asks so often, over this time, seems to wait for more clients
# Called with (phase, results, seconds) of each batch of messages that an app sends by itself.
OnBatch = Callable[[Phase, PhaseResults, float], None]


class EngineGrid(NodesGrid):
    """Sends the messages that an app makes itself, outside of ``Strategy.start``.

    Messages that several threads send at the same time are executed together.
    """

    def __init__(
        self, executor: Executor, num_clients: int, round_of: Callable[[Phase, str], int], on_batch: OnBatch
    ) -> None:
        """
        Args:
            round_of: returns the round of a batch that begins, from its phase and group id.
            on_batch: called after each batch.
        """
        super().__init__()
        self._executor, self._num_clients = executor, num_clients
        self._round_of, self._on_batch = round_of, on_batch
        self._count = 0
        self._last = (0, 0)  # round of the last batch, and its number in it
        self._lock = threading.Lock()
        self._engine = threading.Lock()
        self._asked: list[float] = []  # when an app has asked for its nodes since the last message
        self._waiting: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}

    @property
    def has_sent(self) -> bool:
        """Whether a message was executed or waits."""
        return self._last != (0, 0) or bool(self._waiting)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all clients, in their order."""
        check_there(self._num_clients, private_names.awaited_nodes())
        self._asked.append(time.monotonic())
        if len(self._asked) == _MANY_TIMES and self._asked[-1] - self._asked[0] > _POLLING_SECONDS:
            logging.getLogger("sim").warning(
                "note: the ServerApp asks again and again for its nodes; all %d are there (num_clients), and no more "
                "will come",
                self._num_clients,
            )
        return list(nodes(self._num_clients))

    def number(self, message: Message) -> str:
        """Give a message its id."""
        with self._lock:
            self._count += 1
            self._asked = []
            message_id = str(self._count)
        private_names.set_message_id(message, message_id)
        return message_id

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages, which are executed when the first of their replies is pulled."""
        given = {self.number(message): message for message in messages}
        with self._lock:
            self._waiting.update(given)
        return list(given)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages, each once, in the order of the clients and then of the messages.

        An app may ask with a set, whose order is another one in each process.
        """
        with self._engine:
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            self._execute(waiting)
        asked = {message_id: self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies}
        # A message id is the number of the message.
        return [asked[key] for key in sorted(asked, key=lambda key: (asked[key].metadata.src_node_id, int(key)))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies, in the order of the clients."""
        return self.pull_messages(self.push_messages(messages))

    def _execute(self, messages: dict[str, Message]) -> None:
        of_phase: dict[Phase, dict[str, Message]] = {}
        for message_id, message in messages.items():
            of_phase.setdefault(phase_of(message.metadata.message_type), {})[message_id] = message
        for phase, some in of_phase.items():
            start = time.perf_counter()
            ids = {id(message): message_id for message_id, message in some.items()}
            number = self._round_of(phase, next(iter(some.values())).metadata.group_id)
            last = self._last[1] if self._last[0] == number else 0
            self._last = number, last + 1
            states = self._executor.states
            # The same number in a resumed run, in which the batches of earlier rounds are not sent again.
            batch = Batch.of(
                some.values(), phase, number, states, self._num_clients, batch=number * _MOST_BATCHES + last
            )
            results = self._executor.execute(phase, number, batch.chunks)
            for message, reply in zip(batch.messages, batch.replies(results), strict=True):
                self._replies[ids[id(message)]] = reply
            self._on_batch(phase, results, time.perf_counter() - start)
