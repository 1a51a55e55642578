"""The commands as a user starts them, with real processes, real files and real Ray."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

import sim as sim_package
from conftest import ONE_ACTOR, PROGRAMS, Sim, sha256
from federation import DEADLINE_SECONDS, Program, wait_until
from sim import cli
from sim.run_folder.folder import Run

SHORT = ("--local-epochs", "1", "--max-local-steps", "3")
FEW = ("--num-clients", "10", "--clients-per-round", "4", "--num-rounds", "2", *SHORT)


def test_the_versions_are_those_of_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    packages = ", ".join(f"{name} {version(name)}" for name in ("flwr", "ray", "torch"))
    assert capsys.readouterr().out == f"sim {version('sim')} (Python {platform.python_version()}, {packages})\n"
    assert sim_package.__version__ == version("sim")


@pytest.mark.ray
def test_a_run_writes_its_folder_and_its_config_repeats_it(sim: Sim, command: Sim, tmp_path: Path) -> None:
    result = sim("run", *FEW, *ONE_ACTOR, "--fraction-evaluate", "0.5", "--name", "first")
    assert result.returncode == 0, result.stderr
    run = Run(tmp_path / "results" / "first")
    assert {path.name for path in run.path.iterdir()} == {
        "config.toml",
        "environment.json",
        "rounds.csv",
        "metrics.csv",
        "clients.csv",
        "accuracy.png",
        "loss.png",
        "fairness.png",
        "partition.png",
        "model.safetensors",
        "run.log",
        "checkpoints",
    }
    final = run.rounds().test_accuracy.iloc[-1]
    assert result.stdout.splitlines() == [
        "run folder      results/first",
        f"final accuracy  {final:.4f} (loss {run.rounds().test_loss.iloc[-1]:.4f}) after round 2",
        "picture         results/first/accuracy.png",
    ]
    progress = result.stderr.splitlines()
    assert [line.split(" · ")[0] for line in progress] == ["round 0/2", "round 1/2", "round 2/2"]
    assert "clients/s" in progress[1]
    assert "DEPRECATED FEATURE" in run.log_path.read_text()
    environment = json.loads(run.environment_path.read_text())
    assert environment["packages"]["flwr"].startswith("1.4")
    assert environment["num_cpus"] >= 1

    again = command("run", "--config", "results/first/config.toml", "--name", "again", "--engine", "inline")
    assert again.returncode == 0, again.stderr
    assert sha256(run.model_path) == sha256(tmp_path / "results" / "again" / "model.safetensors")
    listed = [line.split()[:-2] for line in command("list").stdout.splitlines()]  # without the size
    figures = ["2/2", f"{final:.4f}", f"{run.rounds().test_accuracy.max():.4f}"]
    assert listed[1:] == [["again", *figures], ["first", *figures]]
    (tmp_path / "results" / "again" / "rounds.csv").write_text("nothing\n")
    damaged = command("list")
    assert [line.split()[0] for line in damaged.stdout.splitlines()[1:]] == ["first"]
    assert "again/rounds.csv: has no column round" in damaged.stderr


@pytest.mark.slow
def test_the_model_is_stored_with_the_order_of_its_state_dict(finished: Run) -> None:
    with safe_open(finished.model_path, "numpy") as file:
        names = json.loads(file.metadata()["state_dict"])
        layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
        assert names == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        assert sorted(file.keys()) == sorted(names)
        assert file.get_tensor("fc3.bias").shape == (10,)


def test_verbose_shows_the_output_of_flower(command: Sim) -> None:
    one = ("--num-rounds", "1", "--max-local-steps", "1", "--engine", "inline")
    quiet, verbose = (command("run", *FEW, *one, *more) for more in ((), ("--verbose",)))
    assert "[ROUND 1]" not in quiet.stderr
    assert "[ROUND 1]" in verbose.stderr


@pytest.mark.usefixtures("pictures")
@pytest.mark.slow
def test_centralized_shares_columns_and_plot_with_a_run(command: Sim, finished: Run, tmp_path: Path) -> None:
    central = command("centralized", "--epochs", "3", "--lr", "0.05", "--name", "central")
    assert central.returncode == 0, central.stderr
    assert "after epoch 3" in central.stdout
    rounds = Run(tmp_path / "results" / "central").rounds()
    assert list(rounds.columns) == list(finished.rounds().columns)
    assert rounds["round"].tolist() == [0, 1, 2, 3]
    assert rounds.train_loss[1:].is_monotonic_decreasing
    assert rounds.test_accuracy.iloc[-1] > 0.8
    assert rounds.num_clients.isna().all()
    drawn = command("plot", "central", str(finished.path), "--x", "seconds", "-o", "both.svg")
    assert drawn.stdout == "picture         both.svg\n"
    assert "<svg" in (tmp_path / "both.svg").read_text()
    resumed = command("run", "--resume", "central", "--num-rounds", "9")
    message = "sim: --resume central: is a run of sim centralized, which cannot be resumed\n"
    assert (resumed.returncode, resumed.stderr) == (2, message)


def test_weights_that_are_no_numbers_are_one_line_where_no_code_of_the_user_raised(command: Sim) -> None:
    few = "--engine", "inline", "--num-clients", "4", "--num-rounds", "1", "--lr", "1e30", "--strategy", "multikrum"
    done = command("run", *few)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr  # of Flower, which would speak of evaluations that nobody asked for
    assert done.stderr.splitlines()[-1].startswith("sim: client ")


def test_the_clients_of_a_flower_program_have_no_partition_to_show(command: Sim) -> None:
    result = command("partition", "--client-fn", "client_fns:by_context", cwd=PROGRAMS)
    assert (result.returncode, result.stdout) == (2, "")
    expected = "sim: --client-fn client_fns:by_context: its clients bring their own data, so there is no partition\n"
    assert result.stderr == expected


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_partition_shows_counts_before_any_training(command: Sim, tmp_path: Path) -> None:
    result = command("partition", "--num-clients", "12", "-o", "clients.png")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1] == ["client", "examples", *"0123456789"]
    clients = rows[2:14]
    assert [row[0] for row in clients] == [str(c) for c in range(12)]
    assert all(int(row[1]) == sum(int(n) for n in row[2:] if n != "·") for row in clients)
    assert rows[14][:2] == ["all", "1437"]
    assert (tmp_path / "clients.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "results").exists()
    assert "unassigned" not in result.stdout
    pathological = command("partition", "--num-clients", "3", "--fraction-fit", "1", "--partitioner", "pathological")
    assert "examples belong to no client" in pathological.stdout.splitlines()[-2]


@pytest.mark.slow
def test_an_untouched_tutorial_program_is_federated(command: Sim, tmp_path: Path) -> None:
    words = ("--model", "cifar:Net", "--train", "cifar:train", "--test", "cifar:test")
    few = ("--num-clients", "5", "--fraction-fit", "1", "--num-rounds", "3", "--local-epochs", "5")
    data = ("--dataset", "synthetic", "--num-examples", "1000", "--batch-size", "16", "--engine", "inline")
    result = command("run", *words, *few, *data, "--results-dir", str(tmp_path), "--name", "own", cwd=PROGRAMS)
    assert result.returncode == 0, result.stderr
    rounds = Run(tmp_path / "own").rounds()
    assert rounds.test_accuracy.iloc[-1] > 0.5 > rounds.test_accuracy.iloc[0]
    assert rounds.train_loss.isna().all()  # the train() of this program returns nothing


@pytest.mark.ray
def test_a_failing_client_on_the_command_line(command: Sim, tmp_path: Path) -> None:
    words = ("run", *FEW, "--num-rounds", "3", "--client", "own:Failing", "--results-dir", str(tmp_path))
    stopped = command(*words, *ONE_ACTOR, "--name", "stopped", cwd=PROGRAMS)
    assert stopped.returncode == 1
    assert "raised in round 2 (fit): ValueError: client" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    assert Run(tmp_path / "stopped").rounds()["round"].tolist() == [0, 1]
    dropped = command(*words, "--name", "dropped", "--on-client-error", "drop", "--engine", "inline", cwd=PROGRAMS)
    assert dropped.returncode == 0, dropped.stderr
    rounds = Run(tmp_path / "dropped").rounds()
    assert rounds.num_failures[2] > 0
    assert rounds.num_failures[2] + rounds.num_clients[2] == 4
    assert f"{rounds.num_failures[2]} failed" in dropped.stderr


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    program = f"{sys.executable} -m sim run {' '.join(FEW)} --engine inline --name piped 2>&1 | head -1"
    subprocess.run(program, shell=True, cwd=tmp_path, capture_output=True, timeout=DEADLINE_SECONDS, check=True)
    wait_until((tmp_path / "results" / "piped" / "model.safetensors").is_file)
    assert Run(tmp_path / "results" / "piped").rounds()["round"].tolist() == [0, 1, 2]


def _children(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


@pytest.mark.slow
def test_a_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from importlib.abc import MetaPathFinder
        from sim.__main__ import entry

        class CtrlC(MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "sim.cli":
                    os.kill(os.getpid(), signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background lets it be ignored
        sys.meta_path.insert(0, CtrlC())
        sys.argv = ["sim", "list"]
        entry()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.ray
def test_ctrl_c_ends_cleanly_after_writing_the_finished_rounds(tmp_path: Path) -> None:
    words = ["run", "--num-rounds", "500", "--name", "long", *ONE_ACTOR, "--num-clients", "20", *SHORT]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 2/"):
            break
    family = _children(psutil.Process(process.pid))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets the signal
    rest = process.stderr.read().splitlines()
    assert process.wait(timeout=DEADLINE_SECONDS) == 130
    ended = time.time()
    assert rest[-1] == "sim: interrupted; what was done is on disk"
    assert not any("Traceback" in line for line in rest)
    run = Run(tmp_path / "results" / "long")
    rounds = run.rounds()
    assert rounds["round"].tolist() == list(range(len(rounds)))
    assert len(rounds) >= 3
    assert len(run.clients()) == 4 * (len(rounds) - 1)
    for path in (run.accuracy_path, run.loss_path, run.model_path):
        assert path.stat().st_size > 1000
    # Flower's simulation leaves a timer of 10 s, for which a process must not wait after its last file.
    assert ended - max(path.stat().st_mtime for path in run.path.iterdir()) < 9
    assert family
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.slow
def test_a_file_is_no_terminal_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of notebooks set FORCE_COLOR, with which rich takes everything for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    program = Program(tmp_path, "colours", ["run", *FEW, "--engine", "inline"])
    assert program.end() == 0
    shown = [line.split(" · ")[0] for line in program.lines]
    assert [line for line in shown if "round " in line and "final" not in line] == [f"round {i}/2" for i in range(3)]
