"""Chunks → pieces that travel to an actor, and back: folded in order they are their chunk to the bit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.engine.aggregation import WeightedSum
from sim.engine.contract import Chunk, ChunkResult

_TAIL_BYTES = 128 * 2**20  # of weights that come back client by client, so that no actor waits at the end
_MESSAGE_SECONDS = 0.01  # of work in a message; one costs an actor and the driver about 2 ms
_SHORT_SECONDS = 0.003  # clients that take less are not worth a message each


@dataclass(eq=False)
class WorkItem:
    """A chunk, or one client of it.

    Attributes:
        index: of the chunk in its round.
        alone: an actor died with it, so it travels in a message of its own: if that happens again, its client did it.
    """

    index: int
    chunk: Chunk
    alone: bool = False
    result: ChunkResult | None = None

    def singles(self, *, alone: bool) -> list[WorkItem]:
        """One piece for each of its clients."""
        return [WorkItem(self.index, replace(self.chunk, tasks=[task]), alone=alone) for task in self.chunk.tasks]


def in_pieces(
    chunks: Sequence[Chunk], num_actors: int, *, divisible: bool, seconds_a_client: float | None
) -> list[list[WorkItem]]:
    """Return the pieces of each chunk; those that begin last are cut into clients, where that is allowed.

    Args:
        divisible: a client's weights do not depend on who is in its chunk.
        seconds_a_client: as the last round measured it; None before.
    """
    pieces = [[WorkItem(index, chunk)] for index, chunk in enumerate(chunks)]
    short = seconds_a_client is not None and seconds_a_client < _SHORT_SECONDS
    if not divisible or short or num_actors == 1:
        return pieces
    singles = 0
    for piece in reversed(by_work(pieces)):
        size = len(piece.chunk.tasks)
        singles += size
        num_bytes = sum(array.nbytes for array in piece.chunk.weights)
        if singles > 2 * num_actors * size or singles * num_bytes > _TAIL_BYTES:
            break
        if size > 1:
            pieces[piece.index] = piece.singles(alone=False)
    return pieces


def by_work(pieces: Sequence[Sequence[WorkItem]]) -> deque[WorkItem]:
    """All pieces, the longest first, so that nobody waits at the end for one that began late."""
    return deque(sorted((piece for each in pieces for piece in each), key=lambda piece: -piece.chunk.num_examples))


def next_message(waiting: deque[WorkItem], num_actors: int, least: int) -> list[WorkItem]:
    """Take pieces for one message, all from the same weights: a share of what is left.

    Args:
        least: clients that are worth a message, see ``least_clients``.
    """
    share = max(least, math.ceil(sum(len(piece.chunk.tasks) for piece in waiting) / (2 * num_actors)))
    message = [waiting.popleft()]
    tasks = len(message[0].chunk.tasks)
    while waiting and tasks < share and not (message[0].alone or waiting[0].alone):
        if waiting[0].chunk.weights is not message[0].chunk.weights:
            break
        message.append(waiting.popleft())
        tasks += len(message[-1].chunk.tasks)
    return message


def least_clients(num_clients: int, num_actors: int, seconds_a_client: float | None) -> int:
    """How many clients a message should have at least, so that work and not messages take the time."""
    if not seconds_a_client:
        return 1
    return min(math.ceil(num_clients / num_actors), max(1, int(_MESSAGE_SECONDS / seconds_a_client)))


def joined(pieces: Sequence[WorkItem]) -> ChunkResult:
    """The result of a chunk from those of its pieces."""
    results = [piece.result for piece in pieces if piece.result is not None]
    if len(results) == 1:
        return results[0]
    whole = ChunkResult([], WeightedSum())
    for result in results:
        whole.outcomes += result.outcomes
        whole.total.fold(result.total)
        whole.spans += result.spans
    return whole
