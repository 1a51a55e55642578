"""What clients raised in a run: each kind is shown whole once and counted after."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sim.engine.contract import Outcome
from sim.run_folder.records import Phase


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

    def add(self, outcome: Outcome, phase: Phase, server_round: int) -> None:
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
