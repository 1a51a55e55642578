from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, InnerDirichletPartitioner

from sim.config.run_config import RunConfig
from sim.data import partition, partitioners
from sim.data.columns import Columns
from sim.data.load_dataset import Dataset, DataSource
from sim.data.partitioners import PARTITIONERS
from sim.errors import ConfigError, PartitionError
from sim.seeds import Purpose, generator

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200)).astype(np.int64)


def _data(labels: np.ndarray = LABELS, **columns: np.ndarray) -> Dataset:
    """Return a data set of one pixel with these labels and columns."""
    return Dataset(DataSource(), Columns([np.zeros((len(labels), 1), np.float32), labels], columns), None)


def _assign(**settings: object) -> partition.Partition:
    return partition.assign(_data(), RunConfig(**settings))  # type: ignore[arg-type]


def _skew(alpha: float) -> float:
    """Return the mean over clients of the share of a client's largest class."""
    counts = _assign(num_clients=20, alpha=alpha).label_counts(LABELS, 10)
    return float((counts.max(axis=1) / counts.sum(axis=1)).mean())


# For each partitioner: a number of clients that 2,000 examples allow, and whether all examples are assigned.
SIZES = {
    "iid": (30, True),
    "dirichlet": (30, True),
    "inner-dirichlet": (30, True),
    "shard": (30, False),
    "pathological": (30, True),
    "linear": (30, True),
    "square": (12, True),
    "exponential": (6, True),
    "natural": (10, True),
    "grouped-natural": (4, True),
    "continuous": (30, True),
    "distribution": (30, True),
    "size": (3, False),
    "size-to-id": (30, True),
    "quantity": (12, True),
}
NEEDED: dict[str, dict[str, object]] = {
    "natural": {"partition_by": "label"},
    "grouped-natural": {"partition_by": "label", "partitioner_args": {"group_size": 3}},
    "size": {"partitioner_args": {"partition_sizes": "900,80,1000"}},
}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.5, 10.0])
def test_inner_dirichlet_gives_the_partition_of_flwr_datasets(alpha: float, shuffle: bool) -> None:
    sizes = [211, 89, 300, 100, 200]
    arguments = {"partition_sizes": sizes, "alpha": alpha, "seed": 7, "shuffle": shuffle}
    library = InnerDirichletPartitioner(partition_by="label", **arguments)
    library.dataset = datasets.Dataset.from_dict({"label": LABELS[:900], "index": np.arange(900)})
    own = partitioners.inner_dirichlet(LABELS[:900], **arguments)
    assert [len(part) for part in own] == sizes
    for client_id, part in enumerate(own):
        assert library.load_partition(client_id)["index"][:] == part.tolist()


@pytest.mark.parametrize("num_clients", [1, 7, 900])
def test_iid_gives_the_partition_of_flwr_datasets(num_clients: int) -> None:
    library = IidPartitioner(num_clients)
    library.dataset = datasets.Dataset.from_dict({"index": np.arange(900)})
    own = [part.tolist() for part in partitioners.iid(LABELS[:900], num_clients)]
    assert own == [library.load_partition(client_id)["index"][:] for client_id in range(num_clients)]


def test_each_partitioner_has_a_test() -> None:
    assert list(SIZES) == list(PARTITIONERS)


@pytest.mark.parametrize("name", SIZES)
def test_no_example_belongs_to_two_clients_and_the_seed_determines_the_partition(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_clients, complete = SIZES[name]
    settings = {"num_clients": num_clients, "partitioner": name, "fraction_fit": 1.0, **NEEDED.get(name, {})}
    assigned = _assign(**settings)
    assert len(set(assigned.indices)) == len(assigned.indices)
    assert set(assigned.indices) <= set(range(2000))
    # 60 shards of 33 examples leave 20 examples, as do the given sizes
    assert len(assigned.indices) == (2000 if complete else 1980)
    assert assigned.num_clients == num_clients
    assert assigned.sizes.min() >= 1
    again, other = (_assign(**settings, seed=seed) for seed in (0, 1))
    monkeypatch.setenv("SIM_CACHE", str(tmp_path))
    anew = _assign(**settings)
    assert anew.folder != assigned.folder
    assert np.array_equal(anew.indices, assigned.indices)
    assert np.array_equal(again.indices, assigned.indices)
    assert not np.array_equal(other.indices, assigned.indices)


def test_iid_is_even_and_mixed() -> None:
    counts = _assign(num_clients=10, partitioner="iid").label_counts(LABELS, 10)
    assert counts.sum(axis=1).tolist() == [200] * 10
    assert counts.min() > 5


def test_skew_grows_as_alpha_falls() -> None:
    assert _skew(0.1) > _skew(0.5) + 0.1 > _skew(5.0) + 0.2 > _skew(100.0) + 0.2


def test_the_partition_is_that_of_flwr_datasets() -> None:
    import datasets

    config = RunConfig(num_clients=12, alpha=0.4)
    order = generator(0, Purpose.PARTITION).permutation(len(LABELS))
    seed = int(generator(0, Purpose.PARTITION, 1).integers(2**32))
    reference = DirichletPartitioner(12, "label", 0.4, min_partition_size=1, seed=seed)
    reference.dataset = datasets.Dataset.from_dict({"label": LABELS[order], "index": order})
    assigned = partition.assign(_data(), config)
    for client_id in range(12):
        assert assigned.of(client_id).tolist() == list(reference.load_partition(client_id)["index"])


def test_the_number_of_examples_for_evaluation_is_rounded_down() -> None:
    assigned = partition.Partition(Path(), np.arange(11), np.array([0, 4, 11]))
    assert [len(part) for part in assigned.split(0, 0.2)] == [4, 0]
    assert [part.tolist() for part in assigned.split(1, 0.3)] == [[4, 5, 6, 7, 8], [9, 10]]
    assert [len(part) for part in assigned.split(1, 0.0)] == [7, 0]
    hundred = partition.Partition(Path(), np.arange(100), np.array([0, 100]))
    assert [len(part) for part in hundred.split(0, 0.29)] == [71, 29]


@pytest.mark.parametrize("share", [0.9, 0.9999999999, np.nextafter(1, 0)])
def test_a_share_below_1_leaves_an_example_for_training(share: float) -> None:
    assigned = partition.Partition(Path(), np.arange(11), np.array([0, 1, 11]))
    assert [[len(part) for part in assigned.split(client_id, share)] for client_id in (0, 1)] == [[1, 0], [1, 9]]


def test_a_partition_in_the_cache_is_of_one_version_of_flwr_datasets() -> None:
    key = json.loads((_assign(num_clients=10).folder / "key.json").read_text())
    assert key["flwr-datasets"] == version("flwr-datasets")


@pytest.mark.slow
def test_an_impossible_partition_names_flags_that_work() -> None:
    with pytest.raises(PartitionError, match="at most 2000 clients"):
        _assign(num_clients=2001)
    with pytest.raises(PartitionError) as raised:
        _assign(num_clients=200, alpha=0.01)
    found = re.search(r"; --alpha (\S+) or --num-clients (\d+) or --partitioner iid works$", str(raised.value))
    assert found
    alpha, count = float(found[1]), int(found[2])
    assert _assign(num_clients=200, alpha=alpha).sizes.min() >= 1
    assert _assign(num_clients=count, alpha=0.01).sizes.min() >= 1


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({"devices": "uniform", "over_select": 1.3, "alpha": 0.001}, r"--alpha \S+ or --num-clients \d+ or "),
        ({"attack": "label-flip", "attack_share": 0.05, "alpha": 0.001}, r"--alpha \S+ or --num-clients \d+ or "),
        ({"alpha": 1e308, "min_partition_size": 15, "num_clients": 130}, r"--num-clients \d+ or "),
    ],
)
def test_other_settings_do_not_hinder_the_search_for_flags_that_work(settings: dict[str, object], ways: str) -> None:
    with pytest.raises(PartitionError, match=rf"^--partitioner dirichlet: .*; {ways}--partitioner iid works$"):
        _assign(**settings)


@pytest.mark.parametrize(
    ("name", "arguments", "most"),
    [
        ("pathological", {"num_classes_per_partition": 1}, 1),
        ("pathological", {"num_classes_per_partition": 3}, 3),
        ("shard", {"num_shards_per_partition": 1}, 1),
    ],
)
def test_arguments_have_the_names_of_flwr_datasets(name: str, arguments: dict[str, object], most: int) -> None:
    counts = _assign(num_clients=20, partitioner=name, partitioner_args=arguments).label_counts(LABELS, 10)
    assert (counts > 0).sum(axis=1).max() == most


def test_sizes_follow_the_definition_of_the_partitioner() -> None:
    assert _assign(num_clients=4, fraction_fit=1.0, partitioner="linear").sizes.tolist() == [200, 400, 600, 800]
    square = _assign(num_clients=4, fraction_fit=1.0, partitioner="square").sizes
    assert square.tolist() == pytest.approx([2000 * n * n / 30 for n in (1, 2, 3, 4)], abs=3)
    sizes = _assign(num_clients=4, fraction_fit=1.0, partitioner="exponential").sizes
    assert (sizes[1:] / sizes[:-1]).tolist() == pytest.approx([np.e] * 3, rel=0.05)
    assert _assign(num_clients=8, partitioner="inner-dirichlet").sizes.tolist() == [250] * 8


def test_sizes_follow_the_users_function_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(text: str) -> list[int]:
        monkeypatch.delitem(sys.modules, "own_sizes", raising=False)
        (tmp_path / "own_sizes.py").write_text(f"import numpy\ndef shares(ids): return {text}\n")
        given = {"partitioner": "size-to-id", "partitioner_args": {"function": "own_sizes:shares"}}
        return _assign(num_clients=4, fraction_fit=1.0, **given).sizes.tolist()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert sizes("ids**0") == [500, 500, 500, 500]
    assert sizes("ids") == [200, 400, 600, 800]
    assert sizes("numpy.random.rand(4)") == sizes("numpy.random.rand(4)")
    place = r"^--partitioner-args function=own_sizes:shares: "
    with pytest.raises(PartitionError, match=f"{place}raised ZeroDivisionError"):
        sizes("1 / 0")
    with pytest.raises(PartitionError, match=rf"{place}gives the shape \(5,\); one number for each of 4 clients is"):
        sizes("[1, 2, 3, 4, 5]")
    with pytest.raises(ConfigError, match="--partitioner-args shares=2: size-to-id takes "):
        _assign(partitioner="size-to-id", partitioner_args={"shares": 2})


def test_quantity_skew_draws_the_shares_of_the_clients_anew_until_each_has_enough() -> None:
    settings = {"num_clients": 4, "fraction_fit": 1.0, "partitioner": "quantity", "seed": 2}
    order = generator(2, Purpose.PARTITION).permutation(2000)
    rng = np.random.default_rng(int(generator(2, Purpose.PARTITION, 1).integers(2**32)))
    draws = [
        np.diff([0, *(int(edge * 2000) for edge in rng.dirichlet([0.5] * 4).cumsum()[:3]), 2000]) for _ in range(5)
    ]
    assert [draw.min() for draw in draws] == [5, 33, 13, 31, 224]
    first, fifth = (_assign(**settings, min_partition_size=minimum) for minimum in (5, 200))
    assert first.sizes.tolist() == draws[0].tolist() == [108, 5, 1242, 645]
    assert fifth.sizes.tolist() == draws[4].tolist() == [899, 224, 614, 263]
    assert first.indices.tolist() == fifth.indices.tolist() == order.tolist()
    assert _assign(**settings, alpha=100).sizes.tolist() == [558, 518, 395, 529]


def test_quantity_skew_needs_no_classes_and_says_what_would_work() -> None:
    numbers = _data(np.random.default_rng(0).normal(size=2000))
    config = RunConfig(num_clients=4, fraction_fit=1.0, partitioner="quantity", seed=2)
    assert partition.assign(numbers, config).sizes.tolist() == _assign(**vars(config)).sizes.tolist()
    with pytest.raises(
        PartitionError, match=r"none of 1000 draws gives each of 100 .* 1 of 2000 examples; --alpha 1 or"
    ):
        _assign(num_clients=100, partitioner="quantity")
    with pytest.raises(ConfigError, match="--partitioner-args values=3: quantity takes no arguments"):
        _assign(partitioner="quantity", partitioner_args={"values": 3})


def test_errors_of_the_other_partitioners_are_reported() -> None:
    with pytest.raises(
        PartitionError, match=r"distribution: \d+ of 2000 examples would belong to several clients; .* works$"
    ):
        _assign(partitioner="distribution", partitioner_args={"sigma": 1000})
    for sizes in ("9" * 5000, "-3", "1,,2", "1,0", "1.5"):
        with pytest.raises(
            ConfigError, match=f"partition_sizes={sizes[:9]}.*: must be numbers of examples above 0, sep"
        ):
            _assign(partitioner="size", partitioner_args={"partition_sizes": sizes})
    with pytest.raises(PartitionError, match=r"exponential: The given .* not greater than 0; --num-clients 6 or"):
        _assign(partitioner="exponential")
    with pytest.raises(PartitionError, match=r"pathological: .*num_classes_per_partition"):
        _assign(partitioner="pathological", partitioner_args={"num_classes_per_partition": 11})
    with pytest.raises(ConfigError, match="dirichlet takes these arguments: self_balancing, shuffle"):
        _assign(partitioner_args={"alpha": 1})
    with pytest.raises(ConfigError, match="--partitioner-args x=1: iid takes no arguments"):
        _assign(partitioner="iid", partitioner_args={"x": 1})
    with pytest.raises(ConfigError, match="class_assignment_mode=odd: must be one of random, deterministic"):
        _assign(partitioner="pathological", partitioner_args={"class_assignment_mode": "odd"})
