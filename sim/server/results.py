"""What a round's clients answered → new weights through the strategy, records, and means weighted by examples."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, NDArrays, Parameters, Status, ndarrays_to_parameters
from flwr.server.client_proxy import ClientProxy

from sim.engine.aggregation import WeightedSum
from sim.engine.contract import ClientResult
from sim.run_folder.records import PERCENTS, ClientRecord, Phase


@dataclass
class _Kind:
    """One kind of failure: who raised it first, and how often it came."""

    first: str
    count: int = 0
    rounds: set[int] = field(default_factory=set)


class Failures:
    """Failures by kind: the type of the exception and the line that raised it."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, outcome: ClientResult, phase: Phase, server_round: int) -> None:
        """Take note of a failure; log the first of its kind with its traceback, the others as a line."""
        error = outcome.error or ""
        lines = [line.strip() for line in (outcome.traceback or "").splitlines() if line.strip().startswith("File ")]
        key = error.split(":")[0], lines[-1] if lines else ""
        kind = self._kinds.get(key)
        if kind is None:
            one_line = " ".join(error.split())
            kind = self._kinds[key] = _Kind(f"client {outcome.client_id}, round {server_round} ({phase}): {one_line}")
            detail = outcome.traceback or error
            logging.getLogger("flwr").error("client %s, round %s:\n%s", outcome.client_id, server_round, detail)
        else:
            logging.getLogger("flwr").error("client %s, round %s: %s", outcome.client_id, server_round, error)
        kind.count += 1
        kind.rounds.add(server_round)

    def summary(self) -> list[str]:
        """One line a kind, the most frequent first."""
        kinds = sorted(self._kinds.values(), key=lambda kind: -kind.count)
        return [
            f"{kind.count} failure{'s' * (kind.count > 1)} in {len(kind.rounds)} "
            f"round{'s' * (len(kind.rounds) > 1)}, the first of {kind.first}"
            for kind in kinds
        ]


@dataclass
class PhaseResults:
    """What the clients of one phase gave back, in client order."""

    outcomes: list[ClientResult] = field(default_factory=list)
    records: list[ClientRecord] = field(default_factory=list)
    total: WeightedSum = field(default_factory=WeightedSum)
    spans: list[tuple[int, float, float]] = field(default_factory=list)  # actor, began, ended

    @property
    def ok(self) -> list[ClientResult]:
        """Those that did not raise."""
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def failures(self) -> list[Any]:
        """One exception for each client that raised, as strategies expect them."""
        return [
            o.cause or RuntimeError(f"client {o.client_id}: {o.error}") for o in self.outcomes if o.error is not None
        ]

    def parts(self, asked: float, returned: float) -> dict[str, Any]:
        """Cut the seconds from ``asked`` to ``returned`` into the four parts of a ``RoundRecord``."""
        if not self.spans:
            return {}
        first, last = min(began for _, began, _ in self.spans), max(ended for _, _, ended in self.spans)
        num_actors = len({actor for actor, _, _ in self.spans})
        train = sum(ended - began for _, began, ended in self.spans) / num_actors
        return {
            "broadcast_seconds": first - asked,
            "train_seconds": train,
            "wait_seconds": last - first - train,
            "return_seconds": returned - last,
        }


def aggregate(
    strategy: Any, server_round: int, answers: PhaseResults, proxies: dict[int, ClientProxy], *, averages: bool
) -> Parameters | None:
    """Call the strategy's ``aggregate_fit``: with every client's weights, or with their mean as the only one.

    Args:
        averages: the mean is all that the strategy uses; its metrics function sees every client nevertheless.
    """
    if not averages:
        each = [(proxies[o.client_id], _fit_res(o.weights or [], o)) for o in answers.ok]
        failures = answers.failures
        if failures and hasattr(strategy, "num_sampled_clients"):
            # Flower's privacy wrappers give up on a round with failures. Noise for the clients that are left protects
            # them as well.
            planned, failures = strategy.num_sampled_clients, []
            strategy.num_sampled_clients = len(each)
            try:
                return strategy.aggregate_fit(server_round, each, failures)[0]  # type: ignore[no-any-return]
            finally:
                strategy.num_sampled_clients = planned
        return strategy.aggregate_fit(server_round, each, failures)[0]  # type: ignore[no-any-return]
    mean = ClientResult(answers.ok[0].client_id, num_examples=answers.total.num_examples)
    one = [(proxies[mean.client_id], _fit_res(answers.total.mean(), mean))]
    with _metrics_of_every_client(strategy, answers.ok):
        return strategy.aggregate_fit(server_round, one, answers.failures)[0]  # type: ignore[no-any-return]


def _fit_res(weights: NDArrays, outcome: ClientResult) -> FitRes:
    return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(weights), outcome.num_examples, outcome.metrics)


@contextmanager
def _metrics_of_every_client(strategy: Any, outcomes: list[ClientResult]) -> Iterator[None]:
    function = getattr(strategy, "fit_metrics_aggregation_fn", None)
    if function is None:
        yield
        return
    every = [(o.num_examples, o.metrics) for o in outcomes]
    strategy.fit_metrics_aggregation_fn = lambda _: function(every)
    try:
        yield
    finally:
        strategy.fit_metrics_aggregation_fn = function


def weighted_mean(values: list[tuple[int, float | None]]) -> float | None:
    """Mean weighted by examples over the clients that measured; None if none did."""
    known = [(n, value) for n, value in values if value is not None]
    num_examples = sum(n for n, _ in known)
    return sum(n * value for n, value in known) / num_examples if num_examples else None


def spread(accuracies: list[float]) -> dict[str, Any]:
    """How a round's clients differ, each of them once: columns of ``RoundRecord``; nothing if none measured.

    The worst tenth is rounded up to whole clients (Li et al. 2020, "Fair Resource Allocation in Federated Learning").
    """
    if not accuracies:
        return {}
    quantiles = np.quantile(accuracies, [percent / 100 for percent in PERCENTS])
    named = {f"eval_accuracy_p{percent}": float(value) for percent, value in zip(PERCENTS, quantiles, strict=True)}
    worst = sorted(accuracies)[: math.ceil(len(accuracies) / 10)]
    return {**named, "eval_accuracy_worst10": sum(worst) / len(worst)}


def client_record(outcome: ClientResult, phase: Phase, server_round: int) -> ClientRecord:
    ok = outcome.error is None
    measured = ok and outcome.num_examples > 0
    return ClientRecord(
        round=server_round,
        phase=phase,
        client_id=outcome.client_id,
        num_examples=outcome.num_examples if ok else None,
        loss=outcome.loss if measured else None,
        accuracy=outcome.accuracy if measured else None,
        seconds=outcome.seconds,
        actor=outcome.actor,
        vectorized_with=outcome.vectorized_with,
        status="ok" if ok else "failed",
        error=outcome.error,
    )
