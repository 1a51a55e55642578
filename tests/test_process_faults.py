"""Processes that hang outside of clients, run out of memory, or leave something behind."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from conftest import ONE_ACTOR, PROGRAMS, Sim, Small, sha256
from sim import Run, RunConfig, resume
from sim.engine import interface
from sim.engine.ray.session import _remove_left_folders
from sim.errors import ClientError, EngineError
from sim.run_folder.records import RoundRecord
from sim.simulation import _most_clients_at_once

SHORT = 4.0


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_programs: None) -> Path:
    """A folder in which the programs of ``stuck`` note what they did."""
    monkeypatch.setenv("STUCK", str(tmp_path))
    monkeypatch.setattr(interface, "other_timeout", lambda client_timeout: client_timeout and SHORT)
    return tmp_path


@pytest.mark.nightly
@pytest.mark.ray
def test_a_test_and_a_set_up_that_hang_are_executed_by_another_process(small: Small, stuck: Path) -> None:
    ways = {"model": "stuck:model", "test": "stuck:test"}
    hanging = small({"num_cpus": 1}, client_timeout=20.0, engine="ray", name="hanging", **ways)
    assert {path.name for path in stuck.iterdir()} >= {"model", "test"}
    log = hanging.log_path.read_text()
    assert f"process 0 hangs (no end after {SHORT:g} s); another one executes it" in log
    assert sha256(hanging.model_path) == sha256(small(name="inline", **ways).model_path)
    assert not [p for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_STOPPED]


@pytest.mark.parametrize(
    ("command_line", "limit", "code", "said"),
    [
        (
            "run --engine ray",
            "size=64k",
            2,
            "TMPDIR={0}: 0.0 MiB are free in {0}, but Ray needs 8 MiB for temporary files; set it to a writable folder "
            "with a path of at most 26 letters",
        ),
        ("sweep --vary lr=0.1 --seeds 1", "size=64k", 1, "{0}/.*/lr-0.1_seed-0.toml: cannot be written: No space .*"),
        (
            "sweep --vary lr=0.1 --seeds 1",
            "nr_inodes=2",
            1,
            "{0}/.* cannot be written: No space left on device",
        ),
    ],
)
def test_a_full_folder_for_temporary_files_is_named(
    command: Sim, monkeypatch: pytest.MonkeyPatch, command_line: str, limit: str, code: int, said: str, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    with tempfile.TemporaryDirectory(prefix="full-", dir="/tmp") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", folder], check=True)
        try:
            Path(folder, "all").write_bytes(bytes(64 * 1024))
            monkeypatch.setenv("TMPDIR", folder)
            monkeypatch.setattr(tempfile, "tempdir", folder)
            result = command(*command_line.split())
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    assert re.fullmatch(f"sim: {said.format(re.escape(folder))}\n", result.stderr), result.stderr
    assert result.returncode == code
    assert not list(tmp_path.glob("results/*/rounds.csv"))


@pytest.mark.nightly
@pytest.mark.ray
def test_when_a_server_of_ray_dies_the_run_ends_with_one_line(small: Small, tmp_path: Path) -> None:
    def kill_raylet(record: RoundRecord) -> None:
        if record.round == 1:
            (raylet,) = [child for child in psutil.Process().children() if child.name() == "raylet"]
            raylet.kill()

    with pytest.raises(EngineError, match="Ray's raylet was killed or has crashed; --resume continues the run"):
        # Its actors may go on for a while without it.
        small({"num_cpus": 1}, kill_raylet, engine="ray", num_rounds=2000, name="killed")
    killed = Run(tmp_path / "results" / "killed")
    num_rounds = (killed.last_checkpoint() or 0) + 1
    resumed = resume(killed, engine="inline", num_rounds=num_rounds)
    assert sha256(resumed.model_path) == sha256(small(name="whole", num_rounds=num_rounds).model_path)


@pytest.mark.nightly
@pytest.mark.ray
def test_a_client_that_takes_all_memory_counts_as_one_that_raised(
    small: Small, stuck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it ends the run; test_engines.py has what is tried again and left out after its process died."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 5 * 2**30) / memory.total  # other tests may need some meanwhile
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    few = {"num_clients": 3, "clients_per_round": 3, "num_rounds": 1, "max_retries": 0, "max_local_steps": 2}
    died = "ProcessDied: its process was ended because the memory of this machine ran out, 1 time"
    with pytest.raises(ClientError, match=rf"client 1 raised in round 1 \(fit\): {died}$"):
        small({"num_cpus": 1}, client="stuck:Hungry", engine="ray", **few)


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.nightly])])
def test_what_a_client_leaves_ends_with_the_run(sim: Sim, stuck: Path, engine: str) -> None:
    """A program, a fork, a thread, and a fork that returns from the client like its parent."""
    few = ("--num-clients", "4", "--clients-per-round", "2", "--num-rounds", "2", "--max-local-steps", "1")
    actors = ONE_ACTOR if engine == "ray" else ()
    settings = (*few, *actors, "--engine", engine, "--results-dir", str(stuck / "results"), "--name", "run")
    result = sim("run", *settings, "--client", "stuck:Untidy", cwd=PROGRAMS)
    assert result.returncode == 0
    note = "sim: note: ends although threads of user code are still running: "
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("sim: ")]
    assert line.startswith(f"{note}of client ")
    pids = [int(line) for line in (stuck / "helpers").read_text().split()]
    assert len(pids) == 2 * (4 + 1)  # one of them in the dry run
    assert not [pid for pid in pids if _is_ours(pid)]
    run = Run(stuck / "results" / "run")
    assert run.rounds()["round"].tolist() == [0, 1, 2]
    assert len(run.clients()) == 4


def _is_ours(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        title = " ".join(process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and ("sleep 600" in title or "stuck:Untidy" in title)
    except psutil.Error:
        return False


def test_without_a_loopback_device_a_run_ends_with_one_line(sim: Sim, tmp_path: Path) -> None:
    apart = ("unshare", "--net", "--map-root-user")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a network of its own")
    result = sim("run", "--num-clients", "4", "--clients-per-round", "2", prefix=apart)
    (line,) = result.stderr.splitlines()
    assert line.startswith("sim: Ray could not start: no connection to 127.0.0.1 (")
    assert result.returncode == 1
    assert not (tmp_path / "results").exists()


def test_a_library_that_does_not_fit_into_memory_is_one_line(sim: Sim) -> None:
    limited = ("sh", "-c", 'ulimit -v 1500000; exec "$@"', "sh")
    result = sim("run", "--engine", "inline", prefix=limited)
    (line,) = result.stderr.splitlines()
    assert line.startswith("sim: /")
    assert "cannot be loaded: libtorch" in line
    assert result.returncode == 1


def test_too_few_open_files_are_refused_and_a_low_soft_limit_is_raised(sim: Sim, tmp_path: Path) -> None:
    few = sim("run", "--engine", "inline", prefix=("sh", "-c", 'ulimit -n 20; exec "$@"', "sh"))
    assert few.stderr == "sim: ulimit -n 20: this process may open 20 files, but 64 are needed\n"
    assert few.returncode == 2
    assert not (tmp_path / "results").exists()
    soft = sim("run", "--engine", "inline", "--num-rounds", "1", prefix=("sh", "-c", 'ulimit -Sn 20; exec "$@"', "sh"))
    assert soft.returncode == 0


def test_a_pipe_in_the_folder_for_temporary_files_stops_nobody(tmp_path: Path) -> None:
    names = ("pipe", "link", "left", "new")
    folders = {name: tmp_path / f"sim-ray-{name}" for name in names}
    for folder in folders.values():
        folder.mkdir()
    os.mkfifo(folders["pipe"] / "lock")
    (folders["link"] / "lock").symlink_to(tmp_path / "elsewhere")
    (folders["left"] / "lock").touch()
    cleaning = threading.Thread(target=_remove_left_folders, args=(tmp_path,), daemon=True)
    cleaning.start()
    cleaning.join(timeout=10)
    assert not cleaning.is_alive()
    assert {path.name for path in tmp_path.iterdir()} == {"sim-ray-pipe", "sim-ray-link", "sim-ray-new"}


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"clients_per_round": 1}, 1),
        ({"fraction_fit": 0.3}, 3),
        ({"clients_per_round": 1, "fraction_evaluate": 0.5}, 5),
        ({"clients_per_round": 1, "strategy": "own:EachClientFedAvg"}, 10),
    ],
)
def test_no_more_actors_than_a_phase_has_clients(settings: dict[str, object], most: int) -> None:
    assert _most_clients_at_once(RunConfig(num_clients=10, **settings)) == most  # type: ignore[arg-type]
