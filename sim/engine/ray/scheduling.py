"""Cuts chunks into work items for actors, and joins the results of a chunk's items to its result, equal to the bit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flwr.common import NDArrays

from sim.engine.aggregation import WeightedSum
from sim.engine.interface import Chunk, ChunkResult

_TAIL_BYTES = 128 * 2**20  # of weights that return client by client, so that no actor waits at the end of a round
_MESSAGE_SECONDS = 0.01  # of work in a message; a message costs an actor and the driver about 2 ms
_SHORT_SECONDS = 0.003  # clients that take less do not get a message each


@dataclass(eq=False)
class WorkItem:
    """A chunk, or one client of it.

    Attributes:
        index: of the chunk in its round.
        alone: an actor died while it had this item, so it gets a message of its own: if an actor dies again, its client
            is the reason.
    """

    index: int
    chunk: Chunk
    alone: bool = False
    result: ChunkResult | None = None

    def singles(self, *, alone: bool) -> list[WorkItem]:
        """Return one item for each of its clients."""
        return [WorkItem(self.index, replace(self.chunk, tasks=[task]), alone=alone) for task in self.chunk.tasks]


def in_items(
    chunks: Sequence[Chunk], num_actors: int, *, divisible: bool, seconds_per_client: float | None
) -> list[list[WorkItem]]:
    """Return the items of each chunk; the last chunks to begin are cut into single clients, where that is allowed.

    Args:
        divisible: a client's weights do not depend on the other clients of its chunk.
        seconds_per_client: as the last round measured it; None before.
    """
    items = [[WorkItem(index, chunk)] for index, chunk in enumerate(chunks)]
    short = seconds_per_client is not None and seconds_per_client < _SHORT_SECONDS
    if not divisible or short or num_actors == 1:
        return items
    singles = 0
    for item in reversed(by_work(items)):
        size = len(item.chunk.tasks)
        singles += size
        num_bytes = bytes_of(item.chunk.weights)
        if singles > 2 * num_actors * size or singles * num_bytes > _TAIL_BYTES:
            break
        if size > 1:
            items[item.index] = item.singles(alone=False)
    return items


def by_work(items: Sequence[Sequence[WorkItem]]) -> deque[WorkItem]:
    """Return all items, the longest first, so that no actor waits at the end for a long one that began late."""
    return deque(sorted((item for each in items for item in each), key=lambda item: -item.chunk.num_examples))


def next_message(waiting: deque[WorkItem], num_actors: int, least: int, most_bytes: int) -> list[WorkItem]:
    """Take items for one message: a share of what is left.

    Args:
        least: number of clients that a message should have, see ``least_clients``.
        most_bytes: of weights that travel in a message; all items of one with larger weights have the same.
    """
    share = max(least, math.ceil(sum(len(item.chunk.tasks) for item in waiting) / (2 * num_actors)))
    message = [waiting.popleft()]
    tasks = len(message[0].chunk.tasks)
    while waiting and tasks < share and not (message[0].alone or waiting[0].alone):
        weights = waiting[0].chunk.weights
        both = weights, message[-1].chunk.weights
        if weights is not both[1] and not all(0 < bytes_of(each) <= most_bytes for each in both):
            break
        message.append(waiting.popleft())
        tasks += len(message[-1].chunk.tasks)
    return message


def bytes_of(weights: NDArrays) -> int:
    """Return the size of weights."""
    return sum(array.nbytes for array in weights)


def least_clients(num_clients: int, num_actors: int, seconds_per_client: float | None) -> int:
    """Return how many clients a message should have at least, so that messages take little of the time."""
    if not seconds_per_client:
        return 1
    return min(math.ceil(num_clients / num_actors), max(1, int(_MESSAGE_SECONDS / seconds_per_client)))


def joined(items: Sequence[WorkItem]) -> ChunkResult:
    """Return the result of a chunk from those of its items."""
    results = [item.result for item in items if item.result is not None]
    if len(results) == 1:
        return results[0]
    whole = ChunkResult([], WeightedSum())
    for result in results:
        result.add_to(whole.total)
        whole.results += result.results
        whole.spans += result.spans
    return whole
