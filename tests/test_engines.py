"""The engines against each other, and real Ray under what can go wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from conftest import PROGRAMS, Sim, Small, sha256
from sim.errors import ClientError, ConfigError
from sim.scale.usage import is_actor


@pytest.fixture
def _no_process_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=30)
    assert not alive


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left")
@pytest.mark.parametrize(("strategy", "count"), [("fedavg", 3), ("fedadam", 1)])
def test_the_engine_and_the_number_of_actors_do_not_change_a_bit(small: Small, strategy: str, count: int) -> None:
    """scripts/determinism.sh takes every strategy with 1, 2 and 3 actors."""
    config = {"num_clients": 40, "clients_per_round": 33, "fraction_evaluate": 0.5, "strategy": strategy}
    config |= {"max_local_steps": 3}
    inline = small(**config, name="inline")
    on_ray = small({"num_cpus": count}, **config, engine="ray", num_cpus=1, name="ray")
    assert on_ray.clients().actor.nunique() == count
    assert sha256(inline.model_path) == sha256(on_ray.model_path)
    measured = ["train_loss", "test_loss", "test_accuracy", "eval_loss", "eval_accuracy"]
    pd.testing.assert_frame_equal(inline.rounds()[measured], on_ray.rounds()[measured], check_exact=True)


def test_the_same_seed_gives_the_same_bits_and_another_others(small: Small) -> None:
    first, again, other = (
        sha256(small(seed=seed, name=name, max_local_steps=3).model_path)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first == again != other


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left", "in_programs")
def test_a_strategy_that_needs_each_client_and_client_state_on_ray(small: Small) -> None:
    config = {"strategy": "own:EachClientFedAvg", "client": "own:Counting", "num_rounds": 3}
    on_ray, inline = small(**config, engine="ray", name="a"), small(**config, name="b")
    assert sha256(on_ray.model_path) == sha256(inline.model_path)
    assert on_ray.clients().loss.tolist() == inline.clients().loss.tolist()
    assert inline.clients().loss.max() > 1


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left", "in_programs")
def test_a_fraction_of_a_gpu_gives_as_many_actors_as_share_it(small: Small) -> None:
    """Scheduling only, so it needs no GPU: Ray is given one by its arguments."""
    run = small(
        {"num_cpus": 4, "num_gpus": 1},
        engine="ray",
        num_gpus=0.5,
        device="cpu",
        client="own:Where",
        num_clients=16,
        clients_per_round=16,
        num_rounds=1,
    )
    clients = run.clients()
    assert sorted(clients.actor.unique()) == [0, 1]
    assert set(clients.loss) == {0.0}  # CUDA_VISIBLE_DEVICES


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left")
def test_actors_step_back_behind_other_programs_only_if_asked(small: Small) -> None:
    """Ray's own default is a niceness of 15."""
    found = set()

    def look(record: Any) -> None:
        family = psutil.Process().children(recursive=True)
        found.update(process.nice() for process in family if is_actor(process))

    small({"num_cpus": 1}, engine="ray", num_rounds=1, niceness=3, on_record=look)
    assert found == {min(19, psutil.Process().nice() + 3)}
    with pytest.raises(ConfigError, match="--niceness 3: the cluster at auto decides"):
        small(engine="ray", ray_address="auto", niceness=3)


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left", "in_programs")
def test_what_a_client_prints_and_raises_in_an_actor_is_in_the_log(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"raised in round 2 \(fit\): ValueError: client \d+ has a bad day"):
        small({"num_cpus": 1}, engine="ray", client="own:Printing", num_rounds=3, name="stopped")
    log = (tmp_path / "results" / "stopped" / "run.log").read_text()
    assert "own client trains with batch size 8" in log
    assert 'raise ValueError(f"client {self.client_id} has\\na bad day")' in log


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left", "in_programs")
def test_a_client_whose_process_dies_again_and_again_counts_as_one_that_raised(small: Small) -> None:
    """Here it is tried again and left out; in test_process_faults.py it ends the run at its first try."""
    settings = {"engine": "ray", "client": "own:Exiting", "clients_per_round": 10, "max_local_steps": 2}
    run = small({"num_cpus": 1}, **settings, on_client_error="drop", max_retries=1)
    clients = run.clients()
    failed = clients[clients.status == "failed"]
    assert failed[["round", "client_id"]].values.tolist() == [[1, 3], [1, 5]]
    assert failed.error.tolist() == ["ProcessDied: its process crashed or was killed, 2 times"] * 2
    assert run.rounds().num_failures.tolist()[1:] == [2, 0]
    log = run.log_path.read_text()
    assert "CUDA error: an illegal memory access" in log
    # No other client is blamed, although the next message was waiting at the process that died.
    assert re.findall(r"process 0 died( with client \d+)?;", log) == [f" with client {k}" for k in (3, 3, 5, 5)]


@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left")
def test_rays_processes_refuse_whoever_has_no_token(small: Small) -> None:
    """A second program that knows the address but not the token cannot join."""
    found = []

    def intrude(record: Any) -> None:
        import ray

        if record.round == 0:
            return
        address = ray.get_runtime_context().gcs_address
        code = f"from ray._raylet import GcsClient; GcsClient(address={address!r}); print('joined')"
        own = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        for more in (own, {}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            result = subprocess.run(
                [sys.executable, "-c", code], env={**others, **more}, capture_output=True, text=True, check=False
            )
            found.append((result.returncode, "joined" in result.stdout, "AuthenticationError" in result.stderr))

    small({"num_cpus": 1}, engine="ray", num_rounds=1, on_record=intrude)
    assert found == [(0, True, False), (1, False, True), (1, False, True)]


@pytest.mark.ray
def test_the_drivers_memory_does_not_grow_with_rounds(tmp_path: Path) -> None:
    """300 clients, all of them in each of 3 rounds: 75 MB of weights each."""
    program = """
        import json, psutil
        from sim import RunConfig, simulate

        used = []
        def measure(record):
            used.append(psutil.Process().memory_info().rss)
        run = simulate(RunConfig(dataset="synthetic", num_clients=300, fraction_fit=1.0, num_rounds=3,
            local_epochs=1, max_local_steps=1, partitioner="iid"), ray_init_args={"num_cpus": 1}, on_record=measure)
        print(json.dumps([used, run.rounds().num_clients.tolist()[1:]]))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    used, clients = json.loads(result.stdout)
    assert clients == [300, 300, 300]
    assert used[3] < 1.1 * used[1]


@pytest.mark.slow
def test_inline_needs_no_ray(tmp_path: Path) -> None:
    program = (
        "import sys; from sim import RunConfig, simulate;"
        "simulate(RunConfig(num_clients=5, num_rounds=1, max_local_steps=1, engine='inline'));"
        "print('ray' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_inline_shows_the_users_own_stack_trace(command: Sim, tmp_path: Path) -> None:
    words = ("run", "--num-clients", "4", "--clients-per-round", "4", "--num-rounds", "3", "--local-epochs", "1")
    own = ("--client", "own:Failing", "--results-dir", str(tmp_path))
    result = command(*words, "--engine", "inline", *own, cwd=PROGRAMS)
    assert result.returncode == 1
    assert 'own.py", line' in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "sim: client 1 raised in round 2 (fit): ValueError: client 1 has a bad day"
