from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import DirichletPartitioner, InnerDirichletPartitioner

from sim.config.run_config import RunConfig
from sim.data import partition, partitioners
from sim.data.partitioners import PARTITIONERS
from sim.errors import ConfigError, PartitionError
from sim.seeds import Purpose, generator

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200)).astype(np.int64)


def _deal(**settings: object) -> partition.Partition:
    return partition.assign(LABELS, RunConfig(**settings))  # type: ignore[arg-type]


def _skew(alpha: float) -> float:
    """Mean share of a client's largest class."""
    counts = _deal(num_clients=20, alpha=alpha).label_counts(LABELS, 10)
    return float((counts.max(axis=1) / counts.sum(axis=1)).mean())


# How many clients 2,000 examples allow, and whether all examples are dealt.
SIZES = {
    "iid": (30, True),
    "dirichlet": (30, True),
    "inner-dirichlet": (30, True),
    "shard": (30, False),
    "pathological": (30, True),
    "linear": (30, True),
    "square": (12, True),
    "exponential": (6, True),
}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.5, 10.0])
def test_inner_dirichlet_deals_what_flwr_datasets_deals(alpha: float, shuffle: bool) -> None:
    sizes = [211, 89, 300, 100, 200]
    arguments = {"partition_sizes": sizes, "alpha": alpha, "seed": 7, "shuffle": shuffle}
    library = InnerDirichletPartitioner(partition_by="label", **arguments)
    library.dataset = datasets.Dataset.from_dict({"label": LABELS[:900], "index": np.arange(900)})
    own = partitioners.inner_dirichlet(LABELS[:900], **arguments)
    assert [len(part) for part in own] == sizes
    for client_id, part in enumerate(own):
        assert library.load_partition(client_id)["index"][:] == part.tolist()


def test_each_partitioner_has_a_test() -> None:
    assert list(SIZES) == list(PARTITIONERS)


@pytest.mark.parametrize("name", SIZES)
def test_no_example_belongs_to_two_clients_and_the_seed_decides(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_clients, complete = SIZES[name]
    dealt = _deal(num_clients=num_clients, partitioner=name)
    assert len(set(dealt.indices)) == len(dealt.indices)
    assert set(dealt.indices) <= set(range(2000))
    # 60 shards of 33 examples leave 20 over
    assert len(dealt.indices) == (2000 if complete else 1980)
    assert dealt.num_clients == num_clients
    assert dealt.sizes.min() >= 1
    again, other = (_deal(num_clients=num_clients, partitioner=name, seed=seed) for seed in (0, 1))
    monkeypatch.setenv("SIM_CACHE", str(tmp_path))
    anew = _deal(num_clients=num_clients, partitioner=name)
    assert anew.folder != dealt.folder
    assert np.array_equal(anew.indices, dealt.indices)
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
    order = generator(0, Purpose.PARTITION).permutation(len(LABELS))
    seed = int(generator(0, Purpose.PARTITION, 1).integers(2**32))
    reference = DirichletPartitioner(12, "label", 0.4, min_partition_size=1, seed=seed)
    reference.dataset = datasets.Dataset.from_dict({"label": LABELS[order], "index": order})
    dealt = partition.assign(LABELS, config)
    for client_id in range(12):
        assert dealt.of(client_id).tolist() == list(reference.load_partition(client_id)["index"])


def test_examples_for_evaluation_are_the_floor_of_the_share() -> None:
    dealt = partition.Partition(Path(), np.arange(11), np.array([0, 4, 11]))
    assert [len(part) for part in dealt.split(0, 0.2)] == [4, 0]
    assert [part.tolist() for part in dealt.split(1, 0.3)] == [[4, 5, 6, 7, 8], [9, 10]]
    assert [len(part) for part in dealt.split(1, 0.0)] == [7, 0]


def test_what_cannot_be_met_says_what_works_and_that_works() -> None:
    with pytest.raises(PartitionError, match="at most 2000 clients"):
        _deal(num_clients=2001)
    with pytest.raises(PartitionError) as raised:
        _deal(num_clients=200, alpha=0.01)
    found = re.search(r"; --alpha (\S+) or --num-clients (\d+) or --partitioner iid works$", str(raised.value))
    assert found
    alpha, count = float(found[1]), int(found[2])
    assert _deal(num_clients=200, alpha=alpha).sizes.min() >= 1
    assert _deal(num_clients=count, alpha=0.01).sizes.min() >= 1


@pytest.mark.parametrize(
    ("name", "arguments", "most"),
    [
        ("pathological", {"num_classes_per_partition": 1}, 1),
        ("pathological", {"num_classes_per_partition": 3}, 3),
        ("shard", {"num_shards_per_partition": 1}, 1),
    ],
)
def test_arguments_have_the_names_that_their_users_know(name: str, arguments: dict[str, object], most: int) -> None:
    counts = _deal(num_clients=20, partitioner=name, partitioner_args=arguments).label_counts(LABELS, 10)
    assert (counts > 0).sum(axis=1).max() == most


def test_sizes_follow_their_law() -> None:
    assert _deal(num_clients=4, fraction_fit=1.0, partitioner="linear").sizes.tolist() == [200, 400, 600, 800]
    square = _deal(num_clients=4, fraction_fit=1.0, partitioner="square").sizes
    assert square.tolist() == pytest.approx([2000 * n * n / 30 for n in (1, 2, 3, 4)], abs=3)
    sizes = _deal(num_clients=4, fraction_fit=1.0, partitioner="exponential").sizes
    assert (sizes[1:] / sizes[:-1]).tolist() == pytest.approx([np.e] * 3, rel=0.05)
    assert _deal(num_clients=8, partitioner="inner-dirichlet").sizes.tolist() == [250] * 8


def test_what_other_partitioners_cannot_do_is_said() -> None:
    with pytest.raises(PartitionError, match=r"exponential: The given .* not greater than 0; --num-clients 6 or"):
        _deal(partitioner="exponential")
    with pytest.raises(PartitionError, match=r"pathological: .*num_classes_per_partition"):
        _deal(partitioner="pathological", partitioner_args={"num_classes_per_partition": 11})
    with pytest.raises(ConfigError, match="dirichlet takes these arguments: self_balancing, shuffle"):
        _deal(partitioner_args={"alpha": 1})
    with pytest.raises(ConfigError, match="--partitioner-args x=1: iid takes no arguments"):
        _deal(partitioner="iid", partitioner_args={"x": 1})
    with pytest.raises(ConfigError, match="class_assignment_mode=odd: must be one of random, deterministic"):
        _deal(partitioner="pathological", partitioner_args={"class_assignment_mode": "odd"})
