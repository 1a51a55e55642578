"""sim size: how many actors fit and how long a run takes, from exact numbers and from a real client."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import PROGRAMS, Sim, Small
from sim import RunConfig
from sim.errors import ConfigError
from sim.measure.capacity import Capacity, Machine, Need, capacity, gpus_for
from sim.measure.forecast import Forecast, mean_makespan, predicted

GIB = 2**30


def test_the_scarcest_resource_decides() -> None:
    need = Need(busy_cpus=1.0, actor_bytes=GIB, driver_bytes=2 * GIB)
    assert capacity(need, Machine(2, 20 * GIB), 100, uses_gpu=False).limits == {
        "CPUs": 2,
        "memory": 16,  # 0.9 × 20 − 2
        "clients per round": 100,
    }
    found = capacity(need, Machine(64, 20 * GIB), 100, uses_gpu=False)
    assert (found.num_actors, found.limit) == (16, "memory")
    assert capacity(need, Machine(64, None), 10, uses_gpu=False).num_actors == 10
    assert capacity(need, Machine(64, GIB), 10, uses_gpu=False).num_actors == 0
    # Two processes that use 1.05 CPUs each fit on two CPUs; of processes that use 1.5 CPUs only one fits.
    for busy, actors in ((0.5, 4), (1.05, 2), (1.5, 1), (2.0, 1)):
        assert capacity(replace(need, busy_cpus=busy), Machine(2, None), 100, uses_gpu=False).num_actors == actors


def test_a_gpu_is_shared_by_what_its_memory_holds() -> None:
    need = Need(busy_cpus=0.5, actor_bytes=GIB, driver_bytes=GIB, gpu_bytes=9 * GIB)
    found = capacity(need, Machine(16, 100 * GIB, (80 * GIB,)), 50, uses_gpu=True)
    assert found.limits["GPU memory"] == 8  # 0.9 × 80 ÷ 9
    assert (found.num_actors, found.gpus_per_actor, found.cpus_per_actor) == (8, 0.125, 2.0)
    two = capacity(need, Machine(16, 100 * GIB, (80 * GIB, 80 * GIB)), 50, uses_gpu=True)
    assert (two.num_actors, two.gpus_per_actor) == (16, 0.125)
    assert Capacity({"CPUs": 3}, 16, 1).gpus_per_actor == 0.3333
    assert Capacity({"CPUs": 3}, 16, 0).gpus_per_actor == 0.0


@pytest.mark.parametrize("num_actors", range(1, 40))
@pytest.mark.parametrize("num_cpus", [2, 7, 16, 64])
def test_the_flags_start_as_many_actors_as_fit(num_actors: int, num_cpus: int) -> None:
    found = Capacity({"CPUs": min(num_actors, num_cpus)}, num_cpus, 1)
    assert int(num_cpus / found.cpus_per_actor) >= found.num_actors
    assert int(1 / found.gpus_per_actor) == found.num_actors


def test_seconds_follow_from_examples() -> None:
    line = predicted([(10, 1.5), (20, 2.5), (40, 4.5)], np.array([0, 30]))
    assert line.tolist() == pytest.approx([0.5, 3.5])
    assert predicted([(10, 2.0), (10, 4.0)], np.array([10, 20])).tolist() == [3.0, 6.0]
    falling = predicted([(10, 4.0), (20, 2.0)], np.array([15]))
    assert falling.tolist() == pytest.approx([3.0])  # a falling line is noise: 6 s per 30 examples


def test_a_round_ends_with_its_last_actor() -> None:
    assert mean_makespan(np.full(10, 2.0), 10, 1, 0) == 20.0
    assert mean_makespan(np.full(10, 2.0), 5, 2, 0) == 6.0
    assert mean_makespan(np.array([4.0, 1.0, 1.0, 1.0, 1.0]), 5, 2, 0) == 4.0


def test_the_run_is_the_sum_of_its_parts() -> None:
    found = Forecast(
        client_seconds=1.0,
        fit_seconds=2.0,
        aggregate_seconds=0.5,
        test_seconds=4.0,
        test_every=4,
        validation_seconds=1.0,
        eval_seconds=0.125,
        checkpoint_seconds=0.125,
        start_seconds=10.0,
        final_seconds=3.0,
        num_rounds=8,
        num_fit_clients=5,
    )
    assert found.round_seconds == 2.0 + 0.5 + 1.0 + 0.25 + 0.125 + 0.125
    assert found.updates_per_second == 2.0
    assert found.run_seconds == 10.0 + 4.0 + 1.0 + 8 * 4.0 + 3.0


@pytest.mark.slow
def test_size_measures_a_client_and_forecasts_the_run(
    command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.measure.capacity._MEASURE_SECONDS", 1.0)
    flags = ("--num-clients", "20", "--num-rounds", "3", "--fraction-evaluate", "0.1", "--engine", "inline")
    flags += ("--validation-share", "0.2", "--patience", "2", "--test-every", "2", "--final-evaluate")
    result = command("size", *flags)
    assert result.returncode == 0, result.stderr
    words = {line[:16].strip(): line[16:] for line in result.stdout.splitlines()}
    assert list(words) == [
        "one client",
        "CPUs",
        "memory",
        "actors that fit",
        "throughput",
        "one round",
        "start and end",
        "final clients",
        "the whole run",
    ]
    assert re.match(r"[\d.]+ s for \d+ examples \(mean of \d+ measurements?\)", words["one client"])
    busy = float(words["CPUs"].split()[0])
    assert 0.01 < busy < 1.5  # less than 1 where other programs use the CPUs
    assert 100 < int(words["memory"].split()[0]) < 4000
    assert float(words["throughput"].split()[0]) > 0.1
    parts = [part.split()[0] for part in words["one round"].partition("(")[2].rstrip(")").split(", ")]
    assert set(parts) >= {"clients", "test", "validation", "evaluation"}
    assert words["the whole run"].endswith("for 3 rounds of 4 clients")
    assert list(tmp_path.iterdir()) == []
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [*(pytest.param(name, marks=pytest.mark.nightly) for name in ("scaffold", "fedbabu")), "fedbuff"]
)
def test_size_measures_the_clients_of_an_algorithm(
    command: Sim, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Clients of scaffold get variates beside the weights and keep some; those of fedbabu train to evaluate.

    A round of fedbuff is a version, which is made of 10 clients.
    """
    monkeypatch.setattr("sim.measure.capacity._MEASURE_SECONDS", 0.1)
    few = ("--num-clients", "20", "--fraction-evaluate", "0.1", "--engine", "inline")
    result = command("size", "--strategy", strategy, *few)
    assert result.returncode == 0, result.stderr
    assert "one client" in result.stdout
    assert f"rounds of {10 if strategy == 'fedbuff' else 4} clients" in result.stdout


@pytest.mark.slow
def test_a_client_that_raises_is_one_line(command: Sim, tmp_path: Path) -> None:
    result = command("size", "--client", "hungry:Hungry", "--results-dir", str(tmp_path), cwd=PROGRAMS)
    assert result.returncode == 1
    assert result.stderr.startswith("sim: a client could not be measured: client ")
    assert "allocate memory" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("program", ["whole/own_loaders.py", "odd_data.py"])
def test_size_measures_programs_that_make_loaders_or_the_partition_themselves(
    command: Sim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    """Neither can be told to take a single step, and of the second, nobody knows how many examples clients have."""
    monkeypatch.setattr("sim.measure.capacity._MEASURE_SECONDS", 0.1)
    words = ["--num-clients", "2", "--fraction-fit", "1", "--engine", "inline", "--num-rounds", "2"]
    parts = ["--dataset", "odd_data:uneven", "--model", "odd_data:Net"]
    own = parts if program == "odd_data.py" else ["--program", program]
    result = command("size", *own, *words, "--results-dir", str(tmp_path), cwd=PROGRAMS)
    assert result.returncode == 0, result.stderr
    assert "rounds of 2 clients" in result.stdout
    assert " 0.0 client updates" not in result.stdout
    if program == "odd_data.py":  # 7 and 5 examples
        assert re.search(r"for [567] examples", result.stdout), result.stdout


@pytest.mark.slow
def test_size_measures_the_clients_of_a_flower_program(
    command: Sim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its strategy sends what the clients need, of which only the strategy knows."""
    monkeypatch.setattr("sim.measure.capacity._MEASURE_SECONDS", 0.1)
    words = ["--num-clients", "3", "--engine", "inline", "--num-rounds", "2", "--fraction-evaluate", "1"]
    strategy = ["--strategy", "client_fns:SendsSteps", "--results-dir", str(tmp_path)]
    result = command("size", "--client-fn", "client_fns:with_steps", *words, *strategy, cwd=PROGRAMS)
    assert result.returncode == 0, result.stderr
    assert "evaluation" in result.stdout
    assert re.search(r"for 1[012] examples", result.stdout)
    app = command("size", "--app", "apps/message_app", cwd=PROGRAMS)
    assert app.returncode == 2
    assert app.stderr.startswith("sim: --app apps/message_app: only its ServerApp knows what it will ask of clients")


def test_auto_means_no_gpu_if_there_is_none(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpus_for(RunConfig(device="cpu"), 2) == 0.0
    run = small(num_gpus="auto", device="cpu")
    assert run.config()["num_gpus"] == 0.0
    assert "no GPU" not in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    small(num_gpus="auto", name="without", num_rounds=1)
    assert (
        capsys.readouterr().err.count("note: --num-gpus auto: this machine has no GPU, so that clients train on") == 1
    )
    with pytest.raises(ConfigError, match="num_gpus = 'many': must be a number, at least 0, or auto"):
        RunConfig(num_gpus="many")  # type: ignore[arg-type]
