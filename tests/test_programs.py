"""Whole programs of other people's shapes: one client with all data is the program by itself, to the bit."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from conftest import PROGRAMS
from sim import Run, RunConfig, simulate
from sim.binding import ROLES
from sim.program_file import read
from sim.seeds import Purpose, reseed, restored

WHOLE = PROGRAMS / "whole"
SEED = 3

# Program → what its test gives besides a loss; accuracy has a column of rounds.csv, everything is in metrics.csv.
NAMES = {
    "mnist_style": "accuracy",
    "tutorial": "accuracy",
    "imagenet": "accuracy",
    "table": "accuracy",
    "regression": "r2",
    "char_lstm": "perplexity",
    "sentences": "accuracy",
    "segmentation": "pixel_accuracy",
    "multilabel": "accuracy",
    "imbalanced": "accuracy",
}


@pytest.fixture(autouse=True)
def _in_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(WHOLE)
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(name: str, tmp_path: Path, **settings: Any) -> Run:
    """Run a program that is named by its file alone."""
    own = {"local_epochs": 1, "partitioner": "iid", "results_dir": str(tmp_path), "seed": SEED, **settings}
    return simulate(RunConfig(program=f"{name}.py", **own))


def by_itself(name: str) -> tuple[list[np.ndarray[Any, Any]], dict[str, float]]:
    """Train a program for one epoch as it is, from the random streams that its only client gets."""
    spec = importlib.util.spec_from_file_location(f"alone_{name}", WHOLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = read(WHOLE / f"{name}.py").parts()  # type: ignore[union-attr]
    with restored():
        reseed(SEED, Purpose.DATA)
        train_loader, test_loader = getattr(module, parts["dataset"])()
        if not hasattr(train_loader, "batch_size"):
            train_loader, test_loader = DataLoader(train_loader, 8, shuffle=True), DataLoader(test_loader, 500)
        reseed(SEED, Purpose.INITIAL_WEIGHTS)
        net = _called(module, parts["model"], {"num_classes": 4})
        reseed(SEED, Purpose.FIT, 1, 0)
        given = {
            "net": net,
            "loader": train_loader,
            "epochs": 1,
            "epoch": 1,
            "device": torch.device("cpu"),
            "criterion": torch.nn.CrossEntropyLoss(),
            "args": Namespace(log_interval=10, dry_run=False),
            "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        }
        _called(module, parts["train"], given)
        weights = [value.detach().numpy().copy() for value in net.state_dict().values()]
        reseed(SEED, Purpose.TEST, 1)
        returned = _called(module, parts["test"], {**given, "loader": test_loader})
    if isinstance(returned, float):
        returned = {NAMES[name]: returned}
    if isinstance(returned, tuple):
        loss, rest = returned
        returned = {"loss": loss, **(rest if isinstance(rest, dict) else {NAMES[name]: rest})}
    return weights, {key: float(value) for key, value in returned.items()}


def averaged(array: np.ndarray[Any, Any], num_examples: int) -> np.ndarray[Any, Any]:
    if array.dtype == np.float32:
        return array * np.float32(num_examples) / np.float32(num_examples)
    return array


def _called(module: ModuleType, name: str, given: dict[str, Any]) -> Any:
    function = getattr(module, name)
    parameters = inspect.signature(function).parameters
    return function(**{key: given[ROLES[key.lower()]] for key in parameters if ROLES.get(key.lower()) in given})


@pytest.mark.parametrize("name", NAMES)
def test_one_client_with_all_data_is_the_program_by_itself(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path, num_clients=1, fraction_fit=1.0, num_rounds=1, engine="inline")
    torch.set_num_threads(1)  # as the run has by default
    weights, metrics = by_itself(name)
    with safe_open(done.model_path, "numpy") as file:
        keys = json.loads(file.metadata()["state_dict"])
        arrays = [file.get_tensor(key) for key in keys]
    num_examples = done.clients()["num_examples"].iloc[0]
    for key, found, trained in zip(keys, arrays, weights, strict=True):
        # The mean of one client is n·w / n, which differs from w in the last bit of a float32, but for buffers.
        same = np.array_equal(found, trained) or np.array_equal(found, averaged(trained, num_examples))
        assert same, (key, np.abs(found - trained).max())
    last = done.rounds().iloc[-1]
    if "loss" in metrics:
        assert last["test_loss"] == pytest.approx(metrics["loss"], rel=1e-5)  # of the mean, see above
    else:
        assert pd.isna(last["test_loss"])
    if NAMES[name] == "accuracy":
        assert last["test_accuracy"] == metrics["accuracy"]
    else:
        assert pd.isna(last["test_accuracy"])
    del sys.modules[name]
