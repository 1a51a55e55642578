"""How chunks are cut for actors, and that what comes back is the chunk to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.common import NDArrays

from sim.client.torch_client import fit_settings
from sim.config.run_config import RunConfig
from sim.engine.aggregation import WeightedSum, cut
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ChunkResult, ClientResult, Task
from sim.engine.ray.scheduling import WorkItem, by_work, in_items, joined, least_clients, next_message
from sim.server.results import Failures
from sim.setup.prepare import prepare


def _chunks(num_clients: int, weights: NDArrays | None = None) -> list[Chunk]:
    shared = weights or [np.zeros(10, np.float32)]
    tasks = [Task(client_id, {}, num_examples=50) for client_id in range(num_clients)]
    return [Chunk("fit", 1, part, shared, summed=True) for part in cut(tasks)]


def _executed(item: WorkItem, each: list[NDArrays]) -> ChunkResult:
    total = WeightedSum()
    for task in item.chunk.tasks:
        total.add(each[task.client_id], task.num_examples + task.client_id)
    results = [ClientResult(task.client_id) for task in item.chunk.tasks]
    return ChunkResult(results, total, [(0, 0.0, 1.0)])


def test_a_chunk_of_clients_that_return_other_dtypes_is_the_same_in_clients(in_programs: None) -> None:
    config = RunConfig(num_clients=6, client="untidy:Wider", max_local_steps=2)
    prepared = prepare(config)
    tasks = [Task(client_id, fit_settings(config, 1)) for client_id in range(6)]
    chunk = Chunk("fit", 1, tasks, prepared.initial_weights, summed=True)
    worker = Worker(prepared.spec, 6, 0)
    parts = WorkItem(0, chunk).singles(alone=False)
    for item in parts:
        item.result = worker.run(item.chunk)
    for whole, cut_up in zip(worker.run(chunk).total.mean(), joined(parts).total.mean(), strict=True):
        assert (whole.dtype, whole.tobytes()) == (np.float32, cut_up.tobytes())


def test_who_returns_arrays_of_other_shapes_fails_in_a_whole_chunk_as_in_clients(in_programs: None) -> None:
    prepared = prepare(RunConfig(num_clients=5, client_fn="client_fns:unequal"))
    chunk = Chunk("fit", 1, [Task(client_id, {}) for client_id in range(5)], prepared.initial_weights, summed=True)
    worker = Worker(prepared.spec, 5, 0)
    parts = WorkItem(0, chunk).singles(alone=False)
    for item in parts:
        item.result = worker.run(item.chunk)
    whole, cut_up = worker.run(chunk), joined(parts)
    why = "MismatchError: returned 2 arrays, clients before it 1: there is no mean of them"
    assert [result.error for result in cut_up.results] == [None, why, None, why, None]
    assert [result.error for result in whole.results] == [None, why, None, why, None]
    failures = Failures()
    for result in (*whole.results, *cut_up.results):
        if result.error is not None:
            failures.add(result, "fit", 1)
    assert failures.summary() == [f"4 failures in 1 round, the first of client 1, round 1 (fit): {why}"]
    for one, other in zip(whole.total.mean(), cut_up.total.mean(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_chunk_in_clients_is_the_chunk_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    each = [[rng.normal(size=(70_000, 3)).astype(np.float32), rng.normal(size=5)] for _ in range(50)]
    for chunk in _chunks(50)[:3]:
        whole = WorkItem(0, chunk)
        whole.result = _executed(whole, each)
        clients = whole.singles(alone=False)
        assert len(clients) == 3
        for item in clients:
            item.result = _executed(item, each)
        one, other = whole.result, joined(clients)
        assert [o.client_id for o in one.results] == [o.client_id for o in other.results]
        assert one.total.num_examples == other.total.num_examples
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one.total.sums, other.total.sums, strict=True))
        assert len(other.spans) == 3


def test_only_the_tail_is_cut_and_only_where_it_pays() -> None:
    def counts(chunks: list[Chunk], num_actors: int, *, divisible: bool, seconds: float | None = None) -> list[int]:
        items = in_items(chunks, num_actors, divisible=divisible, seconds_per_client=seconds)
        assert [task.client_id for own in items for item in own for task in item.chunk.tasks] == list(range(50))
        return [len(own) for own in items]

    chunks = _chunks(50)  # 16 of three and one of two
    assert counts(chunks, 2, divisible=True) == [1] * 13 + [3, 3, 3, 2]
    assert counts(chunks, 2, divisible=True, seconds=0.1) == [1] * 13 + [3, 3, 3, 2]
    whole = [1] * 17
    assert counts(chunks, 2, divisible=True, seconds=0.001) == whole  # not worth a message each
    assert counts(chunks, 2, divisible=False) == whole
    assert counts(chunks, 1, divisible=True) == whole
    large = _chunks(50, [np.zeros(2**24, np.float32)])  # 64 MiB: two clients' weights are all that may travel more
    assert counts(large, 2, divisible=True) == [1] * 16 + [2]


def test_messages_get_smaller_and_keep_weights_apart() -> None:
    waiting = by_work(in_items(_chunks(50), 2, divisible=False, seconds_per_client=None))
    sizes = []
    while waiting:
        sizes.append(sum(len(item.chunk.tasks) for item in next_message(waiting, 2, 1, 0)))
    assert sizes == [15, 9, 9, 6, 3, 3, 3, 2]
    waiting = by_work(in_items(_chunks(50), 2, divisible=False, seconds_per_client=0.0001))
    assert len(next_message(waiting, 2, least_clients(50, 2, 0.0001), 0)) == 9  # 27 clients, then 23
    assert len(next_message(waiting, 2, least_clients(50, 2, 0.0001), 0)) == 8
    assert not waiting
    mixed = by_work([[WorkItem(0, _chunks(2)[0])], [WorkItem(1, _chunks(2)[0])]])
    assert [len(next_message(mixed.copy(), 1, 50, most)) for most in (0, 2**20)] == [1, 2]  # other weights


def test_an_item_that_an_actor_died_with_travels_alone() -> None:
    waiting = by_work([WorkItem(0, _chunks(50)[0]).singles(alone=True), [WorkItem(1, _chunks(50)[1])]])
    assert [len(next_message(waiting, 1, 50, 0)) for _ in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("seconds", "least"), [(None, 1), (0.0, 1), (0.02, 1), (0.004, 2), (0.0005, 20), (0.00001, 25)]
)
def test_short_clients_share_a_message(seconds: float | None, least: int) -> None:
    assert least_clients(50, 2, seconds) == least
