"""What a function reads from its module, and only the script behind it sets."""

from __future__ import annotations

import re
from typing import Any

import pytest
from program_text import extended, run

from conftest import sha256
from sim.client.borrowed_variables import borrowed_by
from sim.config.run_config import RunConfig
from sim.errors import PluginError
from sim.used_variables import set_arguments
from sim.user_code import Arguments

SCRIPT = """
def train(epoch):
    for x, y in train_batches:
        criterion(my_net(x), y).backward()

def local(net, trainloader):
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

def test(net, testloader):
    return sum(my_loss(net(x), y) for x, y in testloader)

if __name__ == "__main__":
    my_net, train_batches, my_loss = net, trainloader, criterion
"""


def test_names_that_only_a_script_sets_are_named(program: str) -> None:
    module = extended(program, SCRIPT).removesuffix(".py")
    script = 'what stands under if __name__ == "__main__" is not executed'
    message = (
        f"--train {module}:train: has no parameter for the model, such as net or model, and uses no variable that is "
        f"one; its module does not set train_batches, my_net: {script}"
    )
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        run(program)
    message = (
        f"--test {module}:test: raised NameError: name 'my_loss' is not defined; its module does not set my_loss: "
    )
    with pytest.raises(PluginError, match=f"^{re.escape(message + script)}$"):
        run(program, train=f"{module}:local")


GLOBAL_ARGS = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--step", type=float, default=0.25)

def main():
    global args
    args = parser.parse_args()

def adjust(optimizer):
    for group in optimizer.param_groups:
        group["lr"] = args.step

def train(train_loader, model, criterion, optimizer, epoch):
    adjust(optimizer)
    for x, y in train_loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

if __name__ == "__main__":
    main()
"""


@pytest.mark.ray
def test_options_that_main_puts_into_a_variable_are_those_of_the_parser(program: str) -> None:
    extended(program, GLOBAL_ARGS)
    found = {
        name: sha256(run(program, name=name, **settings).model_path)  # type: ignore[arg-type]
        for name, settings in {
            "default": {},
            "ray": {"engine": "ray"},
            "same": {"args": {"step": 0.25}},
            "other": {"args": {"step": 0.5}},
        }.items()
    }
    assert found["default"] == found["ray"] == found["same"] != found["other"]


def test_only_what_has_no_value_is_set() -> None:
    module: dict[str, Any] = {"args": 1}
    exec("def used():\n    return args, cfg, other\n", module)
    set_arguments(module["used"], Arguments())
    assert "cfg" not in module
    set_arguments(module["used"], Arguments(lr=0.1))
    assert (module["args"], module["cfg"].lr, "other" in module) == (1, 0.1, False)


def test_what_a_cell_sets_after_an_error_is_found() -> None:
    module: dict[str, Any] = {"__name__": "of_the_user"}
    exec("def step():\n    optimizer.step()\n\ndef train(epoch):\n    model.train()\n    step()\n", module)
    assert borrowed_by(module["train"], ()) == {}
    exec("import torch\nmodel = torch.nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters())\n", module)
    found = borrowed_by(module["train"], ())
    assert {role: [each.name for each in variables] for role, variables in found.items()} == {
        "net": ["model"],
        "optimizer": ["optimizer"],
    }


CLASS_AND_VARIABLE = """
class Net(Deep):
    def __init__(self):
        super().__init__(3)

def train(epoch{parameters}):
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(("parameters", "model"), [("", "net"), (", net, trainloader", "Net")])
def test_the_model_is_the_variable_that_train_uses(program: str, parameters: str, model: str) -> None:
    """Its weights may be those of an earlier training, which the class does not give."""
    module = extended(program, CLASS_AND_VARIABLE.replace("{parameters}", parameters)).removesuffix(".py")
    assert RunConfig(program=program).model == f"{module}:{model}"
