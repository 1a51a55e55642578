"""Whole programs of other people's shapes: one client with all data is the program by itself, to the bit."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
from argparse import Namespace
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from conftest import PROGRAMS, Sim, sha256
from sim import Run, RunConfig, evaluate, resume, simulate
from sim.centralized import train_centralized
from sim.config.program import program_parts
from sim.config.run_config import CentralizedConfig
from sim.data.columns import Columns
from sim.data.items import Items
from sim.data.load_dataset import load_dataset
from sim.data.loaders import ExampleLoader, ResidentColumns
from sim.errors import NothingLeftError, UsageError
from sim.parameter_roles import ROLES
from sim.seeds import Purpose, reseed, restored, seeded

WHOLE = PROGRAMS / "whole"
SEED = 3

# Program → what its test gives besides a loss; accuracy has a column of rounds.csv, everything is in metrics.csv.
NAMES = {
    "mnist_style": "accuracy",
    "tutorial": "accuracy",
    "global_style": "accuracy",
    "trainer_class": "accuracy",
    "fitting_model": "accuracy",
    "own_loaders": "accuracy",
    "imagenet": "accuracy",
    "table": "accuracy",
    "prices": "r2",
    "char_lstm": "perplexity",
    "sentences": "accuracy",
    "segmentation": "pixel_accuracy",
    "multilabel": "accuracy",
    "imbalanced": "accuracy",
}


@pytest.fixture(autouse=True)
def _in_their_folder(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.chdir(WHOLE)
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(program: str, tmp_path: Path, **settings: Any) -> Run:
    """Run a program that is named by its file alone; with Ray on one actor."""
    own = {"local_epochs": 1, "partitioner": "iid", "results_dir": str(tmp_path), "seed": SEED, **settings}
    return simulate(RunConfig(program=f"{program}.py", **own), ray_init_args={"num_cpus": 1})


def by_itself(name: str) -> tuple[list[np.ndarray[Any, Any]], dict[str, float]]:
    """Train a program for one epoch as it is, from the random streams that its only client gets."""
    spec = importlib.util.spec_from_file_location(f"alone_{name}", WHOLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with seeded(0, Purpose.DATA):
        spec.loader.exec_module(module)
    parts = {part: path.partition(":")[2] for part, path in program_parts(f"{name}.py").items()}
    with restored():
        reseed(SEED, Purpose.DATA)
        data = [getattr(module, each) for each in parts["dataset"].split(",")]
        train_loader, test_loader = data if len(data) == 2 else data[0]()
        if not hasattr(train_loader, "batch_size"):
            train_loader, test_loader = DataLoader(train_loader, 8, shuffle=True), DataLoader(test_loader, 500)
        reseed(SEED, Purpose.INITIAL_WEIGHTS)
        net = getattr(module, parts["model"])
        net = net if isinstance(net, torch.nn.Module) else _called(module, parts["model"], {"num_classes": 4})
        reseed(SEED, Purpose.FIT, 1, 0)
        given = {
            "net": net,
            "loader": train_loader,
            "dataset": getattr(train_loader, "dataset", None),
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
        returned = _called(module, parts["test"], {**given, "loader": test_loader, "dataset": test_loader.dataset})
    if isinstance(returned, float):
        returned = {NAMES[name]: returned}
    if isinstance(returned, tuple):
        loss, rest = returned if name != "fitting_model" else reversed(returned)
        returned = {"loss": loss, **(rest if isinstance(rest, dict) else {NAMES[name]: rest})}
    return weights, {key: float(value) for key, value in returned.items()}


def averaged(array: np.ndarray[Any, Any], num_examples: int) -> np.ndarray[Any, Any]:
    if array.dtype == np.float32:
        return array * np.float32(num_examples) / np.float32(num_examples)
    return array


def _called(module: ModuleType, name: str, given: dict[str, Any]) -> Any:
    owner, _, method = name.rpartition(".")
    if owner and not issubclass(getattr(module, owner), torch.nn.Module):
        function = getattr(_called(module, owner, given), method)
    else:
        function = attrgetter(name)(module)
    parameters = inspect.signature(function).parameters
    has_own = [key for key, parameter in parameters.items() if parameter.default is None]
    roles = {key: ROLES.get(key.lower()) for key in parameters if key not in has_own}
    return function(**{key: given[role] for key, role in roles.items() if role in given})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "imagenet" else []) for name in NAMES]
)
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
    sys.modules.pop(name, None)


def test_options_that_a_file_parses_when_it_is_imported_are_said_to_stay(sim: Sim, tmp_path: Path) -> None:
    few = ["--num-clients", "4", "--num-rounds", "1", "--engine", "inline", "--results-dir", str(tmp_path)]
    done = sim("run", "--program", "global_style.py", "--args", "step-size=0.5", *few, cwd=WHOLE)
    assert done.returncode == 0, done.stderr
    assert (
        "note: --args step-size=0.5: global_style parses its options when it is imported, and where it uses them "
        "itself step-size stays 0.05\n"
    ) in done.stderr


SETTINGS: dict[str, Any] = {"num_clients": 20, "clients_per_round": 2, "num_rounds": 2}


@pytest.mark.ray
@pytest.mark.parametrize("name", ["imagenet", "global_style", "trainer_class"])
def test_a_program_gives_the_same_bits_in_every_engine(name: str, tmp_path: Path) -> None:
    """Random transforms and processes of its own that load items; scripts/determinism.sh takes every program."""
    some = {**SETTINGS, "num_clients": 2}  # of 20, each would have fewer examples than its loader has in a batch
    runs = [run(name, tmp_path, engine=engine, name=engine, **some) for engine in ("inline", "ray")]
    assert "has left the weights as they were" not in runs[0].log_path.read_text()
    assert runs[0].model_path.read_bytes() == runs[1].model_path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentences", "imbalanced", "global_style", "trainer_class"])
def test_a_resumed_program_is_one_that_was_never_interrupted(name: str, tmp_path: Path) -> None:
    """A collate_fn, a sampler, and variables of the module."""
    whole = run(name, tmp_path, engine="inline", name="whole", **SETTINGS)
    part = run(name, tmp_path, engine="inline", name="part", **{**SETTINGS, "num_rounds": 1})
    resume(part, num_rounds=2)
    assert part.model_path.read_bytes() == whole.model_path.read_bytes()


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROGRAMS)


def odd_config(dataset: str, **settings: Any) -> RunConfig:
    own = {"model": "odd_data:Net", "num_clients": 3, "partitioner": "iid", "engine": "inline", **settings}
    return RunConfig(dataset=f"odd_data:{dataset}", **own)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iterator", "train: is a _SingleProcessDataLoaderIter without length or positions"),
        ("iterable", "train: is a Stream without length or positions"),
        ("empty", "train: has no examples"),
        ("empty_test", "test: has no examples"),
        ("other_structure", "train: examples 0 … 1 cannot be made a batch"),
        ("other_shapes", "train: examples 0 … 1 cannot be made a batch: RuntimeError: stack expects each tensor"),
        ("other_shapes_late", "train: examples 0 … 80 cannot be made a batch: RuntimeError: stack expects each"),
        ("nan", "train: example 5 has NaN"),
        ("nan_item", "train: example 3 has NaN"),
        ("collate_raises", "train: examples 0 … 11 cannot be made a batch: RuntimeError: no such column"),
        (
            "labels_outside",
            "^--dataset odd_data:labels_outside: labels are 2 … 4, but --model odd_data:Net has 3 outputs, for 0 … 2",
        ),
        ("one_only", r"returned tuple of length 1; \(train, test\) of Datasets, DataLoaders or arrays is expected"),
        (
            "unlabelled",
            "^--dataset odd_data:unlabelled: a batch of type Tensor says no target; use your own train and test",
        ),
        ("own_loader", "train: Scaled is a DataLoader with an __iter__ of its own, and clients get loaders over their"),
        ("float64_arrays", "--model odd_data:Net: does not take inputs of \\(2, 2\\): RuntimeError: mat1 and mat2"),
    ],
)
def test_data_that_cannot_work_are_one_line_before_anything_is_written(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        simulate(odd_config(name, results_dir=str(tmp_path / "results")))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("dataset", [{"dataset": "odd_data:subset", "model": "odd_data:Net"}, {"dataset": "digits"}])
def test_what_train_sets_in_a_data_set_that_was_drawn_before_is_not_lost_silently(dataset: dict[str, str]) -> None:
    config = RunConfig(train="odd_data:train_that_sets", num_clients=3, partitioner="iid", engine="inline", **dataset)
    with pytest.raises(
        UsageError, match=r"setting augment of loader.dataset has no effect, .*; --data-form items gives"
    ):
        simulate(config)


@pytest.mark.usefixtures("odd")
def test_the_labels_are_those_of_the_items_and_not_those_of_a_parent_class() -> None:
    labels = load_dataset(odd_config("parity")).train.labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 0] * 4


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("name", "form", "sizes"),
    [
        ("subset", Columns, (3, 12)),
        ("concatenated", Columns, (13, 12)),
        ("dict_of_arrays", Columns, (12, 12)),
        ("list_of_arrays", Columns, (12, 12)),
        ("list_of_items", Columns, (12, 12)),
        ("samplers", Columns, (9, 3)),  # what a sampler never draws is no part of the split
        ("batches_of_the_test", Columns, (12, 3)),
        ("dataset_dict", Columns, (12, 12)),
        ("random_items", Items, (12, 12)),
        ("own_batches", Items, (12, 12)),
    ],
)
def test_forms_of_data(name: str, form: type, sizes: tuple[int, int]) -> None:
    found = load_dataset(odd_config(name))
    assert found.test is not None
    if name.endswith("_of_arrays"):  # the same arrays in another form are another entry of the cache
        assert isinstance(found.train, Columns)
        assert type(found.train.batch).__name__ == name.removesuffix("_of_arrays")
    assert type(found.train) is form
    assert (len(found.train), len(found.test)) == sizes
    assert type(found.test) is Columns  # nothing random in it
    assert found.classes == ("0", "1", "2")
    assert found.train.labels is not None
    expected = [*([0, 1, 2] * 4), *([0] * (sizes[0] - 12))][: sizes[0]]
    if name == "subset":
        expected = [0, 1, 1]
    assert found.train.labels.tolist() == expected


@pytest.mark.usefixtures("odd")
def test_columns_and_items_give_the_same_bits(tmp_path: Path) -> None:
    runs = [
        simulate(
            odd_config(
                "list_of_arrays", num_rounds=2, data_form=form, results_dir=str(tmp_path), name=form, fraction_fit=1.0
            )
        )
        for form in ("columns", "items")
    ]
    assert runs[0].model_path.read_bytes() == runs[1].model_path.read_bytes()


@pytest.mark.usefixtures("odd")
def test_a_random_item_is_drawn_anew_in_each_epoch_and_follows_the_seed(tmp_path: Path) -> None:
    runs = [
        simulate(odd_config("random_items", num_rounds=1, results_dir=str(tmp_path), name=str(k), seed=k // 2))
        for k in range(4)
    ]
    content = [done.model_path.read_bytes() for done in runs]
    assert content[0] == content[1]
    assert content[2] == content[3]
    assert content[0] != content[2]


@pytest.mark.usefixtures("odd")
def test_a_program_that_partitions_itself(tmp_path: Path) -> None:
    config = odd_config("of_client", num_rounds=2, fraction_fit=1.0, fraction_evaluate=1.0, results_dir=str(tmp_path))
    done = simulate(config)
    clients = done.clients()
    assert clients["num_examples"].tolist() == [4] * 12  # three clients, two phases, two rounds
    rounds = done.rounds()
    assert rounds["test_loss"].isna().all()
    assert rounds["eval_accuracy"].iloc[-1] == pytest.approx(clients["accuracy"].iloc[-3:].mean())
    assert "gives the data of each client, so that there is no central test" in done.log_path.read_text()


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("target", ["--target-accuracy 0.9", "--target loss<=0.1"])
def test_a_target_without_a_central_test_is_refused(command: Sim, target: str, tmp_path: Path) -> None:
    words = "--dataset", "odd_data:of_client", "--model", "odd_data:Net", "--num-clients", "3", "--engine", "inline"
    refused = command("run", *words, *target.split(), cwd=PROGRAMS)
    assert refused.returncode == 2
    asked = target.replace("--target ", "--target-metric ")
    assert refused.stderr == (
        f"sim: {asked}: --dataset odd_data:of_client gives the data of each client, so that there is no central test "
        "that could reach it\n"
    )
    assert not (PROGRAMS / "results").exists()


@pytest.mark.usefixtures("odd")
def test_the_evaluation_of_a_run_without_a_central_test_shows_the_accuracy(command: Sim, tmp_path: Path) -> None:
    config = odd_config("of_client", num_rounds=1, fraction_fit=1.0, results_dir=str(tmp_path), test_every=2)
    done = simulate(config)
    assert "note: --test-every 2 has no effect, because there is no central test" in done.log_path.read_text()
    shown = command("evaluate", str(done.path), cwd=PROGRAMS)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[0] == "accuracy"
    frame = evaluate(str(done.path))  # by its path
    assert frame["global_accuracy"].notna().all()
    with pytest.raises(NothingLeftError, match="its only round is done"):
        resume(done.path)


@pytest.mark.usefixtures("odd")
def test_a_program_that_partitions_itself_is_trained_centrally_as_one_client(tmp_path: Path) -> None:
    def trained(dataset: str) -> Run:
        settings: dict[str, Any] = {"dataset": f"odd_data:{dataset}", "name": dataset, "results_dir": str(tmp_path)}
        return train_centralized(CentralizedConfig(**settings, model="odd_data:Net", epochs=1))

    own, whole = trained("of_client"), trained("of_all")
    assert sha256(own.model_path) == sha256(whole.model_path)
    assert "it is called for client 0 of 1, which is to be all data" in own.log_path.read_text()


@pytest.mark.usefixtures("odd")
def test_a_program_that_partitions_itself_and_tests_itself(tmp_path: Path) -> None:
    """Its test is whole, but there is no central data set for it."""
    settings: dict[str, Any] = {"num_rounds": 1, "fraction_fit": 1.0, "fraction_evaluate": 1.0}
    config = odd_config("of_client", results_dir=str(tmp_path), **settings)
    done = simulate(config, test=lambda net, loader: (0.5, len(loader) / 4))
    rounds = done.rounds()
    assert rounds["test_loss"].isna().all()
    assert (rounds["eval_loss"].iloc[-1], rounds["eval_accuracy"].iloc[-1]) == (0.5, 0.25)


@pytest.mark.usefixtures("odd")
def test_parameters_whose_shape_the_data_decide(tmp_path: Path) -> None:
    done = simulate(odd_config("subset", model="odd_data:Lazy", num_rounds=1, results_dir=str(tmp_path)))
    with safe_open(done.model_path, "numpy") as file:
        assert file.get_tensor("fc.weight").shape == (3, 2)


@pytest.mark.nightly
@pytest.mark.slow
def test_objects_of_a_script(tmp_path: Path) -> None:
    """Classes, functions and methods of ``__main__`` reach the actors by value: the same bits as without Ray."""
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "same"


SCRIPT = '''
import linecache
import torch
from torch import nn
from torch.utils.data import DataLoader
from sim import RunConfig, simulate

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 3)
    def forward(self, x):
        return self.fc(x)

def load_data():
    x = torch.arange(24, dtype=torch.float32).reshape(12, 2)
    return (x, torch.arange(12) % 3), (x, torch.arange(12) % 3)

def train(model, loader, epochs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

class Trainer:
    def __init__(self, model, loader):
        self.model, self.loader = model, loader
    def fit(self, epochs):
        train(self.model, self.loader, epochs)

# As in a notebook, whose cells only its own process can read.
CELL = """
def test(model, loader):
    loss = sum(nn.functional.cross_entropy(model(x), y).item() for x, y in loader)
    acc = 0.25
    return acc, loss

def train_on_data(model, dataset, epochs):
    train(model, DataLoader(dataset, 4), epochs)
"""
linecache.cache["<cell>"] = len(CELL), None, CELL.splitlines(True), "<cell>"
exec(compile(CELL, "<cell>", "exec"))

if __name__ == "__main__":
    from flwr.server.strategy import FedAvg
    content = []
    every = ("inline", train), ("ray", train), ("ray", Trainer.fit), ("inline", train_on_data), ("ray", train_on_data)
    for engine, training in every:
        name = f"{engine}-{training.__name__}"
        config = RunConfig(num_clients=4, num_rounds=1, engine=engine, partitioner="iid", name=name)
        run = simulate(config, model=Tiny, train=training, test=test, load_data=load_data,
                       strategy=FedAvg(fraction_fit=1.0, min_fit_clients=4, min_available_clients=4),
                       ray_init_args={"num_cpus": 1})
        content.append((run.model_path.read_bytes(), run.rounds().test_loss.tolist()))
        assert run.rounds().test_accuracy.tolist() == [0.25, 0.25]
    same = content[0] == content[1] == content[2] and content[3] == content[4]
    print("same" if same else "different")
'''


@pytest.mark.usefixtures("odd")
def test_a_config_takes_objects(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 3)
    config = odd_config("subset", model=lambda: net, num_rounds=1, results_dir=str(tmp_path))
    assert config.model == "test_programs:test_a_config_takes_objects.lambda"
    done = simulate(config)
    with safe_open(done.model_path, "numpy") as file:
        assert file.get_tensor("weight").shape == (3, 2)


@pytest.mark.usefixtures("odd")
def test_defaults_of_the_program_stay(tmp_path: Path) -> None:
    done = simulate(
        odd_config("own_defaults", train="odd_data:train_with_defaults", num_rounds=1, results_dir=str(tmp_path))
    )
    metrics = done.metrics()
    found = metrics[(metrics["phase"] == "fit") & metrics["client_id"].notna()].set_index("name")["value"]
    assert (found["max_steps"], found["precision"], found["lr"]) == (7, 16, 0.5)


@pytest.mark.usefixtures("odd")
def test_a_test_that_only_prints_is_replaced_by_the_built_in_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_rounds": 1, "results_dir": str(tmp_path)}
    printed = simulate(odd_config("subset", test="odd_data:test_that_prints", name="printed", **settings))
    built_in = simulate(odd_config("subset", name="built-in", **settings))
    columns = ["test_loss", "test_accuracy"]
    pd.testing.assert_frame_equal(printed.rounds()[columns], built_in.rounds()[columns])


@pytest.mark.usefixtures("odd")
def test_a_sampler_brings_nothing_from_one_client_to_the_next() -> None:
    found = load_dataset(odd_config("own_sampler")).train
    assert isinstance(found, Items)
    passes = []
    for _ in range(2):
        with restored():
            reseed(SEED, Purpose.FIT, 1, 0)
            loader = ExampleLoader(found, np.arange(12), 2, training=True)
            passes.append([labels.tolist() for _, labels in loader])
    assert passes[0] == passes[1]
    assert sum(map(len, passes[0])) == 12


def test_a_loader_of_the_programs_own_over_the_examples_of_a_client() -> None:
    columns = Columns([np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4)])
    loader = ExampleLoader(ResidentColumns(columns, torch.device("cpu")), np.array([1, 3]), 2, training=False)
    for each in (loader, DataLoader(loader.dataset, batch_size=2)):
        ((x, y),) = each
        assert (x.tolist(), y.tolist()) == ([[2, 3], [6, 7]], [1, 3])
