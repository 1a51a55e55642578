"""Strategies of ``flwr.server.strategy``: their instructions (FitIns, EvaluateIns) → chunks, results → FitRes.

A strategy samples the proxies of ``sim.server.virtual_clients``; the work goes through the engine's dispatcher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import flwr.server.strategy
import flwr.serverapp.strategy
import numpy as np
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    NDArrays,
    Parameters,
    RecordDict,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from numpy.typing import NDArray

from sim.algorithms.algorithm import Aggregation
from sim.client.torch_client import fit_settings
from sim.config.run_config import RunConfig
from sim.engine.aggregation import cut
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import RunError
from sim.run_folder.records import Phase
from sim.server.adapter import Evaluated
from sim.server.results import PhaseResults
from sim.server.stragglers import with_stragglers
from sim.server.strategy import BuiltStrategy
from sim.server.strategy_returns import checked_aggregated, checked_instructions, checked_tested, evaluate_fn_named
from sim.server.virtual_clients import Call, VirtualClientProxy
from sim.server.visible_weights import VisibleWeights

Instructions = Sequence[tuple[ClientProxy, FitIns] | tuple[ClientProxy, EvaluateIns]]

_OK = Status(Code.OK, "")
# Flower's wrappers for privacy, which give up on a round with failures.
_PRIVATE = (
    flwr.server.strategy.DifferentialPrivacyServerSideFixedClipping,
    flwr.server.strategy.DifferentialPrivacyServerSideAdaptiveClipping,
    flwr.serverapp.strategy.DifferentialPrivacyServerSideFixedClipping,
    flwr.serverapp.strategy.DifferentialPrivacyServerSideAdaptiveClipping,
)


class FitInsAdapter:
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

    def __init__(
        self,
        built: BuiltStrategy,
        config: RunConfig,
        client_manager: ClientManager,
        sizes: Sequence[int] | NDArray[np.int64],
        *,
        sends_settings: bool,
        trained: Sequence[int] = (),
        may_skip: bool = False,
    ) -> None:
        """
        Args:
            client_manager: the clients that the strategy can sample.
            trained: positions of the parameters that clients train and share, for the algorithm.
            sizes: examples of each client; empty where nobody knows.
            sends_settings: clients get the settings of the training with their instructions.
            may_skip: the strategy is the user's own, which may leave a round out, as in Flower.
        """
        self.may_skip = may_skip
        self._strategy: Any = built.strategy
        self._built, self._view = built, built.view
        self._algorithm, self._trained = built.algorithm, trained
        self._sent: NDArrays = []  # what clients get: the global weights, and what the algorithm sends beside them
        self._config, self._client_manager, self._sizes = config, client_manager, sizes
        self._sends_settings = sends_settings
        self._weights: NDArrays = []
        self._parameters: Parameters | None = None  # made when a strategy asks for them
        self._tensors: tuple[bytes, ...] = ()  # of the parameters when they were made; a strategy may change them
        self._proxies: dict[int, ClientProxy] = {}  # of the present phase

    @property
    def parameters(self) -> Parameters:
        """The global weights as strategies see them."""
        if self._parameters is None:
            self._parameters = ndarrays_to_parameters(self._view.of(self._weights))
            self._tensors = tuple(self._parameters.tensors)
        return self._parameters

    @property
    def strategy(self) -> Any:
        """The strategy, and what the server part of an algorithm keeps."""
        return self._built.kept

    def restore(self, state: Any) -> None:
        """Take what an algorithm keeps; the strategy was restored in place."""
        if self._algorithm is not None:
            self._algorithm.restore(state["algorithm"])

    def set_weights(self, weights: NDArrays) -> None:
        """Make ``weights`` the global ones."""
        self._weights = weights
        self._parameters = None
        self._sent = weights if self._algorithm is None else [*weights, *self._algorithm.sent()]

    def changed(self) -> NDArrays | None:
        """Return the weights if the strategy wrote into the parameters that it was given."""
        if self._parameters is None or tuple(self._parameters.tensors) == self._tensors:
            return None
        return self._whole(self._parameters, 0)

    def initial(self) -> NDArrays:
        """Return what the strategy begins with, or the weights of the model if it has none."""
        parameters = self._strategy.initialize_parameters(self._client_manager)
        return self._weights if not parameters else self._whole(parameters, 0)

    def configure(self, phase: Phase, server_round: int, states: dict[int, RecordDict]) -> list[Chunk]:
        """Have the strategy choose clients, and cut its instructions into chunks."""
        instructions: Instructions
        if phase == "evaluate":
            given = self._strategy.configure_evaluate(server_round, self.parameters, self._client_manager)
            instructions = checked_instructions(self._strategy, "configure_evaluate", given, server_round)
            if self._algorithm is not None:  # an own model may be fine-tuned first
                settings = self._settings(server_round)
                instructions = [(p, EvaluateIns(i.parameters, {**settings, **i.config})) for p, i in instructions]
        else:
            given = self._strategy.configure_fit(server_round, self.parameters, self._client_manager)
            chosen = checked_instructions(self._strategy, "configure_fit", given, server_round)
            # What the strategy sends wins.
            settings = self._settings(server_round)
            complete = [(int(proxy.cid), {**settings, **ins.config}) for proxy, ins in chosen]
            left = zip(chosen, with_stragglers(complete, self._config, server_round), strict=True)
            instructions = [(p, FitIns(i.parameters, each)) for (p, i), each in left if each is not None]
        self._proxies = {int(proxy.cid): proxy for proxy, _ in instructions}
        chunks = chunks_of(
            phase,
            server_round,
            instructions,
            global_tensors=self._tensors,
            weights=self._sent,
            view=self._view,
            states=states,
            sizes=self._sizes,
            chunk_size=self._config.vectorized_clients,
            summed=phase == "fit" and self._built.averages,
        )
        if self._algorithm is None:
            return chunks
        uniform, num_extras = self._algorithm.weighting == "uniform", len(self._sent) - len(self._weights)
        return [replace(chunk, uniform=uniform, num_extras=num_extras) for chunk in chunks]

    def asked(self, server_round: int, client_id: int, ins: Call, state: RecordDict | None, batch: int) -> Chunk:
        """Return the chunk of what the strategy asks of one client by itself.

        Args:
            batch: its number in the run, from which the client's random numbers follow.
        """
        task, phase, weights = Task(client_id, dict(ins.config), state), _phase_of(ins), self._weights
        if isinstance(ins, FitIns | EvaluateIns):
            weights = self._whole(ins.parameters, server_round)
        else:
            task = replace(task, asks="properties" if isinstance(ins, GetPropertiesIns) else "parameters")
        if phase == "fit":
            task = replace(task, config={**self._settings(server_round), **task.config})
        return Chunk(phase, server_round, [task], weights, False, self._view.untrained, batch=batch)

    def answer(self, ins: Call, result: ClientResult) -> Any:
        """Return what a client answered as Flower has it: a FitRes for FitIns, and so on."""
        if isinstance(ins, FitIns):
            return _fit_res(self._view.of(result.weights or []), result)
        if isinstance(ins, EvaluateIns):
            return EvaluateRes(_OK, result.loss or 0.0, result.num_examples, result.metrics)
        if isinstance(ins, GetPropertiesIns):
            return GetPropertiesRes(_OK, result.metrics)
        return GetParametersRes(_OK, ndarrays_to_parameters(self._view.of(result.weights or [])))

    def _settings(self, server_round: int) -> dict[str, Any]:
        if not self._sends_settings:
            return {}
        return {"server_round": server_round, **fit_settings(self._config, server_round)}

    def aggregate_fit(self, server_round: int, results: PhaseResults) -> tuple[NDArrays | None, Mapping[str, Any]]:
        """Have the strategy make new weights, in the model's dtypes (FedAdam returns float64).

        Flower calls a strategy that has chosen no client only in the next round.
        """
        if not results.clients:
            return None, {}
        if self._takes_mean(results):
            mean = self._aggregated(results) or self._view.mean(results.total)
            weights = self._view.whole(
                [np.asarray(array) for array in self._view.of(mean)], self._weights, server_round
            )
            return self._view.with_untrained(weights, self._weights, results.succeeded, results.total), {}
        parameters, metrics = aggregate_fit(
            self._built, server_round, results, self._proxies, self._aggregated(results)
        )
        if parameters is None:
            return None, metrics
        weights = self._whole(parameters, server_round)
        return self._view.with_untrained(weights, self._weights, results.succeeded, results.total), metrics

    def _takes_mean(self, results: PhaseResults) -> bool:
        """Whether the strategy's new weights are the mean that it is given: it is Flower's own mean of one result.

        Then nobody needs the mean in Flower's form, which takes milliseconds.
        """
        strategy = self._strategy
        return bool(
            self._built.averages
            and getattr(strategy.aggregate_fit, "__func__", None) is flwr.server.strategy.FedAvg.aggregate_fit
            and strategy.inplace
            and strategy.fit_metrics_aggregation_fn is None
            and (strategy.accept_failures or not results.failures)
            and results.succeeded
            and results.total.num_examples
        )

    def _aggregated(self, results: PhaseResults) -> NDArrays | None:
        """Return what the algorithm makes of the clients' mean; None where the strategy gets what they sent."""
        algorithm, total = self._algorithm, results.total
        if algorithm is None or not self._built.averages or not total.num_examples:
            return None
        mean, count = total.mean(), len(self._weights)
        aggregation = Aggregation(
            before=[self._weights[position] for position in self._trained],
            mean=[mean[position] for position in self._trained],
            extras=mean[count:],
            share=len(results.succeeded) / self._config.num_clients,
            clients=[(result.num_examples, result.metrics) for result in results.succeeded],
        )
        weights = mean[:count]
        for position, array in zip(self._trained, algorithm.aggregate(aggregation), strict=True):
            weights[position] = array
        return weights

    def aggregate_evaluate(self, server_round: int, results: PhaseResults) -> Evaluated:
        """Have the strategy aggregate the results of the clients that kept examples."""
        if not results.clients:  # it has chosen none
            return Evaluated([], None, {})
        measured = [r for r in results.succeeded if r.has_measured]
        own = getattr(self._strategy.aggregate_evaluate, "__func__", None)
        if (
            measured
            and own is flwr.server.strategy.FedAvg.aggregate_evaluate
            and not any(r.num_examples for r in measured)
        ):
            raise RunError(
                f"round {server_round}: no client evaluated on any example, so there is no mean of their losses"
            )
        each = [
            (self._proxies[r.client_id], EvaluateRes(_OK, r.loss or 0.0, r.num_examples, r.metrics)) for r in measured
        ]
        returned = self._strategy.aggregate_evaluate(server_round, each, results.failures)
        loss, metrics = checked_aggregated(self._strategy, "aggregate_evaluate", returned, server_round)
        return Evaluated(measured, loss, metrics)

    def evaluate(self, server_round: int) -> tuple[float | None, Mapping[str, Any]] | None:
        """Have the strategy test the global weights; None if it does not."""
        with evaluate_fn_named(server_round):
            returned = self._strategy.evaluate(server_round, self.parameters)
        return checked_tested(self._strategy, returned, server_round)

    def _whole(self, parameters: Parameters, server_round: int) -> NDArrays:
        return self._view.whole(parameters_to_ndarrays(parameters), self._weights, server_round)


def _phase_of(ins: Call) -> Phase:
    return "fit" if isinstance(ins, FitIns) else "evaluate" if isinstance(ins, EvaluateIns) else "query"


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
    built: BuiltStrategy,
    server_round: int,
    results: PhaseResults,
    proxies: dict[int, ClientProxy],
    aggregated: NDArrays | None = None,
) -> tuple[Parameters | None, Mapping[str, Any]]:
    """Call the strategy's ``aggregate_fit``: with every client's weights, or with their mean as the only one.

    Where the mean is all that the strategy uses, its metrics function gets every client nevertheless.

    Args:
        aggregated: what an algorithm has made of the mean.

    Returns:
        The new weights, and what the strategy made of the clients' metrics.
    """
    strategy: Any = built.strategy

    def made(each: list[tuple[ClientProxy, FitRes]], failures: Any) -> tuple[Parameters | None, Mapping[str, Any]]:
        returned = strategy.aggregate_fit(server_round, each, failures)
        return checked_aggregated(strategy, "aggregate_fit", returned, server_round)

    if not built.averages:
        alike = built.algorithm is not None and built.algorithm.weighting == "uniform"
        clients = [replace(r, num_examples=1) if alike else r for r in results.succeeded]
        each = [(proxies[r.client_id], _fit_res(built.view.of(r.weights or []), r)) for r in clients]
        with noise_for_those_left(strategy, results) as is_for_fewer:
            return made(each, [] if is_for_fewer else results.failures)
    if not results.succeeded:
        return made([], results.failures)
    if not results.total.num_examples:
        raise RunError(f"round {server_round}: no client trained on any example, so there is no mean of them")
    mean = ClientResult(results.succeeded[0].client_id, num_examples=int(results.total.num_examples))
    weights = built.view.mean(results.total) if aggregated is None else aggregated
    one = [(proxies.get(mean.client_id) or VirtualClientProxy(mean.client_id), _fit_res(built.view.of(weights), mean))]
    with _metrics_of_every_client(strategy, results.succeeded):
        return made(one, results.failures)


@contextmanager
def noise_for_those_left(strategy: Any, results: PhaseResults) -> Iterator[bool]:
    """Have a wrapper for privacy make noise for the clients that are left, which protects them as well.

    It yields whether it does so; the wrapper must then not see failures. One that has an accountant plans for all.
    """
    planned, left = getattr(strategy, "num_sampled_clients", 0), len(results.succeeded)
    is_complete = left >= planned and left == len(results.clients)
    if is_complete or not isinstance(strategy, _PRIVATE) or getattr(strategy, "accountant", None) is not None:
        yield False
        return
    strategy.num_sampled_clients = left
    try:
        yield True
    finally:
        strategy.num_sampled_clients = planned


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
