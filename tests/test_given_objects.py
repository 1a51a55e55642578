"""The arguments of the Python interface: what is refused before a run folder is made, and what is taken."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy
import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.common import FitIns, ndarrays_to_parameters
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp
from program_text import extended

from sim import RunConfig, changed_modules, resume, simulate
from sim.errors import ConfigError, PluginError

SMALL: dict[str, Any] = {"num_clients": 2, "num_rounds": 1, "local_epochs": 1, "engine": "inline"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 3}, "train: must be a function, or the import path of one, not int"),
        ({"test": []}, "test: must be a function, or the import path of one, not list"),
        ({"load_data": (1, 2)}, "load_data: must be a function, or the import path of one, not tuple; lambda: data"),
        ({"loss": torch.nn.MSELoss}, "loss: the class MSELoss must be an object of it, e.g. MSELoss()"),
        ({"strategy": 3}, "strategy: must be a strategy of Flower's, or what makes one, not int"),
        (
            {"strategy": FedAvg(min_available_clients=3)},
            "strategy: its min_available_clients is 3, but num_clients is 2",
        ),
        (
            {"strategy": FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(3)]))},
            "strategy: its initial_parameters have the shapes [(3,)], the model has [(6, 1, 5, 5), ",
        ),
        ({"on_record": lambda: 0}, "on_record: must take one argument, the RoundRecord of a round"),
        ({"loss": 3}, "loss: must be a function, or the import path of one, not int"),
        ({"client_manager": 3}, "client_manager: int has no register, num_available, sample"),
        ({"history": 3}, "history: int has no add_loss_centralized"),
        ({"on_record": 3}, "on_record: must be a function of a RoundRecord, not int"),
        ({"callbacks": None}, "callbacks: must be a list, not NoneType"),
        ({"ray_init_args": [1]}, "ray_init_args: must be a dict of arguments of ray.init, not list"),
        ({"ray_init_args": {"num_cpus": "2"}}, "ray_init_args: num_cpus must be a number, not str"),
        ({"client_app": ClientApp(), "server_app": ServerApp()}, "client_app: a Flower app needs an AppConfig"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_of_no_use_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        simulate(RunConfig(**SMALL), **given)
    assert str(raised.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [None, {"num_rounds": 1}, RunConfig], ids=["none", "dict", "class"])
def test_a_config_is_a_run_config(config: Any) -> None:
    with pytest.raises(ConfigError, match="config: must be a RunConfig, not "):
        simulate(config)
    with pytest.raises(ConfigError, match="run: must be a Run, its path or its name, not "):
        resume({1: 2})  # type: ignore[arg-type]


def test_settings_beside_a_strategy_that_was_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig(**SMALL, strategy_args={"proximal_mu": 0.5})
    with pytest.raises(ConfigError, match=r"^--strategy-args proximal_mu: the strategy was made before"):
        simulate(config, strategy=FedAvg())
    for strategy in (FedAvg(), flwr.serverapp.strategy.FedAvg()):
        run = simulate(RunConfig(**{**SMALL, "num_clients": 3}, clients_per_round=2), strategy=strategy)
        assert run.rounds().num_clients.tolist()[1:] == [3]
        note = "--clients-per-round 2 has no effect, because the strategy was made before and asks 3 clients per round"
        assert capsys.readouterr().err.count(note) == 1

    class Own(FedAvg):
        def num_fit_clients(self) -> int:  # type: ignore[override]
            raise AssertionError("a strategy of the user's is not asked")

        def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
            return [(each, FitIns(parameters, {})) for each in client_manager.sample(2)]

    asked = simulate(RunConfig(**{**SMALL, "num_clients": 3}, clients_per_round=2), strategy=Own())
    assert asked.rounds().num_clients.tolist()[1:] == [2]
    simulate(RunConfig(**SMALL, clients_per_round=2), strategy=FedAvg())
    simulate(RunConfig(**SMALL), strategy=FedAvg())
    assert "has no effect" not in capsys.readouterr().err


def test_a_text_is_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.chdir(tmp_path)
    run = simulate(RunConfig(**SMALL), strategy="fedadam", load_data="digits")
    other = simulate(RunConfig(**SMALL, strategy="fedadam", dataset="digits"))
    assert run.config_path.read_bytes() == other.config_path.read_bytes()
    assert run.model_path.read_bytes() == other.model_path.read_bytes()


class Sizes(Enum):
    FEW = 3


def test_numbers_of_numpy_paths_and_enumerations_are_plain_values() -> None:
    config = RunConfig(
        num_clients=Sizes.FEW,  # type: ignore[arg-type]
        num_rounds=np.int64(2),  # type: ignore[arg-type]
        lr=np.float32(0.5),  # type: ignore[arg-type]
        verbose=np.True_,  # type: ignore[arg-type]
        results_dir=Path("some") / "where",  # type: ignore[arg-type]
        strategy="fedprox",
        strategy_args={"proximal_mu": np.float64(0.25)},
    )
    found = config.num_clients, config.num_rounds, config.lr, config.verbose, config.results_dir, config.strategy_args
    assert repr(found) == repr((3, 2, 0.5, True, "some/where", {"proximal_mu": 0.25}))
    with pytest.raises(ConfigError, match=r"num_rounds = np.float64"):
        RunConfig(num_rounds=np.float64(2.0))  # type: ignore[arg-type]


@pytest.mark.ray
def test_what_cannot_be_sent_to_other_processes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock = threading.Lock()

    def train(net: Any, loader: Any) -> None:
        assert lock

    random.seed(7)
    before = random.getstate()
    with pytest.raises(PluginError, match=r"^--train .*train: cannot be sent to the processes .*cannot pickle"):
        simulate(RunConfig(**{**SMALL, "engine": "ray"}), train=train)
    assert random.getstate() == before
    assert not (tmp_path / "results").exists()


@dataclass  # it has no hash
class Counting:
    calls: Any = field(default_factory=lambda: np.zeros(3))

    def __call__(self, net: Any, loader: Any) -> dict[str, float]:
        self.calls[0] += 1
        return {"loss": 1.0, "calls": float(self.calls[0])}


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_an_object_that_trains_may_write_into_its_arrays(tmp_path: Path, engine: str) -> None:
    config = RunConfig(**{**SMALL, "engine": engine, "clients_per_round": 2, "results_dir": str(tmp_path)})
    rows = simulate(config, train=Counting()).metrics()
    assert rows[rows["name"] == "calls"]["value"].tolist() == [1.0, 1.0, 1.0]  # of each client, and their mean


def test_a_strategy_weights_clients_by_what_a_train_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig(**SMALL, strategy="multikrum", strategy_args={"weighted_by_key": "calls"})
    assert len(simulate(config, train=Counting()).rounds()) == 2
    with pytest.raises(ConfigError, match="weighted_by_key=calls: must be num-examples or loss"):
        simulate(config)


SCRIPT = """
import hashlib
import sys

import settings
import torch
from parts_of_script import train
from {program} import net, trainloader, testloader, criterion
from sim import RunConfig, simulate

def load_data():
    return trainloader, testloader

settings.LR = 0.5
settings.CFG["momentum"] = 0.5
settings.extra = lambda net: net.layers[0].weight.square().sum()
torch.set_default_dtype(torch.float64)
for engine in sys.argv[1:]:
    config = RunConfig(num_clients=4, clients_per_round=4, num_rounds=1, local_epochs=1, engine=engine)
    run = simulate(config, model=lambda: net.double(), train=train, load_data=load_data)
    print(hashlib.sha256(run.model_path.read_bytes()).hexdigest())
"""


PARTS = """
import settings
import torch
from settings import CFG

def train(net, loader, epochs):
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.LR, momentum=CFG["momentum"])
    for x, y in loader:
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(net(x), y) + settings.extra(net)).backward()
        optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_what_a_script_sets_in_its_modules_and_in_pytorch_reaches_the_processes(program: str) -> None:
    extended(program, "trainloader.dataset.dataset.tensors = x.double(), data.tensors[1]\n")
    Path("parts_of_script.py").write_text(PARTS)
    Path("settings.py").write_text("LR = 0.1\nCFG = {'momentum': 0.0}\n\ndef extra(net):\n    return 0.0\n")
    Path("script.py").write_text(SCRIPT.format(program=program.removesuffix(".py")))
    inline, ray = _hashes("inline", "ray")
    assert inline == ray
    Path("script.py").write_text(Path("script.py").read_text().replace("LR = 0.5", "LR = 0.25"))
    assert inline not in _hashes("inline")


def test_what_a_file_computes_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "PLAIN = {'a': 1}\nLIST = []\nDICT = {}\nBOTH = 1\nLIST.append(1)\nDICT['b'] = 2\nif LIST:\n    BOTH = 2\n"
    (tmp_path / "computed_settings.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("computed_settings")
    monkeypatch.setattr(changed_modules, "own_modules", lambda: [module])
    assert changed_modules.changed_variables() == {}
    module.PLAIN["a"], module.NEW = 2, "new"
    assert changed_modules.changed_variables() == {"computed_settings": {"PLAIN": {"a": 2}, "NEW": "new"}}
    held, module.NEW = module.PLAIN, 0
    changed_modules.set_variable("computed_settings", "PLAIN", {"a": 3})
    changed_modules.set_variable("computed_settings", "NEW", 1)
    assert (held, module.NEW) == ({"a": 3}, 1)


def _hashes(*engines: str) -> list[str]:
    done = subprocess.run([sys.executable, "script.py", *engines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
