"""Strategies of ``flwr.serverapp.strategy`` over clients that get FitIns and EvaluateIns: this package's, or a user's.

A message to a client becomes weights and settings; what the client returns becomes the reply that the strategy expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.common import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, NDArrays, RecordDict
from flwr.server import SimpleClientManager
from flwr.server.client_manager import ClientManager
from numpy.typing import NDArray

from sim import private_names
from sim.client.flower_program import client_of, node_of
from sim.client.torch_client import fit_settings
from sim.config.run_config import RunConfig
from sim.engine.aggregation import cut
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import RunError
from sim.metrics import spelled
from sim.run_folder.records import Phase
from sim.server.adapter import Evaluated
from sim.server.fit_ins_strategies import noise_for_those_left
from sim.server.message_strategies import MESSAGE_CALLS, RAISED, NodesGrid, averages, metrics_of
from sim.server.results import PhaseResults, numbers_of
from sim.server.sampled_clients import SampledClients
from sim.server.stragglers import with_stragglers
from sim.server.strategy import BuiltStrategy
from sim.server.strategy_returns import checked_trained
from sim.server.virtual_clients import check_there

_EXAMPLES = "num-examples"


class NodesOnly(NodesGrid):
    """What a strategy may ask for when it chooses clients: their node ids. It sends nothing."""

    def __init__(self, client_manager: ClientManager) -> None:
        super().__init__()
        self._client_manager = client_manager

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the clients that are there, in their order; those that a sampler has chosen for a round."""
        manager = self._client_manager
        chosen = manager.chosen_ids() if isinstance(manager, SampledClients) else None
        there = manager.all() if chosen is None else chosen
        if isinstance(manager, SimpleClientManager):  # those of a network may still come
            check_there(len(there), private_names.awaited_nodes())
        return sorted(node_of(int(c)) for c in there)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not for these clients, which know training and evaluation only."""
        raise RuntimeError("the strategy sends messages of its own, which only the clients of a Flower app answer")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See ``push_messages``."""
        return self.push_messages([])  # type: ignore[return-value]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See ``push_messages``."""
        return self.push_messages(messages)  # type: ignore[return-value]


class MessageToFitInsAdapter:
    """The adapter of a strategy of ``flwr.serverapp.strategy`` for clients that know no messages."""

    calls = MESSAGE_CALLS
    tests_last = False

    def __init__(
        self,
        built: BuiltStrategy,
        names: Sequence[str],
        config: RunConfig,
        client_manager: ClientManager,
        sizes: Sequence[int] | NDArray[np.int64],
        *,
        sends_settings: bool,
        may_skip: bool = False,
    ) -> None:
        """
        Args:
            built: with a strategy of messages.
            names: of all arrays.
            client_manager: the clients that the strategy can choose.
            sizes: examples of each client; empty where nobody knows.
            sends_settings: clients get the settings of the training with their instructions.
            may_skip: the strategy is the user's own, which may leave a round out, as in Flower.
        """
        self.may_skip = may_skip
        private_names.set_task_identity(node_of(-1))
        used: Any = built.strategy
        self.used = used
        self._built, self._view = built, built.view
        self._names, self._config, self._sizes = names, config, sizes
        self._sends_settings = sends_settings
        self._averages = averages(used) and not config.forges_updates
        self._grid = NodesOnly(client_manager)
        self._weights: NDArrays = []
        self._messages: dict[int, Message] = {}  # of the present phase
        self._loss_key: str = getattr(used, "train_loss_key", "loss")

    @property
    def strategy(self) -> Any:
        """The strategy, and what the server part of an algorithm keeps."""
        return self.used if self._built.algorithm is None else self._built.kept

    def restore(self, state: Any) -> None:
        """Take what an algorithm keeps; the strategy was restored in place."""
        if self._built.algorithm is not None:
            self._built.algorithm.restore(state["algorithm"])

    def set_weights(self, weights: NDArrays) -> None:
        """Make ``weights`` the global ones."""
        self._weights = weights

    def changed(self) -> NDArrays | None:
        """Return None: the strategy gets copies."""
        return None

    def initial(self) -> NDArrays:
        """Return the weights of the model."""
        return self._weights

    def configure(self, phase: Phase, server_round: int, states: dict[int, RecordDict]) -> list[Chunk]:
        """Have the strategy make messages, and turn them into instructions."""
        arrays = self._record_of(self._view.of(self._weights))
        configure = self.used.configure_train if phase == "fit" else self.used.configure_evaluate
        made = sorted(
            configure(server_round, arrays, ConfigRecord(), self._grid), key=lambda each: each.metadata.dst_node_id
        )
        settings: dict[str, Any] = {}
        # Of an algorithm, an own model may be fine-tuned before it is evaluated.
        if self._sends_settings and (phase == "fit" or self._built.algorithm is not None):
            settings = {"server_round": server_round, **fit_settings(self._config, server_round)}
            if phase == "fit" and self._needs_first_loss:
                settings["first_loss"] = True
        sent = [array.data for array in arrays.values()]
        summed = phase == "fit" and self._averages
        chosen = [(client_of(m.metadata.dst_node_id), {**settings, **_config_in(m)}) for m in made]
        self._messages = {client_id: message for (client_id, _), message in zip(chosen, made, strict=True)}
        configs = with_stragglers(chosen, self._config, server_round) if phase == "fit" else [c for _, c in chosen]
        left = [(message, config) for message, config in zip(made, configs, strict=True) if config is not None]
        chunks = []
        for part in cut(left, self._config.vectorized_clients):
            groups: list[tuple[NDArrays, list[Task]]] = []
            for message, config in part:
                weights = self._weights_in(message, sent, server_round)
                if not (groups and groups[-1][0] is weights):
                    groups.append((weights, []))
                client_id = client_of(message.metadata.dst_node_id)
                size = int(self._sizes[client_id]) if len(self._sizes) else 0
                groups[-1][1].append(Task(client_id, config, states.get(client_id), size))
            untrained = self._view.untrained
            chunks += [Chunk(phase, server_round, tasks, weights, summed, untrained) for weights, tasks in groups]
        return chunks

    @property
    def _needs_first_loss(self) -> bool:
        """Whether the strategy uses the loss of the weights that a client gets, as q-FedAvg does (Li et al. 2020)."""
        return hasattr(self.used, "train_loss_key")

    def _weights_in(self, message: Message, sent: Sequence[bytes], server_round: int) -> NDArrays:
        """Return the weights in a message; the global weights themselves where it has those."""
        held = [array for record in message.content.array_records.values() for array in record.values()]
        if [id(array.data) for array in held] == [id(data) for data in sent]:
            return self._weights
        return self._view.whole([array.numpy() for array in held], self._weights, server_round)

    def aggregate_fit(self, server_round: int, results: PhaseResults) -> tuple[NDArrays | None, Mapping[str, Any]]:
        """Have the strategy make new weights: from every client's, or from their mean as the only one."""
        used = self.used
        if self._averages and results.succeeded:
            mean = ClientResult(results.succeeded[0].client_id, num_examples=int(results.total.num_examples))
            mean.weights = self._view.mean(results.total)
            clients = [mean if r.client_id == mean.client_id else r for r in results.clients]
            replies = self._replies([r for r in clients if r is mean or r.error is not None])
            with metrics_of(used, [self._measured(r) for r in results.succeeded]):
                returned = used.aggregate_train(server_round, replies)
        else:
            algorithm = self._built.algorithm
            alike = algorithm is not None and algorithm.weighting == "uniform"
            with noise_for_those_left(used, results) as is_for_fewer:
                if is_for_fewer and not results.succeeded:  # the adaptive one would divide by their number
                    return None, {}
                left = results.succeeded if is_for_fewer else results.clients
                clients = [replace(r, num_examples=1) if alike else r for r in left]
                returned = used.aggregate_train(server_round, self._replies(clients))
        arrays, metrics = checked_trained(returned, server_round)
        if arrays is None:
            return None, {}
        weights = self._view.whole([array.numpy() for array in arrays.values()], self._weights, server_round)
        weights = self._view.with_untrained(weights, self._weights, results.succeeded, results.total)
        return weights, dict(metrics or {})

    def _replies(self, clients: Sequence[ClientResult]) -> list[Message]:
        replies = []
        for result in clients:
            message = self._messages[result.client_id]
            if result.error is not None:
                replies.append(Message(Error(code=RAISED, reason=result.error), reply_to=message))
                continue
            content = self._measured(result)
            if result.weights is not None:
                content["arrays"] = self._record_of(self._view.of(result.weights))
            replies.append(Message(content, reply_to=message))
        return replies

    def _measured(self, result: ClientResult) -> RecordDict:
        """Return what a client measured, with its loss under the name by which the strategy looks for it."""
        numbers = {name: value for name, value in numbers_of(result.metrics).items() if name != "loss"}
        if "first_loss" in numbers:
            numbers[self._loss_key] = numbers.pop("first_loss")
        elif result.loss is not None:
            numbers[self._loss_key] = result.loss
        return RecordDict({"metrics": MetricRecord({**numbers, _EXAMPLES: result.num_examples})})

    def _record_of(self, visible: NDArrays) -> ArrayRecord:
        names = [self._names[position] for position in self._view.visible] or [str(n) for n in range(len(visible))]
        return ArrayRecord({name: Array(np.asarray(a)) for name, a in zip(names, visible, strict=True)})

    def aggregate_evaluate(self, server_round: int, results: PhaseResults) -> Evaluated:
        """Have the strategy aggregate the results of the clients that kept examples."""
        some = PhaseResults(clients=[result for result in results.clients if result.has_measured or result.error])
        metrics = self.used.aggregate_evaluate(server_round, self._replies(some.clients)) if some.clients else None
        values = dict(metrics or {})
        return Evaluated(some.succeeded, spelled(values, "loss"), values)

    def evaluate(self, server_round: int) -> tuple[float | None, Mapping[str, Any]] | None:
        """Return None: such a strategy leaves the central test to the round loop."""
        return None


def _config_in(message: Message) -> dict[str, Any]:
    """Return the settings in a message."""
    config: dict[str, Any] = {}
    for record in message.content.config_records.values():
        for key, value in record.items():
            if isinstance(value, list):
                raise RunError(f"the strategy sends the list {key!r}, which only the clients of a Flower app take")
            config[key.replace("-", "_")] = value
    return config
