"""The results of a round's clients: means weighted by examples, quantiles, failures and records."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sim import metrics
from sim.engine.aggregation import WeightedSum
from sim.engine.interface import ClientResult
from sim.errors import one_line
from sim.run_folder.records import ClientRecord, MetricRecord, Phase

_HOW_TRAIN_CHANGES = (
    "train must change the model that it is given, which an optimizer made elsewhere, over another model, does not"
)
_HOW_CLIENTS_CHANGE = "clients must send the weights that they have trained, and not those that they got"


def nothing_trained(*, own_clients: bool) -> str:
    """Return a note for a run whose first round has changed nothing.

    Args:
        own_clients: the clients are the user's own, and not only a ``train``.
    """
    how = _HOW_CLIENTS_CHANGE if own_clients else _HOW_TRAIN_CHANGES
    return f"note: round 1 has left the weights as they were; {how}"


@dataclass
class PhaseResults:
    """What the clients of one phase returned, in client order.

    Attributes:
        spans: (actor, start, end) of each chunk in seconds of ``time.perf_counter()``; NaN from other machines.
    """

    clients: list[ClientResult] = field(default_factory=list)
    records: list[ClientRecord] = field(default_factory=list)
    total: WeightedSum = field(default_factory=WeightedSum)
    spans: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def succeeded(self) -> list[ClientResult]:
        """Results of the clients that did not raise."""
        return [result for result in self.clients if result.error is None]

    @property
    def failures(self) -> list[Any]:
        """One exception for each client that raised, as strategies expect them."""
        return [
            r.cause or RuntimeError(f"client {r.client_id}: {r.error}") for r in self.clients if r.error is not None
        ]

    def parts(self, start: float, end: float) -> dict[str, Any]:
        """Cut the seconds from ``start`` to ``end`` into the four parts of a ``RoundRecord``.

        They are left empty where a chunk was executed on another machine, whose clock has nothing to do with this one.
        """
        if not self.spans or any(math.isnan(began) for _, began, _ in self.spans):
            return {}
        # Clients of an asynchronous run may have been at work before.
        spans = [(actor, max(began, start), max(ended, start)) for actor, began, ended in self.spans]
        first, last = min(began for _, began, _ in spans), max(ended for _, _, ended in spans)
        num_actors = len({actor for actor, _, _ in spans})
        train = sum(ended - began for _, began, ended in spans) / num_actors
        return {
            "broadcast_seconds": first - start,
            "train_seconds": train,
            "wait_seconds": last - first - train,
            "return_seconds": end - last,
        }


@dataclass
class _Kind:
    """One kind of failure: the client that raised it first, and how often it occurred."""

    first: str
    count: int = 0
    rounds: set[int] = field(default_factory=set)


class Failures:
    """The failures of a run by kind: the type of the exception and the line that raised it."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, result: ClientResult, phase: Phase, server_round: int) -> None:
        """Count a failure; log the first of its kind with its traceback, the others as a line."""
        error = result.error or ""
        lines = [line.strip() for line in (result.traceback or "").splitlines() if line.strip().startswith("File ")]
        key = error.split(":")[0], lines[-1] if lines else ""
        kind = self._kinds.get(key)
        if kind is None:
            place = f"client {result.client_id}, round {server_round} ({phase})"
            kind = self._kinds[key] = _Kind(f"{place}: {one_line(error)}")
            detail = result.traceback or error
            logging.getLogger("flwr").error("client %s, round %s:\n%s", result.client_id, server_round, detail)
        else:
            logging.getLogger("flwr").error("client %s, round %s: %s", result.client_id, server_round, error)
        kind.count += 1
        kind.rounds.add(server_round)

    def summary(self) -> list[str]:
        """Return one line per kind, the most frequent first."""
        kinds = sorted(self._kinds.values(), key=lambda kind: -kind.count)
        return [
            f"{kind.count} failure{'s' * (kind.count > 1)} in {len(kind.rounds)} "
            f"round{'s' * (len(kind.rounds) > 1)}, the first of {kind.first}"
            for kind in kinds
        ]


def weighted_mean(values: list[tuple[int, float | None]]) -> float | None:
    """Return the mean over the clients that measured a value, weighted by examples; None if none did.

    NaN is what a client could not measure, as an AUROC where all its examples have one class.
    """
    known = [(n, value) for n, value in values if value is not None and not math.isnan(value)]
    num_examples = sum(n for n, _ in known)
    return sum(n * value for n, value in known) / num_examples if num_examples else None


def client_quantiles(accuracies: list[float]) -> dict[str, Any]:
    """Return how a round's clients differ: columns of ``RoundRecord``; empty for no clients."""
    return {f"eval_accuracy_{name}": value for name, value in metrics.quantiles(accuracies).items()}


def numbers_of(measured: Mapping[Any, Any]) -> dict[str, float]:
    """Return the numbers among metrics, which may also be lists of them, or texts."""
    found = {}
    for name, value in metrics.flattened(measured).items():
        if isinstance(value, int | float | np.number):
            with suppress(OverflowError):  # an integer of 400 digits
                found[str(name)] = float(value)
    return found


def metric_records(
    clients: Sequence[ClientResult], phase: Phase, server_round: int, aggregated: Mapping[str, float]
) -> list[MetricRecord]:
    """Return rows of ``metrics.csv``: each number of each client, then their means, in the order of their appearance.

    Args:
        clients: those that did not fail; one without examples measured nothing.
        aggregated: what the strategy made of the clients' metrics, which is recorded instead of a mean.
    """
    rows = []
    values: dict[str, list[tuple[int, float | None]]] = {}
    for client in clients:
        if not client.has_measured:
            continue
        numbers = numbers_of(client.metrics)
        if client.loss is not None:
            numbers = {"loss": client.loss, **{n: value for n, value in numbers.items() if n != "loss"}}
        for name, value in numbers.items():
            rows.append(MetricRecord(server_round, phase, client.client_id, client.num_examples or None, name, value))
            known = values.setdefault(name, [])
            if not math.isnan(value):
                known.append((client.num_examples, value))
    everyone = sum(client.num_examples for client in clients)
    for name in dict.fromkeys([*values, *aggregated]):
        num_examples = sum(n for n, _ in values[name]) if name in values else everyone
        mean = aggregated[name] if name in aggregated else weighted_mean(values[name])
        if mean is None and values.get(name):  # numbers of clients that do not say how many examples they used
            continue
        rows.append(MetricRecord(server_round, phase, None, num_examples or None, name, mean))
    return rows


def test_records(
    server_round: int,
    phase: Literal["test", "validation"],
    num_examples: int | None,
    loss: float,
    measured: Mapping[str, float],
) -> list[MetricRecord]:
    """Return the rows of ``metrics.csv`` of a central test or a validation; a loss of NaN is none."""
    numbers = {**({} if math.isnan(loss) else {"loss": loss}), **{n: v for n, v in measured.items() if n != "loss"}}
    return [MetricRecord(server_round, phase, None, num_examples, name, value) for name, value in numbers.items()]


def totals(clients: Sequence[ClientRecord], *, drops: bool) -> dict[str, Any]:
    """Return what a round's row has of all its clients: columns of ``RoundRecord``.

    Args:
        drops: clients may drop out.
    """
    trained = [client for client in clients if client.phase == "fit"]
    dropped = {"num_dropped": sum(client.status == "dropped" for client in trained)} if drops and trained else {}
    if not any(client.virtual_start is not None for client in trained):
        return dropped
    staleness = [client.staleness for client in trained if client.status == "ok" and client.staleness is not None]
    return {
        "num_late": sum(client.status == "late" for client in trained),
        "num_offline": sum(client.status == "offline" for client in trained),
        "staleness_mean": float(np.mean(staleness)) if staleness else None,
        **dropped,
    }


def client_record(result: ClientResult, phase: Phase, server_round: int) -> ClientRecord:
    """Return a client's row of ``clients.csv``."""
    succeeded = result.error is None
    return ClientRecord(
        round=server_round,
        phase=phase,
        client_id=result.client_id,
        num_examples=result.num_examples if succeeded else None,
        loss=result.loss if result.has_measured else None,
        accuracy=result.accuracy if result.has_measured else None,
        seconds=result.seconds,
        actor=result.actor,
        vectorized_with=result.vectorized_with,
        status="ok" if succeeded else "failed",
        error=result.error,
        bytes_down=result.bytes_down,
        bytes_up=result.bytes_up,
    )


def bytes_of(records: Sequence[ClientRecord]) -> dict[str, Any]:
    """Return the sums over the clients of a round: columns of ``RoundRecord``; empty where nothing was counted."""
    columns = ("bytes_down", "bytes_up")
    known = {name: [value for r in records if (value := getattr(r, name)) is not None] for name in columns}
    return {name: sum(values) for name, values in known.items() if values}
