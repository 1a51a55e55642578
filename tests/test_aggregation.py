from __future__ import annotations

import pickle

import numpy as np
import pytest
from flwr.common import Code, FitRes, NDArrays, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvg

from sim.engine.aggregation import WeightedSum, cast, cut
from sim.server.virtual_clients import VirtualClientProxy


def _mean_in_chunks(weights: list[NDArrays], num_examples: list[int], sizes: list[int]) -> NDArrays:
    total, start = WeightedSum(), 0
    for size in sizes:
        chunk = WeightedSum()
        for index in range(start, start + size):
            chunk.add(weights[index], num_examples[index])
        total.fold(pickle.loads(pickle.dumps(chunk)))
        start += size
    return total.mean()


def test_fedavg_of_two_hand_written_weight_sets() -> None:
    first = [np.array([[1.0, 2.0]], np.float32), np.array([4.0], np.float32)]
    second = [np.array([[5.0, -2.0]], np.float32), np.array([0.0], np.float32)]
    for sizes in ([2], [1, 1], [0, 1, 0, 1]):
        matrix, vector = _mean_in_chunks([first, second], [1, 3], sizes)
        assert matrix.tolist() == [[4.0, -1.0]]
        assert vector.tolist() == [1.0]
        assert (matrix.dtype, vector.dtype) == (np.float32, np.float32)
    assert first[0].tolist() == [[1.0, 2.0]]


def test_the_chunked_sum_is_flowers_own_average() -> None:
    rng = np.random.default_rng(0)
    num_examples = [int(n) for n in rng.integers(1, 600, 50)]
    weights = [
        [rng.normal(size=(120, 400)).astype(np.float32), rng.normal(size=10).astype(np.float32)] for _ in range(50)
    ]
    status = Status(Code.OK, "")
    results = [
        (VirtualClientProxy(i), FitRes(status, ndarrays_to_parameters(w), n, {}))
        for i, (w, n) in enumerate(zip(weights, num_examples, strict=True))
    ]
    parameters, _ = FedAvg().aggregate_fit(1, results, [])
    assert parameters is not None
    sizes = [len(part) for part in cut(range(50))]
    for ours, flowers in zip(
        _mean_in_chunks(weights, num_examples, sizes), parameters_to_ndarrays(parameters), strict=True
    ):
        assert np.abs(ours - flowers).max() < 1e-6
        assert np.abs(ours).max() > 0.1


def test_integer_buffers_stay_integers_and_half_precision_does_not_overflow() -> None:
    counters = [
        [np.array(7, np.int64), np.array([300.0], np.float16)],
        [np.array(8, np.int64), np.array([301.0], np.float16)],
    ]
    count, half = _mean_in_chunks(counters, [500, 1500], [1, 1])
    assert (count.dtype, int(count)) == (np.int64, 8)
    assert (half.dtype, half.tolist()) == (np.float16, [300.75])


def test_large_integers_keep_their_last_digits_and_small_ones_are_rounded_as_before() -> None:
    large = [[np.array([2**60 + k, -(2**62)]), np.array([2**64 - 1 - k], np.uint64)] for k in (1, 3, 8)]
    weights = [[*arrays, np.array(k, np.uint8)] for arrays, k in zip(large, (250, 3, 2), strict=True)]
    for sizes in ([3], [1, 1, 1], [1, 2]):
        signed, unsigned, small = _mean_in_chunks(weights, [1, 1, 2], sizes)
        assert signed.tolist() == [2**60 + 5, -(2**62)]
        assert unsigned.tolist() == [2**64 - 1 - 5]
        assert (small.dtype, int(small)) == (np.uint8, 64)  # 64.25
    halves = _mean_in_chunks([[np.array([2, 3])], [np.array([3, 4])]], [1, 1], [1, 1])
    assert halves[0].tolist() == [2, 4]  # 2.5 and 3.5, as numpy rounds them


@pytest.mark.parametrize(
    ("num_tasks", "sizes"), [(1, [1]), (20, [1] * 20), (50, [3] * 16 + [2]), (500, [16] * 31 + [4])]
)
def test_chunks_follow_from_the_number_of_clients_alone(num_tasks: int, sizes: list[int]) -> None:
    parts = cut(range(num_tasks))
    assert [len(part) for part in parts] == sizes
    assert [task for part in parts for task in part] == list(range(num_tasks))


def test_a_cast_rounds_to_integers_and_keeps_what_fits() -> None:
    assert cast(np.array([1.6, -0.4]), np.dtype(np.int64)).tolist() == [2, 0]
    assert cast(np.array([0.1]), np.dtype(np.float32)).dtype == np.float32
