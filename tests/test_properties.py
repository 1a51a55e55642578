"""Random damage to files and random values give either an error of sim or the right result."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import Parameters
from flwr.server.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sim import RunConfig
from sim.data import partition
from sim.data.columns import Columns
from sim.data.load_dataset import Dataset, DataSource
from sim.errors import UsageError
from sim.run_folder.checkpoint import Checkpoint, CheckpointWriter, read_last
from sim.run_folder.encode_state import Arrays, decode, encode
from sim.run_folder.folder import Run
from sim.run_folder.records import RoundRecord
from sim.run_folder.writer import RunWriter

REUSED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

_NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_ARRAYS = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
    npst.array_shapes(min_dims=0, max_dims=3, max_side=3),
)
_VALUES = st.recursive(
    _NUMBERS | _ARRAYS | st.builds(Parameters, st.lists(st.binary(max_size=9), max_size=3), st.just("numpy.ndarray")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return one == other or repr(one) == repr(other) == "nan"


@REUSED
@given(_VALUES)
def test_the_state_of_a_strategy_is_restored_exactly(value: Any) -> None:
    arrays: Arrays = {}
    tree = json.loads(json.dumps(encode(value, "strategy", arrays)))
    assert _same(decode(tree, "strategy", arrays), value)


def _checkpoint(number: int) -> Checkpoint:
    weights = [np.full((2, 3), number, np.float32), np.array(number, np.int64)]
    return Checkpoint.of(number, weights, FedAvg(), {}, {"config": {"lr": 0.1}})


@REUSED
@given(
    file=st.sampled_from(["state.json", "arrays.safetensors"]),
    place=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255) | st.none() | st.binary(max_size=40),
)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    tmp_path_factory: pytest.TempPathFactory, file: str, place: float, change: int | bytes | None
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    writer = CheckpointWriter(run)
    for number in (1, 2):
        writer.begin(_checkpoint(number))
        writer.commit(_checkpoint(number))
    path = run.checkpoints_path / "2" / file
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    match change:
        case int():
            content[position] ^= change
        case None:
            del content[position:]
        case bytes():
            content = bytearray(change)
    path.write_bytes(bytes(content))
    read, _ = read_last(run)
    assert read.round in (1, 2)
    assert read.weights[0].tobytes() == np.full((2, 3), read.round, np.float32).tobytes()
    assert read.fits == {"config": {"lr": 0.1}}
    assert read.restore(FedAvg()) == {}


@pytest.mark.slow
@REUSED
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255) | st.none(), table=st.booleans())
def test_a_damaged_table_or_config_is_an_error_or_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, place: float, change: int | None, table: bool
) -> None:
    writer = RunWriter.create(str(tmp_path_factory.mktemp("results")), "run", RunConfig().to_toml(), clients=True)
    writer.append(RoundRecord(0, test_loss=2.0))
    writer.append(RoundRecord(1, num_clients=3, test_loss=1.5))
    marks = writer.marks()
    writer.close()
    writer.release()
    path = writer.run.rounds_path if table else writer.run.config_path
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    if change is None:
        del content[position:]
    else:
        content[position] ^= change
    path.write_bytes(bytes(content))
    with suppress(UsageError):
        writer.run.rounds() if table else RunConfig.load(writer.run.config_path)
    if table:
        with pytest.raises(UsageError, match=r"rounds\.csv: was changed"):
            RunWriter.reopen(writer.run, marks)


@settings(max_examples=40, deadline=None)
@given(
    num_examples=st.integers(1, 300),
    num_clients=st.integers(1, 40),
    partitioner=st.sampled_from(
        ["iid", "dirichlet", "linear", "square", "exponential", "shard", "pathological", "quantity"]
    ),
    alpha=st.floats(0.05, 100),
    seed=st.integers(0, 2**40),
)
def test_a_partition_uses_each_example_at_most_once_and_no_client_is_empty(
    num_examples: int, num_clients: int, partitioner: str, alpha: float, seed: int
) -> None:
    labels = np.arange(num_examples) % 5
    dataset = Dataset(DataSource(), Columns([labels, labels]), None)
    settings = {"alpha": alpha} if partitioner in ("dirichlet", "inner-dirichlet", "quantity") else {}
    config = RunConfig(num_clients=num_clients, partitioner=partitioner, seed=seed, fraction_fit=1.0, **settings)
    assigned = None
    with suppress(UsageError):
        assigned = partition.assign(dataset, config)
    if assigned is None:
        return
    assert assigned.num_clients == num_clients
    assert assigned.sizes.min() >= 1
    assert len(np.unique(assigned.indices)) == len(assigned.indices) <= num_examples
    assert assigned.indices.min() >= 0
    assert assigned.indices.max() < num_examples


@pytest.mark.parametrize("writes", [lambda run: run.path.rmdir, lambda run: (run.path / "x").touch])
def test_a_foreign_folder_has_no_checkpoint(tmp_path: Path, writes: Callable[[Run], Callable[[], None]]) -> None:
    run = Run(tmp_path / "foreign")
    run.path.mkdir()
    writes(run)()
    with pytest.raises(UsageError, match="has no checkpoint to continue from"):
        read_last(run)
