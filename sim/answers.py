"""What a round's clients answered → their records, and means weighted by examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sim.aggregation import WeightedSum
from sim.engine.contract import Outcome
from sim.records import ClientRecord, Phase


@dataclass
class Answers:
    """What the clients of one phase gave back, in client order."""

    outcomes: list[Outcome] = field(default_factory=list)
    records: list[ClientRecord] = field(default_factory=list)
    total: WeightedSum = field(default_factory=WeightedSum)

    @property
    def ok(self) -> list[Outcome]:
        """Those that did not raise."""
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def failures(self) -> list[Any]:
        """One exception for each client that raised, as strategies expect them."""
        return [
            o.cause or RuntimeError(f"client {o.client_id}: {o.error}") for o in self.outcomes if o.error is not None
        ]


def weighted_mean(values: list[tuple[int, float | None]]) -> float | None:
    """Mean weighted by examples over the clients that measured; None if none did."""
    known = [(n, value) for n, value in values if value is not None]
    num_examples = sum(n for n, _ in known)
    return sum(n * value for n, value in known) / num_examples if num_examples else None


def client_record(outcome: Outcome, phase: Phase, server_round: int, actor: int | None) -> ClientRecord:
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
        actor=actor,
        together=outcome.together,
        status="ok" if ok else "failed",
        error=outcome.error,
    )
