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
from sim import Run, resume
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
def test_what_does_not_depend_on_each_other_has_the_same_bits_on_ray(small: Small) -> None:
    """One run has all of it, half of it inline and resumed on Ray with two actors:

    an algorithm with states (SCAFFOLD), parameters that stay with clients, compressed weights with error feedback,
    flipped labels, clients that drop out, virtual time, evaluation, validation, the final evaluation, the learning rate
    and its warm-up of client and server, clipped gradients, and a seed of the samples.

    Tests of the single features compare runs inline and resumed inline. test_isolation.py takes three actors;
    scripts/determinism.sh takes every strategy and algorithm with 1, 2 and 3.
    """
    settings: dict[str, Any] = {
        "strategy": "scaffold",
        "local_parameters": "fc3.*",
        "compress": {"up": "qsgd:4", "down": "qsgd:8", "error_feedback": True},
        "attack": "label-flip",
        "attack_share": 0.3,
        "client_dropout": 0.2,
        "devices": "lognormal",
        "fraction_evaluate": 0.5,
        "validation_share": 0.1,
        "final_evaluate": True,
        "server_lr": 0.7,
        "lr": 0.05,
        "lr_warmup": 2,
        "clip_grad_norm": 1.0,
        "sample_seed": 5,
        "clients_per_round": 8,
    }
    whole = small(**settings, num_rounds=4, name="whole")
    half = small(**settings, num_rounds=2, name="half")
    half.best_path.unlink()  # its weights are in the checkpoint, too
    on_ray = resume(half, num_rounds=4, engine="ray", ray_init_args={"num_cpus": 2})
    clients = on_ray.clients()
    assert sorted(clients.query("round > 2").actor.dropna().unique()) == [0, 1]
    for path in ("model_path", "best_path", "evaluation_path", "metrics_path"):
        assert getattr(on_ray, path).read_bytes() == getattr(whole, path).read_bytes(), path
    states = [{path.name: sha256(path) for path in run.client_states_path.iterdir()} for run in (whole, on_ray)]
    assert states[0] == states[1]
    for one, other in ((whole.rounds(), on_ray.rounds()), (whole.clients(), clients)):
        kept = [name for name in one.columns if (name != "actor" and not name.endswith("seconds")) or "virtual" in name]
        pd.testing.assert_frame_equal(one[kept], other[kept], check_exact=True)
    assert {"ok", "dropped"} == set(clients.status)
    assert clients.bytes_up.max() < 4 * clients.bytes_down.max()


def test_the_same_seed_gives_the_same_bits_and_another_others(small: Small) -> None:
    first, again, other = (
        sha256(small(seed=seed, name=name, max_local_steps=3).model_path)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first == again != other


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_left", "in_programs")
def test_a_strategy_that_needs_each_client_and_client_state_on_a_share_of_a_gpu(small: Small) -> None:
    """As many actors as share the GPU. That is scheduling only and needs none: Ray is given one by its arguments."""
    config = {"strategy": "own:EachClientFedAvg", "client": "own:CountingGpus", "num_rounds": 3, "clients_per_round": 8}
    graphics = {"num_gpus": 0.5, "device": "cpu"}
    on_ray = small({"num_cpus": 4, "num_gpus": 1}, **config, **graphics, engine="ray", name="a")
    inline = small(**config, name="b")
    assert sha256(on_ray.model_path) == sha256(inline.model_path)
    clients = on_ray.clients()
    assert clients.loss.tolist() == inline.clients().loss.tolist()
    assert clients.loss.max() > 1
    assert sorted(clients.actor.unique()) == [0, 1]
    seen = on_ray.metrics().query("name == 'gpu' and client_id == client_id")
    assert set(seen.value) == {0.0}  # CUDA_VISIBLE_DEVICES
    # A client's state went from one process to the other.
    assert (clients.groupby("client_id").actor.nunique() > 1).any()


@pytest.mark.nightly
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
@pytest.mark.usefixtures("_no_process_left", "in_programs")
def test_what_actors_print_their_niceness_and_who_may_connect_to_ray(small: Small, tmp_path: Path) -> None:
    """What a client prints and raises in an actor is in the log.

    Actors step back behind other programs only if asked; Ray's own default is a niceness of 15. A second program that
    knows the address of Ray but not its token cannot join.
    """
    found, niceness = [], set()

    def look_and_intrude(record: Any) -> None:
        import ray

        family = psutil.Process().children(recursive=True)
        niceness.update(process.nice() for process in family if is_actor(process))
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

    settings = {"engine": "ray", "client": "own:Printing", "num_rounds": 3, "niceness": 3, "name": "stopped"}
    with pytest.raises(ClientError, match=r"raised in round 2 \(fit\): ValueError: client \d+ has a bad day"):
        small({"num_cpus": 1}, look_and_intrude, **settings)
    log = (tmp_path / "results" / "stopped" / "run.log").read_text()
    assert "own client trains with batch size 8" in log
    assert 'raise ValueError(f"client {self.client_id} has\\na bad day")' in log
    assert niceness == {min(19, psutil.Process().nice() + 3)}
    assert found == [(0, True, False), (1, False, True), (1, False, True)]
    with pytest.raises(ConfigError, match="--niceness 3: the cluster at auto decides"):
        small(engine="ray", ray_address="auto", niceness=3)


@pytest.mark.nightly
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


@pytest.mark.ray
def test_a_ray_session_of_the_users_is_neither_ended_nor_used(tmp_path: Path) -> None:
    program = """
        import ray
        from sim import ConfigError, RunConfig, simulate

        ray.init(num_cpus=1, include_dashboard=False)
        settings = dict(num_clients=2, num_rounds=1, max_local_steps=1)
        try:
            simulate(RunConfig(**settings))
        except ConfigError as error:
            print(error)
        simulate(RunConfig(**settings, engine="inline", name="inline"))
        print(ray.get(ray.put("alive")))
        ray.shutdown()
        print(simulate(RunConfig(**settings, name="ray")).rounds().num_clients.tolist()[1:])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, *others = result.stdout.splitlines()
    assert first.startswith("--engine ray: this process has called ray.init, and a run starts a Ray session of its own")
    assert others == ["alive", "[1]"]
    assert sorted(folder.name for folder in (tmp_path / "results").iterdir()) == ["inline", "ray"]


@pytest.mark.ray
@pytest.mark.parametrize("how", ["flags", "script"])
def test_a_program_is_imported_with_as_many_threads_in_each_process(command: Sim, tmp_path: Path, how: str) -> None:
    """What a module computes while it is imported depends on their number."""
    program = """
        import torch
        from torch import nn

        threads = torch.get_num_threads()

        def Net():
            return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))

        def train(net, loader, epochs):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
            for images, labels in loader:
                nn.functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
            return {"threads": threads}
    """
    script = """
        import torch
        torch.set_num_threads(3)
        import own_threads
        from sim import RunConfig, simulate

        if __name__ == "__main__":
            for engine in ("inline", "ray"):
                config = RunConfig(num_clients=4, num_rounds=1, num_cpus=1.0, engine=engine, name=engine)
                simulate(config, model=own_threads.Net, train=own_threads.train)
    """
    (tmp_path / "own_threads.py").write_text(textwrap.dedent(program))
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    if how == "script":
        subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, capture_output=True)
    for engine in ("inline", "ray") if how == "flags" else ():
        words = ("--num-clients", "4", "--num-rounds", "1", "--engine", engine, "--name", engine)
        result = command("run", "--program", "own_threads.py", *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    for engine in ("inline", "ray"):
        metrics = Run(tmp_path / "results" / engine).metrics()
        assert set(metrics[metrics.name == "threads"].value) == {1.0 if how == "flags" else 3.0}


@pytest.mark.slow
def test_inline_shows_the_users_own_stack_trace(command: Sim, tmp_path: Path) -> None:
    words = ("run", "--num-clients", "4", "--clients-per-round", "4", "--num-rounds", "3", "--local-epochs", "1")
    own = ("--client", "own:Failing", "--results-dir", str(tmp_path))
    result = command(*words, "--engine", "inline", *own, cwd=PROGRAMS)
    assert result.returncode == 1
    assert 'own.py", line' in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "sim: client 1 raised in round 2 (fit): ValueError: client 1 has a bad day"
