"""Scale studies: real cells, cells that fail, and scaling computed from exact numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

from conftest import PROGRAMS, Sim
from federation import Program, wait_until
from sim import Run
from sim.errors import ConfigError, RunFolderError
from sim.scale.cells import Cell, cells
from sim.scale.execute import COLUMNS, _claim, efficiency_frame, read_scale
from sim.scale.figures import figures
from sim.scale.usage import UsageSampler, is_actor, parse_gpus

GRID = ("--num-clients", "4", "--num-actors", "1,2", "--repeats", "1", "--num-rounds", "2", "--engine", "inline,ray")
FEW = ("--scaling", "strong", "--examples-per-client", "8", "--results-dir", "s")


@pytest.mark.usefixtures("pictures")
@pytest.mark.ray
def test_a_grid_is_measured_continues_where_it_stopped_and_is_drawn(command: Sim, tmp_path: Path) -> None:
    program = Program(tmp_path, "interrupted", ["scale", *GRID, *FEW])
    program.wait_for("1/3 inline · 4 clients · 1 actors · ")
    wait_until(lambda: len(list((tmp_path / "s" / "cells").iterdir())) >= 2)
    program.send(signal.SIGTERM)
    assert program.end() == 130
    table = tmp_path / "s" / "scale.csv"
    # As if the cell of one actor had been measured, too: Ray is started once.
    other = read_scale(table).assign(engine="ray", actors_mib=300.0)
    other.to_csv(table, mode="a", header=False, index=False)
    first = table.read_text()
    result = command("scale", *GRID, *FEW)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[0].startswith("3/3 ray · 4 clients · 2 actors · ")
    assert (tmp_path / "s" / "scale.csv").read_text().startswith(first)
    frame = read_scale(tmp_path / "s" / "scale.csv")
    assert frame[["engine", "num_clients", "num_actors", "status"]].to_numpy().tolist() == [
        ["inline", 4, 1, "ok"],
        ["ray", 4, 1, "ok"],
        ["ray", 4, 2, "ok"],
    ]
    for _, row in frame.drop(1).iterrows():
        name = f"{row.engine}-{row.num_clients}-clients-{row.num_actors}-actors-0"
        run = Run(tmp_path / "s" / "cells" / name)
        rounds, clients = run.rounds(), run.clients()
        assert rounds["round"].tolist() == [0, 1, 2, 3]
        seconds = (rounds.round_seconds - rounds.test_seconds)[2:].median()
        assert row.round_seconds == pytest.approx(seconds)
        assert row.updates_per_second == pytest.approx(row.num_clients / seconds)
        assert 0 < row.train_share <= 1
        assert row.start_seconds > 0.1
        assert 100 < row.driver_mib < 4000
        assert clients.actor.nunique() == (row.num_actors if row.engine == "ray" else 1)
        assert run.config()["num_examples"] == 8 * row.num_clients
    ray = frame[frame.engine == "ray"]
    assert (ray.actors_mib >= ray.num_actors * 100).all()
    assert frame[frame.engine == "inline"].actors_mib.isna().all()
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[-6:]] == ["efficiency"] + ["table"] * 2 + ["picture"] * 3
    assert lines[-6].endswith("4 clients on 2 actors (ray, strong scaling)")
    for name in ("throughput", "scaling", "memory"):
        assert (tmp_path / "s" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    other = command("scale", *GRID, *FEW, "--lr", "0.01")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "holds cells with other settings (--lr not given, now 0.01); choose another --results-dir" in other.stderr


@pytest.mark.slow
def test_cells_that_run_out_of_memory_or_time_are_recorded_and_the_grid_continues(command: Sim, tmp_path: Path) -> None:
    few = (
        "--num-clients",
        "2",
        "--repeats",
        "1",
        "--num-rounds",
        "1",
        "--engine",
        "inline",
        "--examples-per-client",
        "8",
    )
    hungry = command("scale", *few, "--client", "hungry:Hungry", "--results-dir", str(tmp_path / "h"), cwd=PROGRAMS)
    assert hungry.returncode == 0, hungry.stderr
    row = read_scale(tmp_path / "h" / "scale.csv").iloc[0]
    assert row.status == "out of memory"
    assert "can't allocate memory" in row.error or "Unable to allocate" in row.error
    assert pd.isna(row.round_seconds)
    slow = command("scale", *few, "--cell-timeout", "1", "--results-dir", str(tmp_path / "t"))
    row = read_scale(tmp_path / "t" / "scale.csv").iloc[0]
    assert (row.status, row.error) == ("timeout", "took longer than 1 s")
    assert "timeout" in slow.stdout
    assert "1/1 inline · 2 clients · 1 actors · timeout: took longer than 1 s" in slow.stderr


def test_the_cells_of_a_grid() -> None:
    both = cells(["ray", "inline"], [10, 20], [1, 2], "both")
    assert [tuple(vars(cell).values()) for cell in both] == [
        ("ray", 10, 1),
        ("ray", 10, 2),
        ("ray", 20, 1),
        ("ray", 20, 2),
        ("ray", 40, 2),
        ("inline", 10, 1),
        ("inline", 20, 1),
    ]
    assert Cell("ray", 20, 2) in cells(["ray"], [10], [2], "weak")
    assert Cell("ray", 10, 2) not in cells(["ray"], [10], [2], "weak")


def _frame(rows: list[tuple[int, int, int, float]]) -> pd.DataFrame:
    keys = ["num_clients", "num_actors", "repeat", "round_seconds"]
    table = pd.DataFrame(rows, columns=keys).assign(engine="ray", status="ok")
    table["updates_per_second"] = table.num_clients / table.round_seconds
    table["driver_mib"], table["actors_mib"] = 500.0, 400.0 * table.num_actors
    return table.reindex(columns=COLUMNS)


def test_speedup_and_efficiency_of_exact_numbers() -> None:
    frame = _frame([(100, 1, 0, 8.0), (100, 1, 1, 10.0), (100, 1, 2, 9.0), (100, 2, 0, 6.0), (200, 2, 0, 12.0)])
    table = efficiency_frame(frame)
    found = {(r.scaling, r.num_clients, r.num_actors): (r.speedup, r.efficiency) for r in table.itertuples()}
    assert found == {
        ("strong", 100, 1): (1.0, 1.0),
        ("strong", 100, 2): (1.5, 0.75),
        ("weak", 100, 1): (1.0, 1.0),
        ("weak", 200, 2): (1.5, 0.75),
    }
    drawn = figures(frame)
    assert set(drawn) == {"throughput", "scaling", "memory"}
    speedup = drawn["scaling"].axes[0]
    assert speedup.lines[0].get_ydata().tolist() == [1.0, 1.5]
    assert speedup.lines[-1].get_ydata().tolist() == [1.0, 2.0]
    assert [text.get_text() for text in speedup.get_legend().get_texts()] == ["100 clients", "ideal"]
    failed = frame.assign(status="timeout")
    assert efficiency_frame(failed).empty
    assert figures(failed) == {}


def test_what_nvidia_smi_prints_is_read() -> None:
    assert parse_gpus("1024, 50\n2048, 100\n") == ([1024.0, 2048.0], [0.5, 1.0])
    assert parse_gpus("1024, [N/A]\n") == ([1024.0], [])
    assert parse_gpus("NVIDIA-SMI has failed\n") == ([], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-clients", "10,x"), "--num-clients x: must be a whole number, at least 1"),
        (("--num-clients", "10,10"), "--num-clients 10,10: contains the same value twice"),
        (("--num-actors", "0"), "--num-actors 0: must be a whole number, at least 1"),
        (("--engine", "ray,threads"), "--engine ray,threads: must contain only ray, inline"),
        (("--repeats", "0"), "--repeats 0: must be a whole number, at least 1"),
        (("--num-examples", "3", "--num-clients", "2", "--num-cpus", "2"), "--num-cpus: did you mean"),
        (("--scaling", "diagonal"), "argument --scaling: invalid choice"),
        (
            ("--clients-per-round", "20", "--num-clients", "10"),
            "10 clients on 1 actors: --clients-per-round 20: must be",
        ),
    ],
)
def test_a_wrong_flag_is_one_line(command: Sim, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = command("scale", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"sim: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_arguments_belong_to_the_settings_that_cells_share(tmp_path: Path) -> None:
    path, base = tmp_path / "base.toml", {"strategy": "fedprox", "strategy_args": {"proximal_mu": 0.1}}
    for _ in range(2):
        _claim(path, base)
    with pytest.raises(RunFolderError, match=r"other settings \(.*proximal_mu 0\.1, now 0\.2\)"):
        _claim(path, {**base, "strategy_args": {"proximal_mu": 0.2}})
    path.write_text("strategy")
    with pytest.raises(ConfigError, match=r"base\.toml: not valid TOML"):
        _claim(path, base)


def test_a_gpu_that_does_not_answer_in_time_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/no/such/interpreter\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sampler = UsageSampler(os.getpid())
    sampler.sample()
    assert sampler.peak.gpu_mib is None
    assert sampler.peak.driver_mib is not None


def test_a_table_with_other_columns_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scale.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match="has the columns a, b, not engine, num_clients"):
        read_scale(tmp_path / "scale.csv")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "found"), [("default_worker.py", True), ("other.py", False)])
def test_an_actor_is_found_also_without_its_title(tmp_path: Path, name: str, found: bool) -> None:
    """Ray does not always write the name of an actor into the title of its process."""
    program = tmp_path / name
    program.write_text("input()")
    with subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE) as process:
        wait_until(lambda: name in " ".join(psutil.Process(process.pid).cmdline()))
        assert is_actor(psutil.Process(process.pid)) is found
        process.communicate(b"\n")


@pytest.mark.slow
def test_a_program_is_measured_on_its_own_data_and_a_grid_of_failures_ends_with_1(command: Sim, tmp_path: Path) -> None:
    grid = ("--num-clients", "4", "--num-actors", "1", "--engine", "inline", "--repeats", "1", "--results-dir")
    done = command("scale", "--program", "autoencoder.py", *grid, str(tmp_path / "own"), cwd=PROGRAMS)
    assert (done.returncode, pd.read_csv(tmp_path / "own" / "scale.csv").status.tolist()) == (0, ["ok"]), done.stderr
    failed = command("scale", "--client", "own:Failing", *grid, str(tmp_path / "failed"), cwd=PROGRAMS)
    assert failed.returncode == 1
    assert "sim: none of the 1 cells could be measured, first: client 1 raised in round 2" in failed.stderr


@pytest.mark.slow
def test_the_clients_of_a_flower_program_are_measured(command: Sim, tmp_path: Path) -> None:
    grid = ("--num-clients", "2", "--engine", "inline", "--repeats", "1", "--results-dir", str(tmp_path / "own"))
    done = command("scale", "--client-fn", "client_fns:by_context", *grid, cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "own" / "scale.csv")
    assert (table.status.tolist(), table.num_clients.tolist()) == (["ok"], [2])
