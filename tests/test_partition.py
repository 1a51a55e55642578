from __future__ import annotations

import re

import numpy as np
import pytest
from flwr_datasets.partitioner import DirichletPartitioner

from sim import partition
from sim.config import RunConfig
from sim.errors import PartitionError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200)).astype(np.int64)


def _deal(**knobs: object) -> partition.Partition:
    return partition.deal(LABELS, RunConfig(**knobs))  # type: ignore[arg-type]


def _skew(alpha: float) -> float:
    """Mean share of a client's largest class."""
    counts = _deal(num_clients=20, alpha=alpha).label_counts(LABELS, 10)
    return float((counts.max(axis=1) / counts.sum(axis=1)).mean())


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_every_example_belongs_to_exactly_one_client(name: str) -> None:
    dealt = _deal(num_clients=30, partitioner=name)
    assert sorted(dealt.indices) == list(range(2000))
    assert dealt.num_clients == 30
    assert dealt.sizes.min() >= 1
    again, other = (_deal(num_clients=30, partitioner=name, seed=seed) for seed in (0, 1))
    assert np.array_equal(again.indices, dealt.indices)
    assert not np.array_equal(other.indices, dealt.indices)


def test_iid_is_even_and_mixed() -> None:
    counts = _deal(num_clients=10, partitioner="iid").label_counts(LABELS, 10)
    assert counts.sum(axis=1).tolist() == [200] * 10
    assert counts.min() > 5


def test_skew_grows_as_alpha_falls() -> None:
    assert _skew(0.1) > _skew(0.5) + 0.1 > _skew(5.0) + 0.2 > _skew(100.0) + 0.2


def test_the_split_is_flower_datasets_own() -> None:
    import datasets

    config = RunConfig(num_clients=12, alpha=0.4)
    order = partition.generator(0, partition.Purpose.PARTITION).permutation(len(LABELS))
    seed = int(partition.generator(0, partition.Purpose.PARTITION, 1).integers(2**32))
    reference = DirichletPartitioner(12, "label", 0.4, min_partition_size=1, seed=seed)
    reference.dataset = datasets.Dataset.from_dict({"label": LABELS[order], "index": order})
    dealt = partition.deal(LABELS, config)
    for client_id in range(12):
        assert dealt.of(client_id).tolist() == list(reference.load_partition(client_id)["index"])


def test_examples_for_evaluation_are_the_floor_of_the_share() -> None:
    dealt = partition.Partition(partition.Path(), np.arange(11), np.array([0, 4, 11]))
    assert [len(part) for part in dealt.split(0, 0.2)] == [4, 0]
    assert [part.tolist() for part in dealt.split(1, 0.3)] == [[4, 5, 6, 7, 8], [9, 10]]
    assert [len(part) for part in dealt.split(1, 0.0)] == [7, 0]


def test_what_cannot_be_met_says_what_works_and_that_works() -> None:
    with pytest.raises(PartitionError, match="at most 2000 clients"):
        _deal(num_clients=2001)
    with pytest.raises(PartitionError) as raised:
        _deal(num_clients=200, alpha=0.01)
    text = str(raised.value)
    assert "in 11 attempts dirichlet left one of 200 clients with fewer than 1 of 2000 examples" in text
    found = re.search(r"; --alpha (\S+) or --num-clients (\d+) or --partitioner iid works$", text)
    assert found
    alpha, count = float(found[1]), int(found[2])
    assert _deal(num_clients=200, alpha=alpha).sizes.min() >= 1
    assert _deal(num_clients=count, alpha=0.01).sizes.min() >= 1
