"""Strategies of ``flwr.server.strategy``: their instructions (FitIns, EvaluateIns) → chunks, results → FitRes.

A strategy samples client proxies. Here they are numbers only: the work goes through the engine's dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flwr.server.strategy
import numpy as np
from flwr.common import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    NDArrays,
    Parameters,
    ReconnectIns,
    RecordDict,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import SimpleClientManager
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from numpy.typing import NDArray

from sim.client.torch_client import fit_settings
from sim.config.run_config import RunConfig
from sim.engine.aggregation import cut
from sim.engine.contract import Chunk, ClientResult, Task
from sim.errors import RunError
from sim.run_folder.records import Phase
from sim.server.adapter import Evaluated
from sim.server.results import PhaseResults
from sim.server.stragglers import with_stragglers
from sim.server.strategy import BuiltStrategy
from sim.server.visible_weights import VisibleWeights

Instructions = Sequence[tuple[ClientProxy, FitIns] | tuple[ClientProxy, EvaluateIns]]

_OK = Status(Code.OK, "")
# Flower's wrappers for privacy, which give up on a round with failures.
_PRIVATE = (
    flwr.server.strategy.DifferentialPrivacyServerSideFixedClipping,
    flwr.server.strategy.DifferentialPrivacyServerSideAdaptiveClipping,
)
_NO_CALL = "a strategy returns instructions, the round loop calls the clients"


class VirtualClientProxy(ClientProxy):
    """A virtual client as strategies see it; its ``cid`` is the client id in every engine."""

    def __init__(self, client_id: int) -> None:
        super().__init__(cid=str(client_id))

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """There is no connection."""
        return DisconnectRes(reason="")


def virtual_clients(
    num_clients: int, manager: ClientManager | None = None, proxy_of: Callable[[int], ClientProxy] = VirtualClientProxy
) -> ClientManager:
    """Return a client manager with clients 0 … ``num_clients`` − 1.

    Args:
        manager: the user's own, to which they are added.
        proxy_of: makes the proxy of a client.
    """
    manager = SimpleClientManager() if manager is None else manager  # an empty one counts as false
    for client_id in range(num_clients):
        manager.register(proxy_of(client_id))
    return manager


class LegacyStrategy:
    """The adapter of a strategy of ``flwr.server.strategy``."""

    calls = (
        "initialize_parameters",
        "configure_fit",
        "aggregate_fit",
        "configure_evaluate",
        "aggregate_evaluate",
        "evaluate",
    )
    tests_last = False
    may_skip = False

    def __init__(
        self,
        built: BuiltStrategy,
        config: RunConfig,
        client_manager: ClientManager,
        sizes: Sequence[int] | NDArray[np.int64],
        *,
        sends_settings: bool,
    ) -> None:
        """
        Args:
            client_manager: the clients that the strategy can sample.
            sizes: examples of each client; empty where nobody knows.
            sends_settings: clients get the settings of the training with their instructions.
        """
        self.strategy: Any = built.strategy
        self._built, self._view = built, built.view
        self._config, self._client_manager, self._sizes = config, client_manager, sizes
        self._sends_settings = sends_settings
        self._weights: NDArrays = []
        self._parameters = Parameters([], "")
        self._tensors: tuple[bytes, ...] = ()  # of the parameters when they were made; a strategy may change them
        self._proxies: dict[int, ClientProxy] = {}  # of the present phase

    @property
    def parameters(self) -> Parameters:
        """The global weights as strategies see them."""
        return self._parameters

    def restore(self, state: Any) -> None:
        """Nothing: the strategy was restored in place."""

    def set_weights(self, weights: NDArrays) -> None:
        """Make ``weights`` the global ones."""
        self._weights = weights
        self._parameters = ndarrays_to_parameters(self._view.of(weights))
        self._tensors = tuple(self._parameters.tensors)

    def changed(self) -> NDArrays | None:
        """Return the weights if the strategy wrote into the parameters that it was given."""
        if tuple(self._parameters.tensors) == self._tensors:
            return None
        return self._whole(self._parameters, 0)

    def initial(self) -> NDArrays:
        """Return what the strategy begins with, or the weights of the model if it has none."""
        parameters = self.strategy.initialize_parameters(self._client_manager)
        return self._weights if not parameters else self._whole(parameters, 0)

    def configure(self, phase: Phase, server_round: int, states: dict[int, RecordDict]) -> list[Chunk]:
        """Have the strategy choose clients, and cut its instructions into chunks."""
        instructions: Instructions
        if phase == "evaluate":
            instructions = self.strategy.configure_evaluate(server_round, self._parameters, self._client_manager)
        else:
            chosen = self.strategy.configure_fit(server_round, self._parameters, self._client_manager)
            # What the strategy sends wins.
            settings = self._settings(server_round)
            complete = [(proxy, FitIns(ins.parameters, {**settings, **ins.config})) for proxy, ins in chosen]
            instructions = with_stragglers(complete, self._config, server_round)
        self._proxies = {int(proxy.cid): proxy for proxy, _ in instructions}
        return chunks_of(
            phase,
            server_round,
            instructions,
            global_tensors=self._tensors,
            weights=self._weights,
            view=self._view,
            states=states,
            sizes=self._sizes,
            chunk_size=self._config.vectorized_clients,
            summed=phase == "fit" and self._built.averages,
        )

    def _settings(self, server_round: int) -> dict[str, Any]:
        if not self._sends_settings:
            return {}
        return {"server_round": server_round, **fit_settings(self._config, server_round)}

    def aggregate_fit(self, server_round: int, results: PhaseResults) -> tuple[NDArrays | None, Mapping[str, Any]]:
        """Have the strategy make new weights, in the model's dtypes (FedAdam returns float64)."""
        parameters, metrics = aggregate_fit(self._built, server_round, results, self._proxies)
        if parameters is None:
            return None, metrics
        weights = self._whole(parameters, server_round)
        return self._view.with_untrained(weights, self._weights, results.succeeded, results.total), metrics

    def aggregate_evaluate(self, server_round: int, results: PhaseResults) -> Evaluated:
        """Have the strategy aggregate the results of the clients that kept examples."""
        measured = [r for r in results.succeeded if r.num_examples > 0]
        each = [
            (self._proxies[r.client_id], EvaluateRes(_OK, r.loss or 0.0, r.num_examples, r.metrics)) for r in measured
        ]
        loss, metrics = _aggregated(self.strategy.aggregate_evaluate(server_round, each, results.failures))
        return Evaluated(measured, loss, metrics)

    def evaluate(self, server_round: int) -> tuple[float | None, Mapping[str, Any]] | None:
        """Have the strategy test the global weights; None if it does not."""
        tested: tuple[float, dict[str, Any]] | None = self.strategy.evaluate(server_round, self._parameters)
        return tested or None

    def _whole(self, parameters: Parameters, server_round: int) -> NDArrays:
        return self._view.whole(parameters_to_ndarrays(parameters), self._weights, server_round)


def chunks_of(
    phase: Phase,
    server_round: int,
    instructions: Instructions,
    *,
    global_tensors: Sequence[bytes],
    weights: NDArrays,
    view: VisibleWeights,
    states: dict[int, RecordDict],
    sizes: Sequence[int] | NDArray[np.int64],
    chunk_size: int | None,
    summed: bool,
) -> list[Chunk]:
    """Cut a strategy's instructions into chunks, in client order.

    Args:
        global_tensors: what the strategy sees of ``weights``, as Flower's bytes; instructions may carry others.
        states: what each client left last time.
        sizes: examples of each client; empty where nobody knows.
        chunk_size: clients per chunk; see ``aggregation.cut`` for None.
        summed: the strategy needs only the weighted sum of the clients.

    Raises:
        RunError: instructions carry weights of another model.
    """
    ordered = sorted(instructions, key=lambda pair: int(pair[0].cid))
    # Bytes cannot change, so the same bytes objects are the same weights, whatever holds them.
    known: dict[tuple[int, ...], NDArrays] = {_key(global_tensors): weights}
    chunks = []
    for part in cut(ordered, chunk_size):
        groups: list[tuple[Parameters, list[Task]]] = []
        for proxy, ins in part:
            # Most strategies send one object to all, for which the tensors need not be compared.
            same = bool(groups) and groups[-1][0] is ins.parameters
            if not (same or (groups and _key(groups[-1][0].tensors) == _key(ins.parameters.tensors))):
                groups.append((ins.parameters, []))
            client_id = int(proxy.cid)
            size = int(sizes[client_id]) if len(sizes) else 0
            groups[-1][1].append(Task(client_id, ins.config, states.get(client_id), size))
        for own_parameters, tasks in groups:
            key = _key(own_parameters.tensors)
            if key not in known:
                known[key] = view.whole(parameters_to_ndarrays(own_parameters), weights, server_round)
            chunks.append(Chunk(phase, server_round, tasks, known[key], summed, view.untrained))
    return chunks


def _key(tensors: Sequence[bytes]) -> tuple[int, ...]:
    return tuple(id(tensor) for tensor in tensors)


def aggregate_fit(
    built: BuiltStrategy, server_round: int, results: PhaseResults, proxies: dict[int, ClientProxy]
) -> tuple[Parameters | None, Mapping[str, Any]]:
    """Call the strategy's ``aggregate_fit``: with every client's weights, or with their mean as the only one.

    Where the mean is all that the strategy uses, its metrics function gets every client nevertheless.

    Returns:
        The new weights, and what the strategy made of the clients' metrics.
    """
    strategy: Any = built.strategy
    if not built.averages:
        each = [(proxies[r.client_id], _fit_res(built.view.of(r.weights or []), r)) for r in results.succeeded]
        failures = results.failures
        if failures and isinstance(strategy, _PRIVATE):
            # Noise that is calibrated for the clients that are left protects them as well.
            planned, failures = strategy.num_sampled_clients, []
            strategy.num_sampled_clients = len(each)
            try:
                return _aggregated(strategy.aggregate_fit(server_round, each, failures))
            finally:
                strategy.num_sampled_clients = planned
        return _aggregated(strategy.aggregate_fit(server_round, each, failures))
    if not results.total.num_examples:
        raise RunError(f"round {server_round}: no client trained on any example, so there is no mean of them")
    mean = ClientResult(results.succeeded[0].client_id, num_examples=int(results.total.num_examples))
    one = [(proxies[mean.client_id], _fit_res(built.view.of(results.total.mean()), mean))]
    with _metrics_of_every_client(strategy, results.succeeded):
        return _aggregated(strategy.aggregate_fit(server_round, one, results.failures))


def _aggregated(returned: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the two results of an aggregation; what holds no metrics has none."""
    if not isinstance(returned, Sequence) or not returned:
        return None, {}
    metrics = returned[1] if len(returned) > 1 else None
    return returned[0], metrics if isinstance(metrics, Mapping) else {}


def _fit_res(weights: NDArrays, result: ClientResult) -> FitRes:
    return FitRes(_OK, ndarrays_to_parameters(weights), result.num_examples, result.metrics)


@contextmanager
def _metrics_of_every_client(strategy: Any, results: list[ClientResult]) -> Iterator[None]:
    function = getattr(strategy, "fit_metrics_aggregation_fn", None)
    if function is None:
        yield
        return
    every = [(r.num_examples, r.metrics) for r in results]
    strategy.fit_metrics_aggregation_fn = lambda _: function(every)
    try:
        yield
    finally:
        strategy.fit_metrics_aggregation_fn = function
