"""Optimizers and schedulers of the user's module follow the learning rate of the run while a client has copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sim.client.borrowed_variables import borrowed_by, lent

net = nn.Linear(2, 1)
optimizer = torch.optim.SGD([{"params": [net.weight]}, {"params": [net.bias], "lr": 0.2}], lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (1 + number))


def train_with_variables() -> list[float]:
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_a_lent_optimizer_and_its_scheduler_follow_the_learning_rate_of_the_run() -> None:
    own, others = nn.Linear(2, 1), (net, optimizer, scheduler)
    before = [weight.detach().clone() for weight in (*net.parameters(), *own.parameters())]
    borrowed = borrowed_by(train_with_variables, ())
    for lr, wanted in ((None, [0.05, 0.1]), (0.1, [0.05, 0.1]), (1.0, [0.5, 1.0])):
        with lent(borrowed, own, None, lr):
            assert train_with_variables() == wanted
    assert (net, optimizer, scheduler) == others
    assert not optimizer.state
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    unchanged = [torch.equal(a, b) for a, b in zip(before, (*net.parameters(), *own.parameters()), strict=True)]
    assert unchanged == [True, True, False, False]


SCHEDULED = """
import torch
from torch.optim.lr_scheduler import *

net = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5)
scheduler = {scheduler}

def train():
    rates = []
    for _ in range(4):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates
"""


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        ("StepLR(optimizer, 2, 0.5)", [0.5, 0.5, 0.25, 0.25]),
        (
            "SequentialLR(optimizer, [LambdaLR(optimizer, lambda _: 0.5), LambdaLR(optimizer, lambda _: 1.0)], [2])",
            [0.25, 0.25, 0.5, 0.5],
        ),
        ("ChainedScheduler([LambdaLR(optimizer, lambda number: 1 / 2**number)])", [0.5, 0.25, 0.125, 0.0625]),
        (
            "OneCycleLR(optimizer, 0.5, 5, pct_start=0.4, anneal_strategy='linear', div_factor=4, final_div_factor=1)",
            [0.125, 0.5, 0.375, 0.25],
        ),
        ("CyclicLR(optimizer, 0.125, 0.625, step_size_up=2)", [0.125, 0.375, 0.625, 0.375]),
    ],
    ids=lambda value: str(value).partition("(")[0],
)
@pytest.mark.filterwarnings("error")
def test_rates_that_a_scheduler_sets_are_relative_to_the_learning_rate_of_the_run(
    scheduler: str, rates: list[float]
) -> None:
    module: dict[str, Any] = {"__name__": "of_the_user"}
    exec(SCHEDULED.replace("{scheduler}", scheduler), module)
    borrowed = borrowed_by(module["train"], ())
    for lr, factor in ((None, 1), (0.25, 0.5), (None, 1)):
        with lent(borrowed, nn.Linear(2, 1), None, lr):
            assert module["train"]() == pytest.approx([rate * factor for rate in rates], rel=1e-12)
