"""Runs that go on with something else than they began with, damaged checkpoints, and locks that outlive a process."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import MetricRecord, RecordDict
from flwr.server.strategy import FedAvg
from safetensors.numpy import load, save

from conftest import SMALL, Sim, Small, sha256
from sim import RunConfig, resume, simulate
from sim.data.load_dataset import load_dataset
from sim.errors import RunFolderError
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder import environment
from sim.run_folder.folder import Run
from sim.run_folder.read_run import ReadRun
from sim.run_folder.writer import RunWriter, locked_folder
from sim.server.prepared_run import Prepared
from sim.setup import resume as setup_resume
from sim.setup.prepare import prepare

Forge = Callable[[Callable[[dict[str, Any], dict[str, Any]], object]], Prepared]


@pytest.mark.parametrize("value", [-1, 1.5, True, float("inf"), "1", None])
@pytest.mark.parametrize("name", ["round", "num_weights"])
def test_a_count_that_is_none_is_damage(tmp_path: Path, name: str, value: object) -> None:
    about = {"format": 1, "round": 1, "num_weights": 0, "strategy": {}, "clients": [], "fits": {}, "tables": {}}
    folder = tmp_path / "checkpoints" / "1"
    folder.mkdir(parents=True)
    (folder / "arrays.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    about["arrays_sha256"] = checkpoints.hashlib.sha256(b"\x02\0\0\0\0\0\0\0{}").hexdigest()

    def written() -> None:
        content = {"sha256": checkpoints._sum_of(about), "state": about}
        (folder / "state.json").write_text(json.dumps(content))

    written()
    assert checkpoints.read_last(Run(tmp_path))[0].round == 1
    about[name] = value
    written()
    with pytest.raises(RunFolderError, match="checkpoints/1: "):
        checkpoints.read_last(Run(tmp_path))


def test_json_that_is_nested_deep_is_damage(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "1"
    folder.mkdir(parents=True)
    (folder / "arrays.safetensors").touch()
    (folder / "state.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(RunFolderError, match="damaged: RecursionError"):
        checkpoints.read_last(Run(tmp_path))


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Change the state and the arrays of a checkpoint, with valid checksums, and read it as ``--resume`` does."""
    config = RunConfig(**{**SMALL, "num_rounds": 1}, strategy="fedadam", results_dir=str(tmp_path_factory.mktemp("f")))
    run = simulate(config)
    prepared = prepare(replace(config, num_rounds=2))
    place = run.checkpoints_path / "1"
    state = json.loads((place / "state.json").read_text())["state"]
    content = (place / "arrays.safetensors").read_bytes()

    def read(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Prepared:
        about, arrays = copy.deepcopy(state), load(content)
        change(about, arrays)
        (place / "arrays.safetensors").write_bytes(save(arrays))
        about["arrays_sha256"] = sha256(place / "arrays.safetensors")
        (place / "state.json").write_text(json.dumps({"sha256": checkpoints._sum_of(about), "state": about}))
        return setup_resume.resumed(run, replace(prepared, strategy=copy.deepcopy(prepared.strategy)))

    return read


def _of_strategy(name: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda about, arrays: about["strategy"]["state"].__setitem__(name, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda about, arrays: about["strategy"]["state"].pop("eta"), "the state has no eta"),
        (_of_strategy("aggregate_fit", {"value": 3}), "the state has a value for the method aggregate_fit"),
        (_of_strategy("__class__", {"value": 3}), "the state has a value for the method __class__"),
        (_of_strategy("eta", {"value": "text"}), "strategy.eta: is of the type str"),
        (_of_strategy("eta", {"list": [{"value": 1}]}), "strategy.eta: is of the type list"),
        (lambda about, arrays: arrays["weights.0"].fill(np.nan), "holds NaN weights"),
        (lambda about, arrays: arrays["strategy.m_t.0"].fill(np.inf), "m_t of the strategy, array 0, holds infinite"),
        (lambda about, arrays: arrays.update({"strategy.v_t.1": np.zeros(3)}), "v_t of the strategy has the shapes"),
        (_of_strategy("m_t", {"list": [{"value": 1}]}), "m_t of the strategy has the shapes"),
        (lambda about, arrays: about["fits"].update(config=3), "damaged: what must fit is no table of settings"),
        (lambda about, arrays: about["fits"].update(config=None), "damaged: what must fit is no table of settings"),
    ],
)
def test_a_forged_state_is_refused(forge: Forge, change: Any, reason: str) -> None:
    with pytest.raises(RunFolderError, match=f"checkpoints/1: .*{re.escape(reason)}"):
        forge(change)


def test_a_checkpoint_whose_table_is_longer_than_any_file_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    tables = {path.name: (10**15, "") for path in (run.rounds_path, run.clients_path)}
    for name in tables:
        (tmp_path / name).write_text("round\n")
    with pytest.raises(RunFolderError, match="was changed after its checkpoint was written"):
        RunWriter.reopen(run, tables)


def test_a_process_that_a_client_forked_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    read, write = os.pipe()
    ready, say_ready = os.pipe()
    with locked_folder(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(say_ready, b"x")
            os.read(read, 1)  # until the test has locked the folder again
            os._exit(0)
        os.read(ready, 1)
    try:
        with locked_folder(tmp_path):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        for descriptor in (read, write, ready, say_ready):
            os.close(descriptor)


_TRAIN = """
import torch
import {helper}


def train(net, loader, epochs, device, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr * {helper}.FACTOR)
    for images, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
"""


@pytest.mark.parametrize("folder", ["here", "elsewhere"])
def test_a_changed_module_of_the_user_is_refused_unless_allowed(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path if folder == "here" else tmp_path / folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(place)
    main, helper = f"main_{folder}", f"helper_{folder}"
    (place / f"{main}.py").write_text(_TRAIN.format(helper=helper))
    (place / f"{helper}.py").write_text("FACTOR = 1.0\n")
    (place / "other.py").write_text("")
    run = small(train=f"{main}:train", max_local_steps=1, num_rounds=1)
    (place / "other.py").write_text("not = python")
    resume(run, num_rounds=2)
    (place / f"{helper}.py").write_text("FACTOR = 0.5\n")
    before = {path: sha256(path) for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=rf"changed after it was written: \S*{helper}.py; .*--allow-changed-code"):
        resume(run, num_rounds=3)
    assert {path: sha256(path) for path in run.path.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    resume(run, num_rounds=3, allow_changed_code=True)
    for text in (capsys.readouterr().err, run.log_path.read_text()):
        assert text.count("note: the rounds after round 2 are made with other code: ") == 1
    resume(run, num_rounds=4)


def test_the_flag_for_changed_code_belongs_to_resume(command: Sim) -> None:
    result = command("run", "--allow-changed-code")
    assert result.returncode == 2
    assert result.stderr == "sim: --allow-changed-code: only for --resume; a new run takes the code as it is\n"


def test_other_versions_and_another_processor_are_said_once(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    run = small(num_rounds=1)
    then = json.loads(run.environment_path.read_text())
    torch = then["packages"]["torch"]
    then["packages"]["torch"], then["cpu"] = "1.0.0", "another one"
    run.environment_path.write_text(json.dumps(then))
    capsys.readouterr()
    resume(run, num_rounds=2)
    line = f"the rounds after round 1 are made elsewhere, .*: cpu was another one, is .*; torch was 1.0.0, is {torch}\n"
    for text in (capsys.readouterr().err, run.log_path.read_text()):
        assert len(re.findall(line, text)) == 1
    assert json.loads(run.environment_path.read_text())["earlier"] == [then]
    resume(run, num_rounds=3)
    assert "elsewhere" not in capsys.readouterr().err
    # Of round 1, which the first part made, and not the last one.
    assert environment.of_round(run.environment_path, 1)["cpu"] == "another one"


def test_damaged_environments_are_said(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    run = small(num_rounds=1)
    for number, (content, damage) in enumerate(
        (
            (b"", "Expecting value: line 1 column 1 (char 0)"),
            (
                run.environment_path.read_bytes()[:6],
                "Unterminated string starting at: line 2 column 3 (char 4)",
            ),
            (
                '{"python": "3"}'.encode("utf-16"),
                "'utf-8' codec can't decode byte 0xff in position 0",
            ),
            (b"[]", "holds a list, not an object"),
            (b"null", "holds a NoneType, not an object"),
            (b"\0" * 100, "Expecting value: line 1 column 1 (char 0)"),
            (b'{"earlier": 3}', "earlier is no list"),
        ),
        start=1,
    ):
        run.environment_path.write_bytes(content)
        with pytest.raises(RunFolderError, match=re.escape(f"{run.environment_path}: {damage}")):
            _ = ReadRun(run.path).environment  # as sim report reads it
        resume(run, num_rounds=number + 1)
        assert (
            f"note: whether the rounds after round {number} are made with the same versions and hardware is not known, "
            f"because environment.json is damaged: {damage}"
        ) in capsys.readouterr().err
    resume(run, num_rounds=number + 2)
    assert capsys.readouterr().err == ""


def test_checkpoints_of_earlier_versions_are_read(small: Small) -> None:
    """They have no code, and samples of the images instead of the checksum of the data set."""
    run, whole = small(name="old", num_rounds=1), small(name="whole")
    dataset = load_dataset(RunConfig(**SMALL))
    about = json.loads((run.checkpoints_path / "1" / "state.json").read_text())["state"]
    del about["code"], about["fits"]["data set"]
    for name, examples in (("training images", dataset.train), ("test images", dataset.test)):
        digest = hashlib.sha256(examples.labels.tobytes() + examples.images.tobytes()).hexdigest()
        about["fits"][name] = f"{len(examples)} of {digest[:16]}"
    content = {"sha256": checkpoints._sum_of(about), "state": about}
    (run.checkpoints_path / "1" / "state.json").write_text(json.dumps(content))
    resume(run, num_rounds=2)
    assert sha256(run.model_path) == sha256(whole.model_path)


def test_every_image_of_a_large_data_set_counts(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "images_of_a_file.py").write_text(
        "import numpy as np\n\n\ndef load():\n    x = np.load('x.npy')\n    y = np.arange(400) % 10\n"
        "    return (x, y), (x[:20], y[:20])\n"
    )
    images = np.zeros((400, 32, 32, 3), np.uint8)
    np.save("x.npy", images)
    monkeypatch.setattr(setup_resume, "_SAMPLE_BYTES", images.nbytes // 10)  # what was compared of a large data set
    monkeypatch.setenv("SIM_CACHE", str(tmp_path / "one"))
    run = small(dataset="images_of_a_file:load", partitioner="iid", num_rounds=1)
    images[333] = 1
    np.save("x.npy", images)
    monkeypatch.setenv("SIM_CACHE", str(tmp_path / "two"))
    with pytest.raises(RunFolderError, match=r"data set was 400 training and 20 test examples of \w+, is"):
        resume(run, num_rounds=2)


def test_only_the_strategy_is_copied_while_no_checkpoint_is_due(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[object] = []
    monkeypatch.setattr(checkpoints, "pack_record", lambda state: packed.append(state) or np.zeros(1, np.uint8))
    state = RecordDict({"n": MetricRecord({"calls": 1})})
    weights = [np.zeros(3, np.float32)]
    made = checkpoints.Checkpoint.of(1, weights, FedAvg(), {4: state}, {})
    assert (made.weights[0] is weights[0], made.clients, packed) == (True, [4], [])
    checkpoints.CheckpointWriter(Run(tmp_path)).begin(made)
    assert packed == [state]
    run = small(checkpoint_every=2, num_rounds=3)
    assert run.rounds().checkpoint_seconds.gt(0).all()
