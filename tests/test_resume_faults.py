"""Runs that go on with something else than they began with, damaged checkpoints, and locks that outlive a process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.common import MetricRecord, RecordDict
from flwr.server.strategy import FedAvg

from conftest import SMALL, Sim, Small, sha256
from sim import RunConfig, resume
from sim.data.dataset import load_dataset
from sim.errors import RunFolderError
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder import environment
from sim.run_folder.folder import Run
from sim.run_folder.writer import locked_folder
from sim.setup import resume as setup_resume


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
    with pytest.raises(RunFolderError, match=r"does not fit: data set was 400 training and 20 test images of \w+, is"):
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
