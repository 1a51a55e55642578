"""What goes wrong in a night: NaN, hangs, killed processes, a folder that is gone, two runs at once."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from conftest import ONE_ACTOR, Sim, Small, sha256
from federation import DEADLINE_SECONDS, Program, wait_until
from sim import Run, RunConfig, resume
from sim.engine.aggregation import NonFiniteError, check_finite
from sim.engine.liveness import Liveness, liveness_file
from sim.engine.ray import actor
from sim.engine.ray.dispatcher import last_line
from sim.errors import ClientError, EngineError, WriteError
from sim.measure import capacity
from sim.scale.usage import is_actor


def test_a_weight_that_is_no_number_is_named() -> None:
    good = [np.array([1.0, 2.0], np.float32), np.array(3, np.int64)]
    check_finite(good, good)
    huge = [np.array([3e38, 3e38], np.float32)]  # whose sum is infinite
    check_finite(huge, [np.zeros(2, np.float32)])
    for value, kind in ((np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")):
        wrong = np.array([0.0, value], np.float32)
        with pytest.raises(NonFiniteError, match=f"^fc1.bias holds {kind} weights$"):
            check_finite([*good, wrong], [*good, np.zeros(2, np.float32)], ["conv1.weight", "count", "fc1.bias"])
        check_finite([*good, wrong], [*good, wrong])  # a mask of −∞ came so


@pytest.mark.usefixtures("in_programs")
def test_a_client_that_returns_nan_is_left_out_as_one_that_raises(small: Small) -> None:
    nan, raising = (
        small(client=f"own:{name}", on_client_error="drop", name=name.lower()) for name in ("NotANumber", "Failing")
    )
    assert sha256(nan.model_path) == sha256(raising.model_path)
    failed = nan.clients()[nan.clients().status == "failed"]
    assert set(failed.error) == {"NonFiniteError: conv1.weight holds NaN weights"}
    assert (failed["round"] == 2).all()
    assert (failed.client_id % 2 == 1).all()


@pytest.mark.parametrize("local_training", ["sequential", "vectorized"])
def test_training_that_diverges_ends_the_run(small: Small, local_training: str) -> None:
    with pytest.raises(ClientError, match=r"client \d+ raised in round 1 \(fit\): NonFiniteError: .* NaN"):
        small(lr=1e30, local_training=local_training, local_epochs=3)


@pytest.mark.usefixtures("in_programs")
def test_failures_are_counted_by_kind_and_shown_once(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    run = small(client="own:Failing", on_client_error="drop", clients_per_round=10, num_rounds=3)
    assert run.rounds().num_failures.tolist()[1:] == [0, 5, 0]
    summary = "5 failures in 1 round, the first of client 1, round 2 (fit): ValueError: client 1 has a bad day"
    assert summary in capsys.readouterr().err
    log = run.log_path.read_text()
    assert log.count("Traceback") == 1
    assert log.count("has\na bad day") + log.count("has a bad day") >= 5


# Of these clients, client 1 hangs or raises in round 2.
THREE = {"num_clients": 3, "clients_per_round": 3, "on_client_error": "drop", "max_local_steps": 3}


@pytest.mark.ray
@pytest.mark.usefixtures("in_programs")
def test_a_client_that_hangs_is_left_out_and_its_process_replaced(small: Small) -> None:
    hanging = small({"num_cpus": 2}, client="own:Hanging", client_timeout=5.0, max_retries=0, engine="ray", **THREE)
    raising = small(client="own:Failing", name="raising", **THREE)
    assert sha256(hanging.model_path) == sha256(raising.model_path)
    failed = hanging.clients()[hanging.clients().status == "failed"]
    assert failed[["round", "client_id"]].values.tolist() == [[2, 1]]
    assert set(failed.error) == {"Timeout: no end after 5 s"}
    assert "hangs with client" in hanging.log_path.read_text()
    assert "spills" not in hanging.log_path.read_text()


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.usefixtures("in_programs")
def test_a_client_that_hangs_on_another_machine_is_ended_by_that_machine(
    small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its processes do not find the liveness file, so that the driver cannot see what they execute."""
    make = actor.ActorAssignment

    def without_file(*args: Any, **kwargs: Any) -> actor.ActorAssignment:
        return replace(make(*args, **kwargs), liveness_path=tmp_path / "none")

    monkeypatch.setattr(actor, "ActorAssignment", without_file)
    hanging = small({"num_cpus": 1}, client="own:Hanging", client_timeout=5.0, max_retries=0, engine="ray", **THREE)
    raising = small(client="own:Failing", name="raising", **THREE)
    assert sha256(hanging.model_path) == sha256(raising.model_path)
    failed = hanging.clients()[hanging.clients().status == "failed"]
    assert failed[["round", "client_id"]].values.tolist() == [[2, 1]]


@pytest.mark.nightly
@pytest.mark.ray
def test_ray_does_not_use_the_disk_as_memory_without_a_word(small: Small) -> None:
    """Krum holds the weights of 20 clients, 128 MB, for which Ray is given 75; it asks first how full the disk is."""
    krum: dict[str, Any] = {
        "model": "SimpleCnn",
        "strategy": "krum",
        "num_clients": 20,
        "clients_per_round": 20,
        "num_rounds": 1,
        "max_local_steps": 1,
        "engine": "ray",
    }
    little = {"num_cpus": 1, "object_store_memory": 75 * 2**20}
    run = small({**little, "_system_config": {"local_fs_capacity_threshold": 1.0}}, **krum)
    assert run.log_path.read_text().count("shared memory is full and spills to the disk") == 1
    with pytest.raises(EngineError, match=r"^round 1: Ray's shared memory is full, and so is the disk"):
        small({**little, "_system_config": {"local_fs_capacity_threshold": 0.0}}, **krum)


def test_memory_without_room_is_no_full_disk() -> None:
    assert "disk" not in last_line(ObjectStoreFullError())
    assert "disk" in last_line(OutOfDiskError())


def test_a_run_whose_folder_is_gone_ends_with_one_line(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "gone"

    def remove(record: Any) -> None:
        if record.round == 1:
            shutil.rmtree(folder)

    with pytest.raises(WriteError, match=r"gone/.*: cannot be written") as caught:
        small(name="gone", on_record=remove, num_rounds=5)
    assert caught.value.exit_code == 1


def test_a_run_whose_config_is_gone_is_written_whole(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "whole" / "config.toml"
    before = []

    def remove(record: Any) -> None:
        if record.round == 1:
            before.append(path.read_bytes())
            path.unlink()

    run = small(name="whole", on_record=remove)
    assert [path.read_bytes()] == before
    assert run.is_done()
    assert capsys.readouterr().err == (
        "sim: note: config.toml was removed or changed during the run, and is written again\n"
    )


def test_a_run_whose_table_is_gone_leaves_its_model(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "gone"

    def remove(record: Any) -> None:
        if record.round == 1:
            (folder / "rounds.csv").unlink()

    with pytest.raises(WriteError, match=r"gone/rounds.csv: cannot be written: No such file or directory"):
        small(name="gone", on_record=remove)
    assert (folder / "model.safetensors").exists()


def test_a_table_that_a_client_damages_is_no_wrong_input(
    command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damages.py").write_text(
        "from pathlib import Path\n"
        "def train(net, loader):\n"
        "    for path in Path('results').glob('one/rounds.csv'):\n"
        "        with path.open('r+') as file:\n"
        "            file.write('nothing')\n"
    )
    words = ("--engine", "inline", "--num-clients", "10", "--clients-per-round", "1", "--num-rounds", "1")
    result = command("run", *words, "--train", "damages:train", "--name", "one")
    said = f"the run is over, but its results cannot be read: {tmp_path}/results/one/rounds.csv: has no column round"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, f"sim: {said}")
    assert (tmp_path / "results" / "one" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_whose_folder_becomes_read_only_can_be_resumed(tmp_path: Path, small: Small) -> None:
    program = """
        import sys
        from pathlib import Path
        from sim import RunConfig, SimError, simulate

        def lock(record):
            if record.round == 2:
                for folder in ("results/cut/checkpoints", "results/cut"):
                    Path(folder).chmod(0o555)

        few = dict(num_clients=10, clients_per_round=4, local_epochs=1, max_local_steps=3, num_rounds=4)
        try:
            simulate(RunConfig(**few, engine="inline", name="cut"), on_record=lock)
        except SimError as error:
            print(error)
            sys.exit(error.exit_code)
    """
    # Root writes where it may not, unless it gives that up.
    gives_up = ["--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"]
    as_a_user = ["setpriv", *gives_up] if os.geteuid() == 0 else []
    command = [*as_a_user, sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    run = Run(tmp_path / "results" / "cut")
    for folder in (run.checkpoints_path, run.path):
        folder.chmod(0o755)
    assert result.returncode == 1, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith(str(run.path))
    assert line.endswith("cannot be written: Permission denied")
    assert sha256(resume(run).model_path) == sha256(small(num_rounds=4).model_path)
    assert not [path for path in run.path.rglob("*") if path.name.startswith(".")]


@pytest.mark.nightly
@pytest.mark.ray
def test_two_runs_at_once_and_one_that_was_killed(tmp_path: Path, small: Small) -> None:
    """Each has its own Ray; the session folder and the processes of one that was killed go at once."""
    before = set(Path(tempfile.gettempdir()).glob("sim-ray-*"))
    flags = ["run", "--num-clients", "10", "--clients-per-round", "4", "--max-local-steps", "1", *ONE_ACTOR]
    killed = Program(tmp_path, "killed", [*flags, "--num-rounds", "1000", "--name", "killed"])
    table = tmp_path / "results" / "killed" / "rounds.csv"
    wait_until(lambda: not killed.process.is_alive() or (table.exists() and table.read_text().count("\n") > 2))
    family = psutil.Process(killed.process.pid).children(recursive=True)

    def started() -> str:
        return " ".join(word for process in family for word in process.cmdline())

    assert any(is_actor(process) for process in family)
    assert "monitor.py" not in started()  # Ray's own, for clusters and for logs that we do not forward
    assert "dashboard.py" not in started()
    of_killed = set(Path(tempfile.gettempdir()).glob("sim-ray-*")) - before
    assert of_killed
    beside = small({"num_cpus": 1}, engine="ray", name="beside")
    assert killed.process.is_alive()
    killed.send(signal.SIGKILL)
    killed.end()
    _, alive = psutil.wait_procs(family, timeout=DEADLINE_SECONDS)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert sha256(beside.model_path) == sha256(small(name="inline").model_path)
    wait_until(lambda: any(not folder.exists() for folder in of_killed))  # other tests may have made the others


def test_liveness_is_what_a_process_executes(tmp_path: Path) -> None:
    with liveness_file(tmp_path) as path:
        writer, reader = Liveness(path), Liveness(path)
        assert reader.current(1) is None
        before = time.monotonic()
        writer.begin(1, client_id=7, num_clients=3)
        current = reader.current(1)
        assert current is not None
        assert (current.client_id, current.num_clients, current.pid) == (7, 3, psutil.Process().pid)
        assert 0 <= current.seconds <= time.monotonic() - before
        writer.end(1)
        assert reader.current(1) is None
    assert not path.exists()


def test_a_disk_without_room_for_the_file_of_liveness_is_one_line(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk, with another reason
    try:
        with (
            pytest.raises(EngineError, match=f"^{tmp_path}/sim-liveness-.*: cannot be written: File too large$"),
            liveness_file(tmp_path),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_memory_is_said_in_one_line() -> None:
    gib = 2**30
    config = RunConfig(num_clients=100, fraction_fit=0.5)
    assert capacity.shortage(config, gib, 2, averages=True, free_bytes=20 * gib) is None  # 2 × 4.4 + 8.4
    line = capacity.shortage(
        config, gib, 2, averages=False, free_bytes=20 * gib
    )  # and 3 × 50 for each client's weights
    assert line is not None
    assert line.startswith("2 processes and the driver need about 167.3 GiB, 20.0 are free; ")
    assert "\n" not in line
    assert capacity.free_memory() or not Path("/proc/meminfo").exists()
