"""``sim predict``: the classes that the model of a run sees in image files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from conftest import PROGRAMS, Sim, Small
from sim import Run, RunConfig
from sim.data.load_dataset import load_dataset
from sim.setup.predict import predict
from sim.setup.trained import TrainedModel
from sim.training.models import Net


@pytest.fixture
def digits(finished: Run, tmp_path: Path) -> np.ndarray[Any, Any]:
    """The first three images of the central test, and the same as 0.png, 1.png and 2.png in the current folder."""
    images = np.array(load_dataset(RunConfig.load(finished.config_path)).test.images)[:3, ..., 0]  # type: ignore[union-attr]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return images


def expected(run: Run, image: np.ndarray[Any, Any]) -> list[tuple[str, str]]:
    """The classes of an image uint8 [32, 32] and their probabilities, in plain PyTorch."""
    net = Net((1, 32, 32), 10).eval()
    net.load_state_dict({name: torch.tensor(array) for name, array in load_file(run.model_path).items()})
    with torch.no_grad():
        values = net(torch.tensor(image)[None, None] / 127.5 - 1)[0].double().softmax(0)
    return [(str(int(c)), f"{float(values[c]):.4f}") for c in values.argsort(descending=True)[:3]]


@pytest.mark.slow
def test_the_first_three_classes(finished: Run, command: Sim, digits: np.ndarray[Any, Any]) -> None:
    done = command("predict", str(finished.path), "0.png", "1.png", "2.png")
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows = [line.split() for line in done.stdout.splitlines()]
    assert heading == ["image", *["class", "probability"] * 3]
    wanted = [[f"{n}.png", *(cell for pair in expected(finished, digits[n]) for cell in pair)] for n in range(3)]
    assert rows == wanted


def test_images_are_resized_and_turned_grey_as_the_data_set_is(
    finished: Run, command: Sim, digits: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    large = Image.fromarray(digits[0]).resize((80, 60)).convert("RGB")
    large.save(tmp_path / "large.png")
    done = command("predict", str(finished.path), "large.png", "1.png")
    assert done.returncode == 0, done.stderr
    note, _, *rows = done.stdout.splitlines()
    assert note == "note            large.png is resized from 80×60 to 32×32 pixels"
    small = np.asarray(large.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
    assert rows[0].split() == ["large.png", *(cell for pair in expected(finished, small) for cell in pair)]
    assert rows[1].split() == ["1.png", *(cell for pair in expected(finished, digits[1]) for cell in pair)]


def test_the_accuracy_over_files_is_that_of_the_run(finished: Run, tmp_path: Path) -> None:
    test = load_dataset(RunConfig.load(finished.config_path)).test
    assert test is not None
    paths = [tmp_path / f"{number}.png" for number in range(len(test))]
    for path, image in zip(paths, np.array(test.images)[..., 0], strict=True):  # type: ignore[attr-defined]
        Image.fromarray(image).save(path)
    found = predict(finished, TrainedModel.of(finished), paths)
    right = [int(each.classes[0][0]) == label for each, label in zip(found, np.array(test.labels), strict=True)]
    assert np.mean(right) == finished.rounds()["test_accuracy"].iloc[-1]
    assert all(abs(sum(value for _, value in each.classes) - 1) < 1e-12 for each in found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.png", "No such file or directory"),
        ("text.png", "not a complete image in a known format"),
        ("cut.png", "not a complete image in a known format"),
        ("folder", "is no file"),
        ("pipe", "is no file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_files_that_cannot_be_read(
    finished: Run, command: Sim, digits: np.ndarray[Any, Any], tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    done = command("predict", str(finished.path), "0.png", name)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sim: {name}: {reason}\n")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"dataset": "wine", "model": "Mlp", "partitioner": "iid"},
            "--dataset wine has no images that could be made from files",
        ),
        (
            {"client_fn": "client_fns:by_context", "max_local_steps": None},
            "the model is that of --client-fn, which only the program itself can build, so that it cannot be called",
        ),
    ],
    ids=["table", "program"],
)
def test_runs_without_images(
    small: Small, command: Sim, in_programs: None, settings: dict[str, Any], reason: str
) -> None:
    run = small(**settings, num_rounds=1, num_clients=4)
    done = command("predict", str(run.path), "0.png", cwd=PROGRAMS)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sim: {run.path}: {reason}\n")


def test_as_people_start_it(
    finished: Run, sim: Sim, command: Sim, digits: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    shutil.copytree(finished.path, tmp_path / "results" / "mine")
    done = sim("predict", "mine", "0.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:3] == ["0.png", *expected(finished, digits[0])[0]]
    done = command("predict", "other", "0.png")
    message = "sim: run other: neither a run in results nor a path to one; existing runs: mine\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
