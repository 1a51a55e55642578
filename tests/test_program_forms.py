"""Programs in the forms that people write: data and models in variables, files written in train, a global optimizer."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from program_text import DATA, extended, run
from safetensors.torch import load_file

from sim.client.own_files import noted
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, PluginError
from sim.program_file import Parameters, _parsed_once, read
from sim.run_folder.folder import Run
from tests.conftest import PROGRAMS, Sim, sha256

EARLY_STOPPING = """
def train(net, trainloader, epochs):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    best = float("inf")
    for _ in range(epochs):
        for x, y in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            loss.backward()
            optimizer.step()
        if loss.item() < best:
            best = loss.item()
            torch.save(net.state_dict(), "checkpoint.pt")
    net.load_state_dict(torch.load("checkpoint.pt"))
    return best
"""

OTHER_OPTIMIZER = """
optimizer = torch.optim.SGD(Deep(8).parameters(), lr=0.5)

def train_loop(net, trainloader):
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

def test_loop(net, testloader):
    with torch.no_grad():
        return sum(criterion(net(x), y).item() / 9 for x, y in testloader)
"""


def test_what_a_file_has(program: str) -> None:
    module = program.removesuffix(".py")
    found = read(Path(extended(program, EARLY_STOPPING)).resolve())
    assert found is not None
    assert found.parts() == {"dataset": "trainloader,testloader", "model": "net", "train": "train"}
    config = RunConfig(program=program)
    assert (config.dataset, config.model) == (f"{module}:trainloader,testloader", f"{module}:net")
    Path("circle.py").write_text("from circle_of import *\nmodel = 1\ndataloaders = {}")
    Path("circle_of.py").write_text("from circle import *\ndef fit(): ...")
    circle = read(Path("circle.py").resolve())
    assert circle is not None
    assert circle.parts() == {"dataset": "dataloaders", "model": "model", "train": "fit"}


@pytest.mark.ray
def test_clients_read_the_files_that_they_have_written(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what is drawn while the file is imported, here the split of the data, is the same in each process."""
    Path("checkpoint.pt").write_bytes(b"of the user")
    extended(program, EARLY_STOPPING)
    runs = [run(program, data_form="items"), run(program, "ray", num_cpus=1, data_form="items")]
    assert len({sha256(each.model_path) for each in runs}) == 1
    assert runs[1].clients().actor.nunique() == 2
    assert "note: train or test writes checkpoint.pt into the current folder; each" in capsys.readouterr().err


@pytest.mark.ray
def test_sets_of_texts_and_generators_without_a_seed_are_the_same_in_each_process_and_run(
    sim: Sim, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    words = ("run", "--program", "vocabulary.py", "--num-clients", "4", "--clients-per-round", "4", "--num-rounds", "2")
    engines = {"one": ("--engine", "inline"), "two": ("--engine", "inline"), "ray": ("--num-cpus", "1")}
    for name, engine in engines.items():
        done = sim(*words, *engine, "--results-dir", str(tmp_path), "--name", name, cwd=PROGRAMS, env=environment)
        assert done.returncode == 0, done.stderr
    runs = [Run(tmp_path / name) for name in engines]
    assert len({sha256(each.model_path) for each in runs}) == 1
    assert runs[2].clients().actor.nunique() == 2
    seeds = [json.loads(each.environment_path.read_text(encoding="utf-8"))["python_hash_seed"] for each in runs]
    assert seeds == ["0"] * 3


def test_an_optimizer_of_another_net_and_a_loss_for_an_accuracy_are_said(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = run(extended(program, OTHER_OPTIMIZER))
    printed = capsys.readouterr().err
    assert "note: round 1 has left the weights as they were; train must change the model that it is given" in printed
    assert "for two examples of the classes that the model predicts, where it should be 1; a loss is" in printed
    assert finished.rounds().test_loss.nunique() <= 1
    assert set(load_file(finished.model_path)) == {f"layers.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_files_that_are_written_are_those_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "models" / "old").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    with noted(tmp_path, tmp_path / "results") as names:
        for name in ("best.pt", "models/last.pt", "models/old/new.pt", "results/table.csv"):
            (tmp_path / name).write_text("written")
    assert sorted(names) == ["best.pt", "models/last.pt", "models/old/new.pt"]


WRITING = """
FILES = [Path("best.pt"), Path(__file__).parent / "shared.txt", Path("results_of_mine/new.csv")]

def train(net, trainloader, epochs):
    for file in FILES:
        file.parent.mkdir(exist_ok=True)
        file.write_text("of train")
    for x, y in trainloader:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        criterion(net(x), y).backward()
        optimizer.step()
"""


def test_the_dry_run_leaves_files_as_they_are_and_says_which_all_clients_share(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extended(program, "from pathlib import Path\n" + WRITING)
    Path("best.pt").write_text("a week of work")
    run(program)
    assert Path("best.pt").read_text() == "a week of work"
    assert not Path("results_of_mine").exists()
    notes = [line for line in capsys.readouterr().err.splitlines() if "train or test writes" in line]
    assert notes == [
        "sim: note: shared.txt changed in the current folder during the dry run; what train or test writes there by an "
        "absolute path is shared by all clients, and with a relative path each client has its own",
        "sim: note: train or test writes best.pt, results_of_mine/new.csv into the current folder; each client and "
        "each test does so in a folder of its own, which is removed after it",
    ]


CLIENT_THAT_WRITES = """
from pathlib import Path
from sim import CifarClient

class Client(CifarClient):
    def fit(self, parameters, config):
        file = Path("calls.txt")
        file.write_text((file.read_text() if file.exists() else "") + "x")
        return super().fit(parameters, config)
"""


def test_a_client_class_writes_its_files_in_rounds_alone(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = extended(program, CLIENT_THAT_WRITES).removesuffix(".py")
    run(program, client=f"{module}:Client")
    assert Path("calls.txt").read_text() == "x" * 12  # six clients, two rounds
    note = f"sim: note: --client {module}:Client writes calls.txt into the current folder, which all clients share; "
    assert any(line.startswith(note) for line in capsys.readouterr().err.splitlines())


def test_the_log_of_another_process_is_not_what_train_writes(tmp_path: Path) -> None:
    with noted(tmp_path, tmp_path / "results") as names:
        (tmp_path / "own.txt").write_text("mine")
        with (tmp_path / "server.log").open("w") as log:
            other = subprocess.Popen(["sleep", "60"], stdout=log)
    other.kill()
    other.wait()
    assert names == ["own.txt"]


def test_a_program_without_data_is_told_what_it_was_tried_on(program: str) -> None:
    text = "import torch\ndef train(net, trainloader):\n    for x, y in trainloader:\n        net(x.reshape(-1, 7))\n"
    Path("no_data.py").write_text(text)
    message = (
        r"^--train no_data:train: raised RuntimeError: .* \(with --dataset digits, because no_data.py has no "
        r"load_data, trainloader or the like; images of digits have 32×32 pixels, --image-size changes that\)$"
    )
    with pytest.raises(PluginError, match=message):
        run("no_data.py")


def test_only_the_files_that_give_a_program_its_names_are_read(tmp_path: Path) -> None:
    files = {
        "main.py": "from big import fit as train, Trainer",
        "big/__init__.py": "from big.loops import fit\nfrom big.other import rest\nfrom .classes import *",
        "big/loops.py": "from big import rest\ndef fit(net, loader, epochs=1): return 1, 2",
        "big/other.py": "from big.more import rest",
        "big/classes.py": "from big import fit\nclass Trainer:\n  def __init__(self, net): ...\n  def train(self): ...",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = _parsed_once.cache_info().misses
    found = read(tmp_path / "main.py")
    assert found is not None
    assert found.functions == {"train": Parameters(("net", "loader"), ("epochs",))}
    assert found.pairs == {"train"}
    assert list(found.methods) == ["Trainer.train"]
    assert _parsed_once.cache_info().misses - before == 4, "all but big/other.py"


_TWO_MODELS = """
from torch import nn
from datasets import load_dataset
from timm import create_model
import evaluate

class FocalLoss(nn.Module): ...
class NTXent(nn.Module): ...
class Block(nn.Sequential): ...
class TinyCnn(nn.Module):
    def __init__(self):
        self.block = Block()
class Data(LightningDataModule): ...
def prepare_data(): ...
def eval_model(model, dl):
    criterion = NTXent()
"""


def test_what_a_file_defines_comes_before_what_it_imports_from_libraries(program: str) -> None:
    Path("two_models.py").write_text(_TWO_MODELS)
    found = read(Path("two_models.py").resolve())
    assert found is not None
    assert found.parts() == {"dataset": "prepare_data", "model": "TinyCnn", "test": "eval_model"}
    Path("one_model.py").write_text("from torch import nn\nclass Unet(nn.Module): ...\nmodel_with_loss = Unet()")
    alone = read(Path("one_model.py").resolve())
    assert alone is not None
    assert alone.parts()["model"] == "Unet", "the only candidate, whatever its variable is called"
    Path("of_a_server.py").write_text(
        "from two_models import *\nfrom two_models import Data as test\ndef evaluate(): ..."
    )
    imported = read(Path("of_a_server.py").resolve())
    assert imported is not None
    assert imported.parts()["test"] == "test", "the usual name, also where it is imported from another file"
    Path("three_models.py").write_text(f"{_TWO_MODELS}\nclass Other(nn.Module): ...")
    message = "^--program three_models.py: has the models TinyCnn, Other; say which one, such as --model three_models:T"
    with pytest.raises(ConfigError, match=message):
        RunConfig(program="three_models.py")
    assert RunConfig(program="three_models.py", model="three_models:Other").model == "three_models:Other"


TRAINING_AT_THE_TOP = """
def step(x, y):
    criterion(net(x), y).backward()

def main(epochs=1):
    for x, y in trainloader:
        step(x, y)

class Trainer:
    def fit(self):
        main()
"""


@pytest.mark.parametrize(
    ("call", "is_refused"),
    [
        ("main()", True),
        ("main(epochs=3)", True),
        ("for _ in range(2):\n    main()", True),
        ("def run():\n    Trainer().fit()\nrun()", True),
        ("step(*next(iter(trainloader)))", False),  # it may make what the file defines
        ("if __name__ == '__main__':\n    main()", False),
    ],
)
def test_a_file_that_trains_when_it_is_imported_is_refused(program: str, call: str, is_refused: bool) -> None:
    extended(program, TRAINING_AT_THE_TOP + call)
    found = read(Path(program).resolve())
    assert found is not None
    assert (found.training_line is not None) == is_refused
    if is_refused:
        line = Path(program).read_text().split("\n").index(call.rpartition("\n")[2]) + 1
        message = rf"{program} trains when it is imported \(line {line}\), in every process; put that under if __name__"
        with pytest.raises(PluginError, match=message):
            run(program)


def test_a_flower_program_is_told_its_flag(program: str) -> None:
    Path("of_flower.py").write_text("class Net: ...\ndef client_fn(context): ...")
    with pytest.raises(ConfigError, match=r"is a Flower program; --client-fn of_flower:client_fn runs it$"):
        RunConfig(program="of_flower.py")


TRAIN_WITH_OPTIONS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--step-size", type=float, default=0.5)

def train(args, net, trainloader):
    optimizer = torch.optim.SGD(net.parameters(), lr=args.step_size)
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
"""


def test_what_was_found_and_what_nothing_reads_is_said(program: str, sim: Sim) -> None:
    """In a federation and in one place; a script of the user's may call an argument by a hyphen."""
    module = extended(program, TRAIN_WITH_OPTIONS).removesuffix(".py")
    found = f"--program {program}: dataset {module}:trainloader,testloader, model {module}:net, train {module}:train"
    given = ["--args", "step-size=0.25", "--args", "stepsize=1"]
    for words in (["run", "--num-clients", "6", "--engine", "inline", "--num-rounds", "1"], ["centralized"]):
        done = sim(*words, "--program", program, *given)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "note: --" in line][:2] == [
            f"sim: note: {found}; built in: test",
            "sim: note: --args stepsize=1: no file of your program has the name stepsize",
        ]


TRAINING_CLASSES = """
class Lightning(Deep):
    def training_step(self, batch, batch_idx):
        return criterion(self(batch[0]), batch[1])

class Trainer:
    def __init__(self, model, train_loader, {parameter}):
        self.model, self.loader = model, train_loader

    def fit(self, epochs):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        for _ in range(epochs):
            for x, y in self.loader:
                optimizer.zero_grad()
                criterion(self.model(x), y).backward()
                optimizer.step()
"""


@pytest.mark.parametrize(
    ("parameter", "unused"),
    [
        ("logger", "a client has nothing for its parameter logger"),
        ("logger=None", None),
        ("*, logger", "a client has nothing for its parameter logger"),
        ("*, logger=None", None),
    ],
)
def test_a_class_trains_if_a_client_has_all_that_it_needs(program: str, parameter: str, unused: str | None) -> None:
    module = extended(program, TRAINING_CLASSES.format(parameter=parameter)).removesuffix(".py")
    config = RunConfig(program=program)
    assert config.train == (None if unused else f"{module}:Trainer.fit")
    others = [note for note in config.program_notes if "is not used" in note]
    expected = [
        "Lightning.training_step is not used, because a client has nothing for its parameter batch",
        f"Trainer.fit is not used, because {unused}",
    ]
    assert others == ([f"--program {program}: {note}" for note in expected] if unused else [])


METHODS_WITHOUT_AN_OBJECT = """
class Learning:
    @staticmethod
    def train(net, loader):
        with torch.no_grad():
            net.layers[0].bias += 1

    @classmethod
    def test(cls, net, loader):
        return {"loss": 1.0, "name": len(cls.__name__)}
"""


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_static_methods_and_those_of_a_class_need_no_object(program: str, engine: str) -> None:
    module = extended(program, METHODS_WITHOUT_AN_OBJECT).removesuffix(".py")
    made = run(program, engine=engine)
    config = RunConfig.load(made.config_path)
    assert (config.train, config.test) == (f"{module}:Learning.train", f"{module}:Learning.test")
    tested = made.metrics()
    assert set(tested[tested["name"] == "name"]["value"]) == {8.0}


def test_of_several_classes_that_can_train_none_is_taken(program: str) -> None:
    two = TRAINING_CLASSES.format(parameter="logger=None")
    extended(program, two + two.replace("Trainer", "Learner").replace("Lightning", "Other"))
    config = RunConfig(program=program)
    assert config.train is None
    unused = [note.rpartition("because ")[2] for note in config.program_notes if ".fit is not used" in note]
    assert unused == ["there are several that train; --train says which one"] * 2


def test_what_a_class_needs_and_no_client_has_is_named(program: str) -> None:
    module = extended(program, TRAINING_CLASSES.format(parameter="logger")).removesuffix(".py")
    with pytest.raises(PluginError, match=rf"^--train {module}:Trainer.fit: its parameter logger is none that can be"):
        run(program, train=f"{module}:Trainer.fit")


OWN_LOADERS = """
class Trainer:
    def __init__(self, model, train_dataset, val_dataset):
        self.model, self.datasets = model, (train_dataset, val_dataset)

    def loaders(self):
        return [DataLoader(data, 4) for data in self.datasets]

    def fit(self, epochs):
        train_loader, val_loader = self.loaders()
        print("examples", len(train_loader.dataset), len(val_loader.dataset))
        x, y = next(iter(train_loader))
        criterion(self.model(x), y).backward()
        torch.optim.SGD(self.model.parameters(), lr=0.1).step()
"""


def test_a_class_with_loaders_of_its_own_gets_data_sets(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = extended(program, OWN_LOADERS).removesuffix(".py")
    run(program, eval_share=0.5, partitioner="iid")
    assert set(capfd.readouterr().out.split("\n")) >= {"examples 2 2", "examples 4 4"}  # of the dry run, and of clients
    for flag, setting in {"max-local-steps": {"max_local_steps": 1}, "feature-noise": {"feature_noise": 0.5}}.items():
        words = f"^--train {module}:Trainer.fit: makes its own loader, so that --{flag} would be without effect$"
        with pytest.raises(PluginError, match=words):
            run(program, partitioner="iid", **setting)  # type: ignore[arg-type]


OTHER_NAMES = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def get_mnist_transforms():
    return None, None

def load_tiny_mnist(data_dir="data"):
    x = torch.linspace(-1, 1, 240).reshape(60, 4)
    return TensorDataset(x[:48], (x.sum(1) > 0)[:48].long()), TensorDataset(x[48:], (x.sum(1) > 0)[48:].long())

class Only(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 2))

def evaluate_accuracy(net, data_iter):
    return 0.25

def get_hyperparameters():
    return 0.01, 0.9

def predict_test(model, loader):
    return [0, 1]

def plot_training(model, loader): ...

def count_correct_train(model, loader): ...

def accuracy(outputs, y):
    return (outputs.argmax(1) == y).float().mean()

def trainClassifier(net, train_iter, num_epochs):
    for x, y in train_iter:
        nn.functional.cross_entropy(net(x), y).backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
"""


@pytest.mark.usefixtures("program")
def test_the_only_functions_that_can_be_meant_are_used() -> None:
    Path("other_names.py").write_text(OTHER_NAMES)
    config = RunConfig(program="other_names.py")
    assert (config.dataset, config.model) == ("other_names:load_tiny_mnist", "other_names:Only")
    assert (config.train, config.test) == ("other_names:trainClassifier", "other_names:evaluate_accuracy")
    assert run("other_names.py").rounds().test_accuracy.tolist() == [0.25] * 3


@pytest.mark.usefixtures("program")
def test_of_several_functions_that_can_be_meant_none_is_taken() -> None:
    again = "def train_all(net, loader): ...\ndef train_student(net, teacher, loader): ...\n"
    Path("more_names.py").write_text(OTHER_NAMES + again)
    config = RunConfig(program="more_names.py")
    assert config.train is None
    unused = [note.removeprefix("--program more_names.py: ") for note in config.program_notes[1:]]
    several = "is not used, because there are several that train; --train says which one"
    assert unused == [
        f"trainClassifier {several}",
        f"train_all {several}",
        "train_student is not used, because a client has nothing for its parameter teacher",
    ]


BASE_AND_OWN = """
from trainer_of_another_file import BaseTrainer

class Smooth(BaseTrainer):
    def loss(self, outputs, y):
        return nn.functional.cross_entropy(outputs, y, label_smoothing=0.5)
"""
BASE = """
import torch
from torch import nn

class BaseTrainer:
    def __init__(self, model, train_data, epochs=3, **options):
        self.model, self.data, self.epochs = model, train_data, epochs
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs, y):
        raise NotImplementedError

    def train(self):
        print("an epoch of", type(self).__name__)
        for x, y in self.data:
            self.optimizer.zero_grad()
            self.loss(self.model(x), y).backward()
            self.optimizer.step()

    def run(self):
        for _ in range(self.epochs):
            self.train()
"""


def test_an_inherited_method_makes_an_object_of_the_class_that_is_named(
    program: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The method trains one epoch, although its class knows their number, and iterates over what it calls data."""
    Path("trainer_of_another_file.py").write_text(BASE)
    module = extended(program, BASE_AND_OWN).removesuffix(".py")
    done = run(program, train=f"{module}:Smooth.train")
    printed = capfd.readouterr().out
    assert printed.count("an epoch of Smooth") == 1 + 2 * 6 * 2  # the dry run, and rounds, clients and epochs
    assert "BaseTrainer" not in printed
    assert done.clients().num_examples.max() > 4


def test_classes_of_other_files_are_found(program: str) -> None:
    Path("trainer_in_its_file.py").write_text(
        BASE.replace("raise NotImplementedError", "return nn.CrossEntropyLoss()(outputs, y)")
    )
    module = extended(program, "\nfrom trainer_in_its_file import BaseTrainer as Trainer\n").removesuffix(".py")
    assert RunConfig(program=program).train == f"{module}:Trainer.train"
    assert len(run(program).rounds()) == 3


def test_a_loader_is_one_where_a_function_only_mentions_its_kind(
    program: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = """
def train(model, data, epochs):
    assert isinstance(data, DataLoader)
    for x, y in data:
        criterion(model(x), y).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
"""
    assert len(run(extended(program, text)).rounds()) == 3


HELPED = """
def loader_of(dataset):
    return DataLoader(dataset, 4)

def train(model, dataset, epochs):
    print("examples", len(dataset))
    for x, y in loader_of(dataset):
        criterion(model(x), y).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()

class Tested:
    def __init__(self, model, testset, batch_size=5, epochs=7):
        self.model, self.testset, self.settings = model, testset, (batch_size, epochs)

    def evaluate(self):
        print("settings", self.settings, len(loader_of(self.testset).dataset))
        return 0.5
"""


def test_a_data_set_is_given_where_a_helper_makes_the_loader_and_a_test_keeps_its_defaults(
    program: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module = extended(program, HELPED).removesuffix(".py")
    assert RunConfig(program=program).test == f"{module}:Tested.evaluate"
    run(program, partitioner="iid")
    printed = set(capfd.readouterr().out.split("\n"))
    assert {"examples 8", "settings (5, 7) 12"} <= printed


@pytest.mark.usefixtures("program")
def test_variables_with_data_are_no_functions() -> None:
    Path("data_by_name.py").write_text(f"{DATA}\nnet = nn.Linear(4, 2)\ntrain, test = trainset, testset\n")
    config = RunConfig(program="data_by_name.py")
    assert (config.dataset, config.train, config.test) == ("data_by_name:train,test", None, None)
