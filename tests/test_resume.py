"""Runs that end early and are resumed: to the bit as if they had not ended, or one line that says why not."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import PROGRAMS, ROOT, SMALL, Sim, Small, made_once, sha256
from federation import Program, wait_until
from sim import Run, RunConfig, resume, simulate
from sim.errors import ConfigError, RunError, RunFolderError, SimError, StateError
from sim.server.strategy import PRIVACY, STRATEGIES

_TIMES = {"seconds", "actor"}


def assert_same(one: Run, other: Run) -> None:
    """Weights and tables are equal to the bit, times and processes aside."""
    assert sha256(one.model_path) == sha256(other.model_path)
    for name in ("rounds", "clients", "metrics"):
        frames = [getattr(run, name)() for run in (one, other)]
        kept = [c for c in frames[0].columns if not c.endswith("seconds") and c not in _TIMES]
        pd.testing.assert_frame_equal(frames[0][kept], frames[1][kept], check_exact=True)


def _stop_after(number: int) -> Callable[[Any], None]:
    def on_record(record: Any) -> None:
        if record.round == number:
            raise KeyboardInterrupt

    return on_record


def _interrupted(small: Small, tmp_path: Path, number: int, **settings: Any) -> Run:
    with pytest.raises(KeyboardInterrupt):
        small(name="cut", on_record=_stop_after(number), **settings)
    return Run(tmp_path / "results" / "cut")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_ends_the_run_nevertheless(small: Small, tmp_path: Path) -> None:
    """Python drops what is raised in a destructor."""

    class Last:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def on_record(record: Any) -> None:
        if record.round == 1:
            Last()

    with pytest.raises(KeyboardInterrupt):
        small(name="cut", on_record=on_record, num_rounds=5)
    cut = Run(tmp_path / "results" / "cut")
    assert cut.rounds()["round"].tolist() == [0, 1, 2]
    assert_same(resume(cut), small(name="whole", num_rounds=5))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    "strategy",
    [
        name if name in ("fedavg", "fedadam", "krum") else pytest.param(name, marks=pytest.mark.nightly)
        for name in (*STRATEGIES, *(f"dp-{kind}" for kind in PRIVACY))
    ],
)
def test_every_strategy_resumes_to_the_bit(small: Small, tmp_path: Path, strategy: str) -> None:
    settings: dict[str, Any] = {"num_rounds": 3, "clients_per_round": 7, "fraction_evaluate": 0.2, "max_local_steps": 2}
    settings |= {"dp": strategy[3:]} if strategy.startswith("dp-") else {"strategy": strategy}
    whole = small(name="whole", **settings)
    cut = _interrupted(small, tmp_path, 1, **settings)
    assert cut.rounds()["round"].tolist() == [0, 1]
    assert_same(resume(cut), whole)
    assert sorted(path.name for path in cut.checkpoints_path.iterdir()) == ["2", "3"]


@pytest.mark.usefixtures("in_programs")
@pytest.mark.parametrize(
    "settings",
    [
        {"client": "own:Counting", "num_clients": 4},  # each client counts its calls in Context.state
        {"model": "own:WithBatchNorm", "strategy": "fedadam"},
        {"model": "own:WithDropout", "lr_decay": 0.9, "momentum": 0.5, "augment": "crop-flip"},
        {"keep_checkpoints": 1},
        {"checkpoint_every": 3},  # the interruption writes the one that is due later
        {"local_training": "vectorized", "vectorized_clients": 3},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_clients_and_models_keep_is_resumed(small: Small, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"num_rounds": 4, "max_local_steps": 2, **settings}
    whole = small(name="whole", **settings)
    assert_same(resume(_interrupted(small, tmp_path, 2, **settings)), whole)


def test_as_many_checkpoints_are_kept_as_was_asked_for(small: Small) -> None:
    run = small(num_rounds=5, keep_checkpoints=3, strategy="scaffold", clients_per_round=10)
    assert run.checkpoints() == [3, 4, 5]
    kept = {int(path.stem.split(".")[-1]) for path in run.client_states_path.rglob("*.safetensors")}
    assert kept == {3, 4, 5}  # what the oldest one needs is there
    resume(run, num_rounds=6, keep_checkpoints=1)
    assert run.checkpoints() == [6]
    assert run.config()["keep_checkpoints"] == 1
    with pytest.raises(ConfigError, match=r"^keep_checkpoints = 0: must be at least 1 and at most 1000000000$"):
        small(keep_checkpoints=0)


def test_a_finished_run_continues_to_more_rounds(small: Small) -> None:
    short, whole = small(name="short", num_rounds=2), small(name="whole", num_rounds=4)
    with pytest.raises(RunFolderError, match="all 2 rounds are done; a larger --num-rounds continues"):
        resume(short)
    assert_same(resume(short, num_rounds=4), whole)
    assert short.config()["num_rounds"] == 4


def test_a_run_whose_last_files_could_not_be_written_is_finished(small: Small) -> None:
    run, whole = small(name="one"), small(name="whole")
    run.model_path.unlink()
    assert_same(resume(run), whole)


def test_a_run_that_was_killed_after_it_reached_its_target_is_finished(small: Small) -> None:
    settings: dict[str, Any] = {"num_rounds": 4, "target_metric": "loss<=1e9"}
    run, whole = small(name="one", **settings), small(name="whole", **settings)
    assert len(whole.rounds()) == 1
    run.model_path.unlink()
    assert_same(resume(run), whole)


def test_rows_after_the_last_checkpoint_are_cut(small: Small, tmp_path: Path) -> None:
    """As after a crash between the tables and the checkpoint."""
    whole = small(name="whole", num_rounds=4)
    cut = _interrupted(small, tmp_path, 3, num_rounds=4)
    shutil.rmtree(cut.checkpoints_path / "3")
    with cut.rounds_path.open("a") as file:
        file.write("4,7,")
    assert_same(resume(cut), whole)


@pytest.mark.ray
def test_sigterm_ends_with_a_checkpoint_and_another_number_of_processes_resumes(
    command: Sim, small: Small, tmp_path: Path
) -> None:
    """Here from two actors to this process; test_engines.py resumes on Ray."""
    flags = "--num-clients 10 --clients-per-round 8 --num-rounds 200 --max-local-steps 3 --strategy fedadam --name cut"
    process = Program(tmp_path, "cut", ["run", *flags.split()])
    cut = Run(tmp_path / "results" / "cut")
    wait_until(lambda: not process.process.is_alive() or len(cut.checkpoints()) >= 2)
    process.send(signal.SIGSTOP)  # so that it does not get far meanwhile
    again = command("run", "--resume", "cut", "--engine", "inline")
    assert (again.returncode, again.stderr) == (2, f"sim: {cut.path}: another process is writing to it\n")
    process.send(signal.SIGCONT)
    process.send(signal.SIGTERM)
    assert process.end() == 130
    assert process.lines[-1] == "sim: interrupted; what was done is on disk"
    last = cut.rounds()["round"].max()
    assert cut.last_checkpoint() == last
    assert f"round {last}" in command("list").stdout
    settings: dict[str, Any] = {"clients_per_round": 8, "num_rounds": int(last) + 2, "strategy": "fedadam"}
    whole = small(name="whole", results_dir=str(tmp_path), **settings)
    # The config said 200 rounds; a run is ended where one wants by its config file.
    text = cut.config_path.read_text().replace("num_rounds = 200", f"num_rounds = {last + 2}")
    cut.config_path.write_text(text)
    resumed = command("run", "--resume", "cut", "--engine", "inline")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(cut, whole)
    assert "round" not in command("list").stdout.splitlines()[1]


def _config(run: Run) -> None:
    run.config_path.write_text(run.config_path.read_text().replace("lr = 0.1", "lr = 0.2"))


def _seed(run: Run) -> None:
    run.config_path.write_text(run.config_path.read_text().replace("seed = 0", "seed = 1"))


def _table(run: Run) -> None:
    run.rounds_path.write_text(run.rounds_path.read_text().replace("\n1,", "\n9,"))


def _short_table(run: Run) -> None:
    run.clients_path.write_text("round\n")


def _no_checkpoint(run: Run) -> None:
    shutil.rmtree(run.checkpoints_path)


def _damaged(run: Run) -> None:
    for folder in run.checkpoints_path.iterdir():
        path = folder / "arrays.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))


def _no_json(run: Run) -> None:
    for path in run.checkpoints_path.glob("*/state.json"):
        path.write_text("[]")


def _digit(run: Run) -> None:
    for path in run.checkpoints_path.glob("*/state.json"):
        path.write_text(path.read_text().replace('"round": ', '"round": 1'))


def _format(run: Run) -> None:
    _edit(run, lambda about: about.update(format=99))


def _strategy(run: Run) -> None:
    _edit(run, lambda about: about["strategy"].update(strategy="Krum"))


def _edit(run: Run, change: Callable[[dict[str, Any]], Any]) -> None:
    for path in run.checkpoints_path.glob("*/state.json"):
        about = json.loads(path.read_text())["state"]
        change(about)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({"sha256": digest, "state": about}))


def _cut_after_two_rounds(folder: Path) -> None:
    config = RunConfig(**{**SMALL, "num_rounds": 4}, name="cut", results_dir=str(folder))
    with pytest.raises(KeyboardInterrupt):
        simulate(config, on_record=_stop_after(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_config, "does not fit: lr was 0.1, is 0.2"),
        (_seed, r"does not fit: seed was 0, is 1; partition was \w+, is \w+"),
        (_table, "rounds.csv: was changed after its checkpoint was written"),
        (_short_table, "clients.csv: was changed after its checkpoint was written"),
        (_no_checkpoint, "has no checkpoint to resume from; .*remove the folder"),
        (_damaged, "2: arrays.safetensors is damaged or belongs to another checkpoint; .*1: arrays.safetensors"),
        (_no_json, "2: damaged: TypeError"),
        (_digit, "2: state.json is damaged; "),
        (_format, "2: has the format 99, but this version of sim reads format 1"),
        (_strategy, "2: does not belong to this strategy: strategy: the state is of the class Krum, not FedAvg"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_refused_and_nothing_changed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, damage: Callable[[Run], None], message: str
) -> None:
    made = made_once(tmp_path_factory, "resume", _cut_after_two_rounds)
    cut = Run(Path(shutil.copytree(made / "cut", tmp_path / "cut")))
    damage(cut)
    before = {path: sha256(path) for path in cut.path.rglob("*") if path.is_file()}
    with pytest.raises(SimError, match=message) as caught:
        resume(cut)
    assert caught.value.exit_code == 2
    assert {path: sha256(path) for path in cut.path.rglob("*") if path.is_file()} == before


def test_tables_of_an_earlier_version_keep_their_columns(small: Small, tmp_path: Path) -> None:
    cut = _interrupted(small, tmp_path, 2, num_rounds=4)
    shorter = {cut.rounds_path: "checkpoint_seconds", cut.clients_path: "error"}  # the last columns of version 0.1
    marks = {}
    for path, last in shorter.items():
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.loc[:, :last].to_csv(path, index=False, lineterminator="\n")
        marks[path.name] = [path.stat().st_size, sha256(path)]

    def earlier(about: dict[str, Any]) -> None:
        if about["round"] == 2:
            about["tables"].update(marks)
            about["fits"]["columns of rounds.csv"] = ["round", "and so on"]

    _edit(cut, earlier)
    resumed = resume(cut)
    assert cut.rounds_path.read_text().split("\n")[0].endswith(",checkpoint_seconds")
    assert cut.clients_path.read_text().split("\n")[0].endswith(",error")
    assert resumed.rounds()["round"].tolist() == [0, 1, 2, 3, 4]
    assert resumed.clients().status.tolist() == ["ok"] * 16
    assert sha256(resumed.model_path) == sha256(small(name="whole", num_rounds=4).model_path)


def test_a_run_that_ends_while_its_pictures_are_drawn_is_made_whole(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model comes last, so that a run with a model lacks nothing."""
    whole = small(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr("sim.run_folder.plots.curves_figure", _raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            small(name="cut")
    cut = Run(tmp_path / "results" / "cut")
    assert not cut.model_path.exists()
    resume(cut)
    assert_same(cut, whole)


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


SIGNALLED_AT_ITS_END = """
import atexit, signal
from torch import nn
atexit.register(signal.raise_signal, signal.SIGTERM)
def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
"""


@pytest.mark.slow
def test_a_signal_after_the_end_of_a_run_does_not_make_it_a_failure(sim: Sim, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(SIGNALLED_AT_ITS_END)
    words = ("--num-clients", "2", "--num-rounds", "1", "--engine", "inline", "--name", "late")
    done = sim("run", *words, "--model", "late:net")
    assert done.returncode == 0, done.stderr
    again = sim("run", "--resume", "late")
    assert again.returncode == 0
    assert again.stderr.endswith("results/late: its only round is done; a larger --num-rounds continues\n")


def test_one_damaged_checkpoint_is_replaced_by_the_one_before_it(small: Small, tmp_path: Path) -> None:
    whole = small(name="whole", num_rounds=4)
    cut = _interrupted(small, tmp_path, 3, num_rounds=4)
    (cut.checkpoints_path / "3" / "arrays.safetensors").write_bytes(b"half")
    assert_same(resume(cut), whole)


def test_flags_that_a_run_keeps_are_refused(command: Sim, finished: Run) -> None:
    run = str(finished.path)
    results = [
        command("run", "--resume", run, *words)
        for words in (("--lr", "0.5"), ("--preset", "blazefl"), ("--num-rounds", "1"))
    ]
    assert [result.returncode for result in results] == [2, 2, 2]
    lines = [result.stderr for result in results]
    assert lines[0].startswith("sim: --lr: a resumed run keeps its config; it may change --num-rounds, ")
    assert lines[1] == "sim: --preset blazefl: a resumed run uses its own config\n"
    assert "all 2 rounds are done" in lines[2]
    again = command("run", "--resume", run)  # a script may do so until it ends well
    assert again.returncode == 0
    assert again.stderr == f"sim: note: {run}: all 2 rounds are done; a larger --num-rounds continues\n"
    assert again.stdout.startswith("run folder ")
    missing = command("run", "--resume", "nobody")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


def test_a_cosine_cannot_be_made_longer(small: Small) -> None:
    run = small(lr_schedule="cosine")
    with pytest.raises(ConfigError, match="--num-rounds 9: the cosine of --lr-schedule ends at round 2"):
        resume(run, num_rounds=9)


@pytest.mark.slow
def test_generators_and_variables_of_a_strategy_are_resumed(tmp_path: Path) -> None:
    """In processes of their own, where the variables begin anew."""
    settings = {**SMALL, "strategy": "own:Drawing", "results_dir": str(tmp_path)}
    few = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    for words in (
        [*few, "--num-rounds", "3", "--name", "whole"],
        [*few, "--num-rounds", "1", "--name", "part"],
        ["--resume", str(tmp_path / "part"), "--num-rounds", "3"],
    ):
        command = [sys.executable, "-m", "sim", "run", *words]
        done = subprocess.run(command, cwd=PROGRAMS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    whole, part = Run(tmp_path / "whole"), Run(tmp_path / "part")
    assert part.rounds()["round"].tolist() == [0, 1, 2, 3]
    assert sha256(part.model_path) == sha256(whole.model_path)


@pytest.mark.usefixtures("in_programs")
def test_a_strategy_that_no_checkpoint_can_keep_is_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"own:Locking: holds lock \(lock\), which a checkpoint cannot keep"):
        small(strategy="own:Locking")
    assert not (tmp_path / "results").exists()
    small(strategy="own:Locking", checkpoint_every=0)
    with pytest.raises(RunError, match=r"round 1: the strategy now holds seen \(lock\), which no checkpoint can keep"):
        small(strategy="own:Remembering", name="later")
    assert Run(tmp_path / "results" / "later").rounds()["round"].tolist() == [0]


@pytest.mark.nightly
@pytest.mark.slow
def test_the_fault_campaign_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    """A full disk, which needs the right to mount; the run ends with one line and is resumed.

    The other kinds of the campaign have tests of their own, here, in test_faults.py and in test_process_faults.py.
    """
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "faults"))
    monkeypatch.chdir(ROOT / "scripts" / "faults")
    monkeypatch.setenv("SIM_FAULT", "")  # the campaign changes it
    campaign = importlib.import_module("campaign")
    monkeypatch.setattr(campaign, "NUM_ROUNDS", 4)
    monkeypatch.setitem(campaign.SETTINGS, "max_local_steps", 2)
    output = tmp_path / "faults.csv"
    # Of this seed are both runs inline, and the disk has room for one checkpoint and not for two.
    words = ["--trials", "1", "--seed", "11", "--kinds", "full disk", "--strategies", "fedadam", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["campaign", *words])
    assert campaign.main() == 0, output.read_text()
    table = pd.read_csv(output)
    assert table[["kind", "engine", "exit_codes", "outcome"]].values.tolist() == [["full disk", "inline", "1 0", "ok"]]
