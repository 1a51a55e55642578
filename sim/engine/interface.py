"""What the round loop knows of an engine: chunks go in, their results come out in the same order."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from flwr.common import NDArrays, RecordDict, Scalar

from sim.client.message_contents import Records
from sim.engine.aggregation import MismatchError, WeightedSum
from sim.errors import described, many_lines
from sim.metrics import spelled
from sim.run_folder.records import Phase
from sim.training.local import TestSums

MOST_ACCURACY = 1 + 1e-6  # a mean of float32 numbers can exceed 1 in its last bits


@dataclass(frozen=True)
class Task:
    """What one client has to do: the config of its FitIns or EvaluateIns, and the state that it left last time.

    Attributes:
        num_examples: how much work it is, where that is known; otherwise 0.
        message: what a Flower app gets instead of a FitIns or EvaluateIns.
        state_round: the round in which the client wrote its state, see ``sim.run_folder.client_states``; None for none.
        state_number: under which it writes its next state; None for the number of the round.
        repeat: how often the client has begun with the same weights before, in asynchronous rounds; how many messages
            of a batch it gets before this one, in a Flower app.
        asks: what the strategy asks of the client by itself instead of a training or an evaluation.
    """

    client_id: int
    config: dict[str, Scalar]
    state: RecordDict | None = None
    num_examples: int = 0
    message: TaskMessage | None = None
    state_round: int | None = None
    state_number: int | None = None
    repeat: int = 0
    asks: Literal["properties", "parameters"] | None = None


@dataclass(frozen=True)
class TaskMessage:
    """A message of Flower to one client; its arrays are the weights of the chunk, as bytes.

    Attributes:
        records: its content, see ``sim.client.message_contents``.
        weighted_by: name of the metric by which the reply is weighted in a sum.
    """

    message_type: str
    message_id: str
    group_id: str
    ttl_seconds: float
    records: Records
    weighted_by: str = ""


@dataclass(frozen=True)
class Chunk:
    """Clients that one process executes in one call, all from the same weights.

    Attributes:
        weights: the same list object in every chunk that shares them, so that an engine sends them once.
        summed: return the weighted sum of the clients instead of the weights of each.
        untrained: positions of the weights that are not trained, see ``WeightedSum.exact``.
        batch: number of what an app or a strategy asks of clients by itself, of which there may be several in a round.
        uniform: the sum counts each client alike, instead of by its examples.
        num_extras: how many arrays at the end of ``weights`` are sent beside the model.
    """

    phase: Phase
    server_round: int
    tasks: Sequence[Task]
    weights: NDArrays
    summed: bool
    untrained: frozenset[int] = frozenset()
    batch: int | None = None
    uniform: bool = False
    num_extras: int = 0

    @property
    def num_examples(self) -> int:
        """How much work the chunk is."""
        return sum(task.num_examples for task in self.tasks)


@dataclass
class ClientResult:
    """What came back from one client.

    Attributes:
        seconds: time that the client took in its process.
        loss: mean over its examples, as the client measured it; a cross-entropy is in nats.
        error: what it raised; None for a client that succeeded.
        cause: the exception itself, only where client and round loop share a process.
        vectorized_with: number of clients that one computation trained; None for one client after another.
        actor: the process that executed it, where there are several.
        lost: it did not raise, but its connection ended or it did not answer in time.
        accuracy_unit: of a Flower program, what it calls an accuracy of 1 (100 for percent), in whatever spelling.
        records: content of the reply of a Flower app; its arrays are ``weights``, as bytes, or are in the sum.
        wrote_state: the client has written a state in this round.
        stops_run: what failed is not the client's affair but the run's, as a full disk.
        bytes_down, bytes_up: what was sent to the client and what it sent, where that is simulated.
    """

    client_id: int
    seconds: float = 0.0
    num_examples: int = 0
    loss: float | None = None
    metrics: dict[str, Scalar] = field(default_factory=dict)
    weights: NDArrays | None = None
    state: RecordDict | None = None
    error: str | None = None
    traceback: str | None = None
    cause: BaseException | None = None
    vectorized_with: int | None = None
    actor: int | None = None
    lost: bool = False
    accuracy_unit: int | None = None
    records: Records | None = None
    wrote_state: bool = False
    stops_run: bool = False
    bytes_down: int | None = None
    bytes_up: int | None = None

    @property
    def has_measured(self) -> bool:
        """Whether its loss and metrics say something; a Flower program's may count no examples."""
        return self.error is None and (self.num_examples > 0 or self.accuracy_unit is not None)

    @property
    def accuracy(self) -> float | None:
        """The client's own metric ``accuracy``, if it is a number; in a Flower program, if it is a fraction, too."""
        if self.accuracy_unit is None:
            value = self.metrics.get("accuracy")
            return float(value) if isinstance(value, int | float) else None
        measured = spelled(self.metrics, "accuracy")
        if measured is None or not 0 <= measured / self.accuracy_unit <= MOST_ACCURACY:
            return None
        return measured / self.accuracy_unit


@dataclass
class ChunkResult:
    """The results of a chunk's clients in the order of its tasks, and their weighted sum if that was asked for.

    Attributes:
        spans: (actor, start, end) of its parts in seconds of ``time.perf_counter()``, which all processes of a
            machine share; NaN from other machines, whose clock is another.
        notes: what the process that executed it would log as sim, for the process that has the log.
    """

    results: list[ClientResult]
    total: WeightedSum
    spans: list[tuple[int, float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_to(self, total: WeightedSum) -> None:
        """Add the sum to that of the clients before these; if there is no mean of both, these clients have failed."""
        try:
            total.fold(self.total)
        except MismatchError as error:
            # With a traceback as where one process adds them: by its last line, failures are counted together.
            why, trace = described(error), many_lines(traceback.format_exc())
            self.results = [
                ClientResult(
                    each.client_id,
                    each.seconds,
                    error=why,
                    traceback=trace,
                    actor=each.actor,
                    bytes_down=each.bytes_down,
                )
                if each.error is None
                else each
                for each in self.results
            ]


@dataclass(frozen=True)
class TestSlice:
    """A part of a central test: examples ``first`` … ``last`` − 1 of the test split, or of those for validation."""

    server_round: int
    first: int
    last: int
    validates: bool = False


@dataclass(frozen=True)
class RetryPolicy:
    """How often a client is tried again when its process dies, and how many seconds it may take (None: any number)."""

    max_retries: int
    client_timeout: float | None

    @property
    def other_timeout(self) -> float | None:
        """Seconds that the set-up of a process or its part of the central test may take."""
        return other_timeout(self.client_timeout)


def other_timeout(client_timeout: float | None) -> float | None:
    """Return how many seconds user code may take that is no client: a set-up, or a part of the central test.

    It is longer than for a client, because a set-up imports modules and a test has more examples than a client.
    """
    return None if client_timeout is None else max(30.0, 4 * client_timeout)


class Dispatcher(Protocol):
    """Executes chunks, in this process or elsewhere. It is all in which engines differ for the round loop."""

    def wait_until_ready(self) -> None:
        """Return when there are enough clients for a round to begin.

        Raises:
            EngineError: they do not come in time.
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
