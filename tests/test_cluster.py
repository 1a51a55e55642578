"""A Ray cluster of two nodes on one machine, the second with a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conftest import PROGRAMS, Sim, Small, sha256
from sim import Run, RunConfig
from sim.client.runtime import ClientSpec
from sim.data.sources.user_function import ProgramData
from sim.engine.ray.shipping import runtime_env
from sim.setup.prepare import prepare

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One CPU on the first node and two on the second, where two actors unpack the data at the same time."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=2, env_vars={"SIM_CACHE": str(tmp_path / "elsewhere")})
    yield made
    made.shutdown()


@pytest.mark.nightly
def test_a_run_on_two_nodes_is_that_of_one(
    cluster: Cluster, command: Sim, small: Small, tmp_path: Path, in_programs: None
) -> None:
    words = ["--num-clients", "10", "--clients-per-round", "4", "--num-rounds", "2", "--max-local-steps", "3"]
    own = ["--local-epochs", "1", "--test", "cifar:test", "--results-dir", str(tmp_path), "--name", "two"]
    result = command("run", *words, *own, "--ray-address", cluster.address, cwd=PROGRAMS)
    assert result.returncode == 0, result.stderr
    two = Run(tmp_path / "two")
    assert set(two.clients().actor) == {0, 1, 2}
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"data", "partition"}
    # The clocks of two machines cannot be compared.
    assert two.rounds()[["broadcast_seconds", "wait_seconds", "return_seconds"]].isna().all(axis=None)
    assert not list((tmp_path / "elsewhere").rglob(".arriving-*"))
    assert sha256(two.model_path) == sha256(small(test="cifar:test").model_path)


def test_the_current_folder_is_sent_for_each_part_of_the_user() -> None:
    config = RunConfig(dataset="synthetic", num_examples=20, num_clients=2, fraction_fit=1.0)
    built_in = prepare(config).spec
    assert isinstance(built_in, ClientSpec)
    assert "working_dir" not in runtime_env(replace(built_in, metrics=("accuracy",), loss="cross_entropy"))
    parts: dict[str, Any] = {
        "model": "own:Net",
        "train": "own:train",
        "test": "own:test",
        "client": "own:Client",
        "loss": "own:loss",
        "metrics": ("accuracy", "own:metric"),
        "data": replace(built_in.data, program=ProgramData("own:load_data")),
    }
    for name, part in parts.items():
        assert runtime_env(replace(built_in, **{name: part})).get("working_dir") == str(Path.cwd()), name


@pytest.mark.network
def test_no_cluster_there(command: Sim) -> None:
    for address, line in (
        ("127.0.0.1:1", "--ray-address 127.0.0.1:1: no Ray cluster there: Connection refused"),
        ("nowhere", "--ray-address nowhere: must be host:port, or auto"),
    ):
        result = command("run", "--num-rounds", "1", "--ray-address", address)
        assert (result.returncode, result.stderr) == (2, f"sim: {line}\n")
