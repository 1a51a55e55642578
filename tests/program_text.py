"""A small program of a user's in two files, to which tests add the functions that they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.config.run_config import RunConfig
from sim.run_folder.folder import Run
from sim.simulation import simulate

DATA = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

x = torch.linspace(-1, 1, 240).reshape(60, 4)
data = TensorDataset(x, (x.sum(1) > 0).long())
trainset, testset = random_split(data, [48, 12])
trainloader, testloader = DataLoader(trainset, 4, shuffle=True), DataLoader(testset, 12)
"""

MODEL = """
from parts import *

class Block(nn.Sequential):
    pass

class Deep(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = Block(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)

net = Deep(8)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
"""


def write_program(folder: Path, name: str) -> str:
    """Write the program; its other part is found by ``import *``."""
    (folder / f"data_of_{name}.py").write_text(DATA)
    (folder / f"{name}.py").write_text(MODEL.replace("parts", f"data_of_{name}"))
    return f"{name}.py"


def extended(program: str, text: str) -> str:
    with Path(program).open("a") as file:
        file.write(text)
    return program


def run(program: str, engine: str = "inline", **settings: Any) -> Run:
    config = RunConfig(
        program=program, num_clients=6, clients_per_round=6, num_rounds=2, local_epochs=2, engine=engine, **settings
    )
    return simulate(config, ray_init_args={"num_cpus": 2})
