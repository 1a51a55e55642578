"""All that the round loop knows of an engine: chunks go in, their results come out in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from flwr.common import NDArrays, RecordDict, Scalar
from flwr.server.client_manager import ClientManager

from sim.engine.aggregation import WeightedSum
from sim.run_folder.records import Phase
from sim.training.local import TestSums


@dataclass(frozen=True)
class Task:
    """What one client is to do: the config of its FitIns or EvaluateIns, and the state it left last time."""

    client_id: int
    config: dict[str, Scalar]
    state: RecordDict | None = None
    num_examples: int = 0  # how much work it is, where that is known


@dataclass(frozen=True)
class Chunk:
    """Clients that one process executes in one call, all from the same weights.

    Attributes:
        weights: the same list object in every chunk that shares them, so that an engine sends them once.
        summed: return the clients' weighted sum instead of each client's weights.
    """

    phase: Phase
    server_round: int
    tasks: Sequence[Task]
    weights: NDArrays
    summed: bool

    @property
    def num_examples(self) -> int:
        """How much work it is."""
        return sum(task.num_examples for task in self.tasks)


@dataclass
class ClientResult:
    """What came back from one client; ``error`` is None unless it raised."""

    client_id: int
    seconds: float = 0.0
    num_examples: int = 0
    loss: float | None = None
    metrics: dict[str, Scalar] = field(default_factory=dict)
    weights: NDArrays | None = None
    state: RecordDict | None = None
    error: str | None = None
    traceback: str | None = None
    cause: BaseException | None = None  # only where client and round loop share a process
    vectorized_with: int | None = None  # how many clients one computation trained; None for one after another
    actor: int | None = None  # which process executed it, where there are several
    lost: bool = False  # it did not raise: the connection to it ended, or it did not answer in time

    @property
    def accuracy(self) -> float | None:
        """The client's own metric of that name, if it is a number."""
        value = self.metrics.get("accuracy")
        return float(value) if isinstance(value, int | float) else None


@dataclass
class ChunkResult:
    """The outcomes in the order of the chunk's tasks, and their weighted sum if that was asked for.

    Attributes:
        spans: (actor, began, ended) of its parts in ``time.perf_counter()``, which all processes of a machine share.
    """

    outcomes: list[ClientResult]
    total: WeightedSum
    spans: list[tuple[int, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TestSlice:
    """A part of the central test: examples ``first`` … ``last`` − 1."""

    server_round: int
    first: int
    last: int


class Dispatcher(Protocol):
    """Executes chunks somewhere."""

    def wait_until_ready(self) -> None:
        """Return when there are enough clients to begin a round.

        Raises:
            EngineError: they do not come.
        """

    def test(self, weights: NDArrays, slices: Sequence[TestSlice]) -> list[TestSums]:
        """Test ``weights`` on each slice of the central test split; the results come in order.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
        """

    def execute(self, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Yield the result of each chunk, in the order of ``chunks``, as soon as that order allows.

        Raises:
            EngineError: processes die again and again.
        """


OpenDispatcher = Callable[[ClientManager], AbstractContextManager[Dispatcher]]
