"""What networks and optimizers hold is noted, compared and put back, whatever their tensors are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sim.own_networks import Kept, kept


def noted(held: Any) -> Kept:
    found = kept(held)
    assert found is not None
    assert not found.has_changed()
    return found


def fill(net: Any) -> None:
    net.weight.data[0, 0] = float("nan")


def give_gradients(net: Any) -> None:
    net(torch.tensor([1])).sum().backward()


def reshape(net: Any) -> None:
    net.weight.data = torch.ones(3, 3)


def freeze(net: Any) -> None:
    net.requires_grad_(False)


def evaluate(net: Any) -> None:
    net.eval()


class Metric(nn.Module):
    """Adds up in attributes that are no buffers, as those of torchmetrics."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.count, self.seen = torch.zeros(()), 0, list[float]()

    def forward(self, value: float) -> None:
        self.total = self.total + value
        self.count += 1
        self.seen.append(value)


def test_what_a_metric_adds_up_is_put_back() -> None:
    metric = Metric()
    metric(1.0)
    found = noted(metric)
    metric(2.0)
    metric(3.0)
    assert found.has_changed()
    found.put_back()
    assert (metric.total.item(), metric.count, metric.seen) == (1.0, 1, [1.0])
    assert not found.has_changed()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: nn.Linear(2, 2), fill),
        (lambda: nn.Linear(2, 2, dtype=torch.bfloat16), fill),
        (lambda: nn.Linear(2, 2).to(torch.float8_e4m3fn), evaluate),
        (lambda: nn.Linear(2, 2), reshape),
        (lambda: nn.Linear(2, 2), freeze),
        (lambda: nn.Embedding(5, 2), give_gradients),
        (lambda: nn.Embedding(5, 2, sparse=True), give_gradients),
    ],
)
def test_a_network_is_put_back(make: Callable[[], Any], change: Callable[[Any], None]) -> None:
    net = make()
    before = net.weight.detach().float().clone()
    found = noted(net)
    change(net)
    assert found.has_changed()
    found.put_back()
    assert not found.has_changed()
    assert torch.equal(net.weight.detach().float(), before)
    assert net.weight.grad is None
    assert net.weight.requires_grad
    assert net.training


@pytest.mark.filterwarnings("error")
def test_a_weight_that_is_made_of_others_is_put_back() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # which programs of today still use
        net = nn.utils.weight_norm(nn.Linear(2, 2))
    found, first = noted(net), net.weight_g.detach().clone()
    net(torch.ones(1, 2)).sum().backward()
    net.weight_g.data += 1
    net(torch.ones(1, 2))
    assert found.has_changed()
    found.put_back()
    assert torch.equal(net.weight_g.detach(), first)
    assert not found.has_changed()
    net(torch.ones(1, 2)).sum().backward()


def test_a_nan_that_was_there_is_no_change() -> None:
    net = nn.Linear(2, 2)
    fill(net)
    noted(net)


def test_an_optimizer_and_its_scheduler_are_put_back() -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    of_optimizer, of_scheduler = noted(optimizer), noted(scheduler)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert of_optimizer.has_changed()
    of_scheduler.put_back()
    assert (len(optimizer.state), optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (0, 0.5, 0)
    assert not of_optimizer.has_changed()


def test_what_has_no_numbers_is_not_noted() -> None:
    with_sparse_buffer = nn.Module()
    with_sparse_buffer.register_buffer("buffer", torch.eye(2).to_sparse())
    others: list[Any] = [nn.ReLU(), nn.LazyLinear(2), nn.Linear(2, 2, device="meta"), with_sparse_buffer, Tensor([1])]
    assert [kept(each) for each in others] == [None] * 5
