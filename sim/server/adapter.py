"""What the round loop knows of a strategy, whichever of Flower's two forms it has: weights go in, chunks come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flwr.common import NDArrays, RecordDict

from sim.engine.interface import Chunk, ClientResult
from sim.run_folder.records import Phase
from sim.server.results import PhaseResults

# The calls of a strategy. The position of each is part of the key of its random numbers, so it must never change.
CALLS = ("initial", "configure_fit", "aggregate_fit", "configure_evaluate", "aggregate_evaluate", "evaluate")


class Evaluated(NamedTuple):
    """What a strategy made of the evaluation of a round's clients.

    Attributes:
        clients: the results that count.
        loss: as the strategy returned it; None if it returned none.
        metrics: of any type, as the strategy returned them.
    """

    clients: Sequence[ClientResult]
    loss: float | None
    metrics: Mapping[str, Any]


class StrategyAdapter(Protocol):
    """Translates between the round loop and a strategy.

    Attributes:
        strategy: the object whose state belongs to a checkpoint.
        tests_last: the central test comes after the evaluation by clients, instead of before it.
        may_skip: a round may be without clients or new weights; the strategy aggregates in each round nevertheless.
        calls: the names of its six methods, in the order of ``CALLS``.
    """

    @property
    def calls(self) -> Sequence[str]: ...
    @property
    def strategy(self) -> Any: ...
    @property
    def tests_last(self) -> bool: ...
    @property
    def may_skip(self) -> bool: ...

    def restore(self, state: Any) -> None:
        """Take the state of ``strategy`` that a checkpoint has kept; what it could restore in place has it already."""

    def set_weights(self, weights: NDArrays) -> None:
        """Make ``weights`` the global ones, from which the next round begins."""

    def changed(self) -> NDArrays | None:
        """Return the global weights if the strategy has written into those that it was given; None if it has not."""

    def initial(self) -> NDArrays:
        """Return the weights with which the first round begins."""

    def configure(self, phase: Phase, server_round: int, states: dict[int, RecordDict]) -> list[Chunk]:
        """Have the strategy choose the clients of a phase, ``fit`` or ``evaluate``.

        Args:
            states: what each client left last time.
        """

    def aggregate_fit(self, server_round: int, results: PhaseResults) -> tuple[NDArrays | None, Mapping[str, Any]]:
        """Have the strategy make new weights; None for those of the round before. Its metrics may have any type."""

    def aggregate_evaluate(self, server_round: int, results: PhaseResults) -> Evaluated:
        """Have the strategy aggregate what clients measured."""

    def evaluate(self, server_round: int) -> tuple[float | None, Mapping[str, Any]] | None:
        """Have the strategy test the global weights; None if it does not."""
