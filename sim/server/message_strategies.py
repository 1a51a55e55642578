"""Strategies of ``flwr.serverapp.strategy``: their messages → chunks, results → replies.

``Strategy.start`` of Flower calls the same hooks in the same order (flwr 1.42, ``serverapp/strategy/strategy.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
from flwr.common import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, NDArrays, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Result, Strategy

from sim import private_names
from sim.client.flower_program import client_of, node_of
from sim.client.message_contents import Packer, keys_of, source_of, unpack
from sim.engine.aggregation import cut
from sim.engine.client_calls import shape_of
from sim.engine.interface import Chunk, ClientResult, Task, TaskMessage
from sim.errors import RunError
from sim.metrics import spelled
from sim.run_folder.records import Phase
from sim.server.adapter import Evaluated
from sim.server.results import PhaseResults, numbers_of
from sim.server.strategy_returns import checked_trained

_PHASES: dict[str, Phase] = {"train": "fit", "evaluate": "evaluate"}
MESSAGE_CALLS = (
    "start",
    "configure_train",
    "aggregate_train",
    "configure_evaluate",
    "aggregate_evaluate",
    "evaluate_fn",
)
RAISED = 2  # ErrorCode.CLIENT_APP_RAISED_EXCEPTION

# Their aggregate_train uses nothing but the weighted mean of the replies' arrays.
_AVERAGING = {
    getattr(strategy, name).aggregate_train
    for name in ("FedAvg", "FedProx", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi")
}


def phase_of(message_type: str) -> Phase:
    """Return the phase of a message type such as ``train`` or ``query.names``."""
    return _PHASES.get(message_type.partition(".")[0], "query")


def averages(used: Strategy) -> bool:
    """Return whether a strategy needs only the weighted mean of the arrays that clients return.

    A metrics function of the user's own gets whole replies, in which it may look at arrays.
    """
    own = type(used)
    plain: Any = strategy.FedAvg
    return (
        own.aggregate_train in _AVERAGING
        and getattr(own, "_check_and_log_replies", None) is getattr(plain, "_check_and_log_replies", None)
        and getattr(used, "train_metrics_aggr_fn", None) is plain().train_metrics_aggr_fn
    )


class NodesGrid(Grid):
    """The part of a grid that does not depend on how messages travel."""

    def __init__(self) -> None:
        self._run = private_names.empty_run()

    def set_run(self, run: Any) -> None:
        """Set what ``run`` gives."""
        self._run = run

    @property
    def run(self) -> Any:
        """Flower's record of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


@dataclass
class Batch:
    """Messages to clients on their way through the engine.

    Attributes:
        messages: in the order of the tasks of ``chunks``: the first message of each client in the order of the clients,
            then the second of each that gets several, and so on.
    """

    messages: list[Message]
    chunks: list[Chunk]

    @classmethod
    def of(
        cls,
        messages: Iterable[Message],
        phase: Phase,
        server_round: int,
        states: dict[int, RecordDict],
        num_clients: int,
        *,
        weighted_by: str = "",
        batch: int | None = None,
    ) -> Batch:
        """Cut messages into chunks.

        Args:
            states: client_id → what the client left last time.
            weighted_by: name of a metric; the replies' arrays are then added up, weighted by it.
            batch: see ``Chunk``.

        Raises:
            RunError: a message goes to a node that there is not.
        """
        turns = _turns(messages)
        packed: dict[int, tuple[Any, NDArrays]] = {}  # id of a content → its records and the list of its arrays
        packers: dict[tuple[int, ...], Packer] = {}
        chunks = []
        for repeat, part in ((number, part) for number, turn in enumerate(turns) for part in cut(turn)):
            groups: list[tuple[NDArrays, list[Task]]] = []
            for message in part:
                client_id = client_of(message.metadata.dst_node_id)
                if not 0 <= client_id < num_clients:
                    raise RunError(f"a message goes to node {message.metadata.dst_node_id}, which there is not")
                content = message.content
                if id(content) not in packed:
                    key = tuple(id(source_of(a)) for record in content.array_records.values() for a in record.values())
                    packer = packers.setdefault(key, Packer())
                    packed[id(content)] = packer.pack(content), packer.arrays
                records, arrays = packed[id(content)]
                if not (groups and groups[-1][0] is arrays):
                    groups.append((arrays, []))
                about = message.metadata
                told = TaskMessage(
                    about.message_type, about.message_id, about.group_id, about.ttl, records, weighted_by
                )
                groups[-1][1].append(Task(client_id, {}, states.get(client_id), message=told, repeat=repeat))
            chunks += [
                Chunk(phase, server_round, tasks, arrays, bool(weighted_by), batch=batch) for arrays, tasks in groups
            ]
        return cls([message for turn in turns for message in turn], chunks)

    def replies(self, results: PhaseResults) -> list[Message]:
        """Return the reply to each message: its content, or an error for a client that failed."""
        return [_reply(message, result) for message, result in zip(self.messages, results.clients, strict=True)]


def _turns(messages: Iterable[Message]) -> list[list[Message]]:
    """Return the first message of each client, then the second of each that gets several, and so on."""
    node = attrgetter("metadata.dst_node_id")
    turns: list[list[Message]] = []
    for _, of_client in groupby(sorted(messages, key=node), key=node):
        for number, message in enumerate(of_client):
            if number == len(turns):
                turns.append([])
            turns[number].append(message)
    return turns


def _reply(message: Message, result: ClientResult) -> Message:
    if result.error is not None:
        return Message(Error(code=RAISED, reason=result.error), reply_to=message)
    return Message(unpack(result.records or [], result.weights or []), reply_to=message)


@dataclass
class StartArguments:
    """What an app gives to ``Strategy.start``."""

    initial_arrays: ArrayRecord
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None


@contextmanager
def metrics_of(used: Any, every: list[RecordDict]) -> Iterator[None]:
    """Let a strategy, which gets the mean of the clients' arrays as one reply, aggregate the metrics of each client.

    Args:
        every: the records of each client's reply, without arrays.
    """
    function = used.train_metrics_aggr_fn
    used.train_metrics_aggr_fn = lambda _, key: function(every, key)
    try:
        yield
    finally:
        used.train_metrics_aggr_fn = function


class MessageAdapter:
    """The adapter of a strategy of ``flwr.serverapp.strategy``, with what an app gives to its ``start``."""

    calls = MESSAGE_CALLS
    tests_last = True
    may_skip = True

    def __init__(
        self,
        used: Strategy,
        grid: Grid,
        arguments: StartArguments,
        num_clients: int,
        prepare_message: Callable[[Message], Any],
    ) -> None:
        """
        Args:
            prepare_message: gives a message its id.
        """
        self.used, self.result = used, Result()
        self._grid, self._arguments, self._num_clients = grid, arguments, num_clients
        self._prepare_message = prepare_message
        self._averages = averages(used)
        self._weighted_by: str = getattr(used, "weighted_by_key", "")
        self._batch = Batch([], [])
        self._noted: set[str] = set()  # calls of which was said that what they return is not recorded
        self._set_arrays(arguments.initial_arrays)

    def _set_arrays(self, arrays: ArrayRecord) -> None:
        self.arrays = arrays
        self._seen = _identity(arrays)
        self._weights = [array.numpy() for array in arrays.values()]

    @property
    def names(self) -> list[str]:
        """Names of the global arrays."""
        return list(self.arrays)

    @property
    def strategy(self) -> dict[str, Any]:
        """All that a checkpoint must keep: an app may change its configs from round to round."""
        return {
            "strategy": self.used,
            "train_config": self._arguments.train_config,
            "evaluate_config": self._arguments.evaluate_config,
            "trained": self.result.train_metrics_clientapp,
            "evaluated": self.result.evaluate_metrics_clientapp,
            "tested": self.result.evaluate_metrics_serverapp,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint has kept; the strategy itself has it already."""
        self._arguments.train_config = state["train_config"]
        self._arguments.evaluate_config = state["evaluate_config"]
        self.result.train_metrics_clientapp = state["trained"]
        self.result.evaluate_metrics_clientapp = state["evaluated"]
        self.result.evaluate_metrics_serverapp = state["tested"]

    def set_weights(self, weights: NDArrays) -> None:
        """Make ``weights`` the global arrays."""
        if weights is not self._weights:
            names = self.names if len(self.names) == len(weights) else [str(n) for n in range(len(weights))]
            self._set_arrays(ArrayRecord({n: Array(np.asarray(w)) for n, w in zip(names, weights, strict=True)}))
        self.result.arrays = self.arrays

    def _replies(self, results: PhaseResults) -> list[Message]:
        return sorted(self._batch.replies(results), key=attrgetter("metadata.src_node_id"))

    def changed(self) -> NDArrays | None:
        """Return the global arrays if the strategy has put others into the record that it was given."""
        if _identity(self.arrays) == self._seen:
            return None
        self._set_arrays(self.arrays)
        return self._weights

    def initial(self) -> NDArrays:
        """Return the arrays that the app gives to ``start``."""
        return self._weights

    def configure(self, phase: Phase, server_round: int, states: dict[int, RecordDict]) -> list[Chunk]:
        """Have the strategy make messages, and cut them into chunks."""
        arguments = self._arguments
        if phase == "fit":
            made = self.used.configure_train(server_round, self.arrays, arguments.train_config, self._grid)
        else:
            made = self.used.configure_evaluate(server_round, self.arrays, arguments.evaluate_config, self._grid)
        messages = list(made)
        for message in messages:
            self._prepare_message(message)
        weighted_by = self._weighted_by if phase == "fit" and self._averages else ""
        self._batch = Batch.of(messages, phase, server_round, states, self._num_clients, weighted_by=weighted_by)
        return self._batch.chunks

    def aggregate_fit(self, server_round: int, results: PhaseResults) -> tuple[NDArrays | None, Mapping[str, Any]]:
        """Have the strategy make new arrays from the replies, or from their mean as the only one."""
        if self._averages and results.succeeded:
            arrays, metrics = self._aggregate_mean(server_round, results)
        else:
            returned = self.used.aggregate_train(server_round, self._replies(results))
            arrays, metrics = checked_trained(returned, server_round)
        if metrics is not None:
            self.result.train_metrics_clientapp[server_round] = metrics
        if arrays is None:
            return None, dict(metrics or {})
        self._set_arrays(arrays)
        return self._weights, dict(metrics or {})

    def _aggregate_mean(
        self, server_round: int, results: PhaseResults
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the strategy the clients' mean as one reply; its metrics are those of every client nevertheless."""
        used: Any = self.used
        first = results.succeeded[0]
        for other in results.succeeded:
            if keys_of(other.records or []) != keys_of(first.records or []):
                raise RunError(f"clients {first.client_id} and {other.client_id} returned arrays of different names")
        every = [_without_arrays(result) for result in results.succeeded]
        private_names.check_metrics_of_replies(every, self._weighted_by)
        if not results.total.num_examples:
            raise RunError(f"the metric {self._weighted_by} of all clients is 0, so there is no mean of them")
        mean = _with_mean(first, results.total.mean(whole_numbers=False))
        next(iter(mean.metric_records.values()))[self._weighted_by] = results.total.num_examples
        replies = []
        for message, result in zip(self._batch.messages, results.clients, strict=True):
            if result is first:
                replies.append(Message(mean, reply_to=message))
            elif result.error is not None:
                replies.append(_reply(message, result))
        with metrics_of(used, every):
            return checked_trained(used.aggregate_train(server_round, replies), server_round)

    def aggregate_evaluate(self, server_round: int, results: PhaseResults) -> Evaluated:
        """Have the strategy aggregate what clients measured."""
        metrics = self.used.aggregate_evaluate(server_round, self._replies(results))
        if metrics is not None:
            self.result.evaluate_metrics_clientapp[server_round] = metrics
        values = self._values("aggregate_evaluate", metrics)
        return Evaluated(results.succeeded, spelled(values, "loss"), values)

    def evaluate(self, server_round: int) -> tuple[float | None, Mapping[str, Any]] | None:
        """Call the app's ``evaluate_fn``; None if it has none."""
        if self._arguments.evaluate_fn is None:
            return None
        metrics = self._arguments.evaluate_fn(server_round, self.arrays)
        if metrics is None:
            return None
        self.result.evaluate_metrics_serverapp[server_round] = metrics
        values = self._values("evaluate_fn", metrics)
        return spelled(values, "loss"), numbers_of(values)

    def _values(self, call: str, metrics: Any) -> dict[str, Any]:
        """Return what was measured by name; Flower takes what has no names as well, and so does an app's result."""
        if isinstance(metrics, Mapping | None):
            return dict(metrics or {})
        if call not in self._noted:
            self._noted.add(call)
            logging.getLogger("sim").warning(
                "note: %s returned %s, which is in the app's result alone; what a MetricRecord holds is recorded",
                call,
                shape_of(metrics),
            )
        return {}


def _identity(arrays: ArrayRecord) -> list[tuple[str, int]]:
    return [(name, id(source_of(array))) for name, array in arrays.items()]


def _without_arrays(result: ClientResult) -> RecordDict:
    return unpack([record for record in result.records or [] if record[1] != "arrays"], [])


def _with_mean(first: ClientResult, mean: NDArrays) -> RecordDict:
    """Return the content of a client's reply with the mean of all clients in the place of its arrays."""
    content = _without_arrays(first)
    arrays = iter(mean)
    for name, kind, entries in first.records or []:
        if kind == "arrays":
            content[name] = ArrayRecord({entry[0]: Array(np.asarray(next(arrays))) for entry in entries})
    return content


def nodes(num_clients: int) -> Sequence[int]:
    """Return the node ids of all clients."""
    return [node_of(client_id) for client_id in range(num_clients)]
