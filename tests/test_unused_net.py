"""Copies of a net that no client has used."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from sim.client.unused_net import UnusedNet
from sim.training.models import DataFacts, maker


class Odd(nn.Module):
    """Tied weights, a frozen one, a view as a buffer, a hook, an attribute, and a function without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad = False
        self.conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
        whole = torch.arange(6.0)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[2:4], persistent=False)
        self.decode = nn.Parameter(self.first.weight.data.t())
        self.register_buffer("start", self.norm.bias.data)
        self.seen: list[Any] = [1, [2]]
        self.scale = lambda x: 2 * x
        self.register_forward_hook(_count)
        self.norm.eval()


def _count(net: Any, *_: Any) -> None:
    net.seen.append("called")


def test_copies_share_nothing_but_what_they_share_in_the_net() -> None:
    net = Odd()
    unused = UnusedNet(net, Odd)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.first.weight.data.zero_()  # also not with the net that it was made from
    for _ in range(2):
        copy = unused.copy()
        assert isinstance(copy, Odd)
        assert [*copy.state_dict()] == [*before]
        assert all(torch.equal(value, before[name]) for name, value in copy.state_dict().items())
        assert copy.second.weight is copy.first.weight
        assert (copy.first.bias.requires_grad, copy.first.weight.requires_grad) == (False, True)
        assert copy.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert (copy.norm.training, copy.first.training) == (False, True)
        assert (copy.seen, copy.scale(3)) == ([1, [2]], 6)
        assert copy.part.tolist() == [2.0, 3.0]
        copy.decode.data[0, 1] = 5.0
        assert copy.first.weight[1, 0] == 5.0
        copy.norm.bias.data.fill_(4.0)
        assert copy.start.tolist() == [4.0, 4.0, 4.0]
        copy.whole[2] = -1.0
        assert copy.part.tolist() == [-1.0, 3.0]
        # What the second copy must not have:
        copy.first.weight.data.fill_(7)
        copy.seen[1].append(3)
        copy.second = nn.Linear(1, 1)
        copy.register_forward_pre_hook(_count)
        copy.norm.train()
        assert copy._forward_pre_hooks != unused.copy()._forward_pre_hooks


def test_classes_and_functions_without_a_name_are_not_built_anew() -> None:
    class Local(nn.Linear):
        pass

    assert type(UnusedNet(Local(1, 1), _never).copy()) is Local


def test_what_cannot_be_pickled_is_copied_or_built() -> None:
    class CopiesItself:
        def __deepcopy__(self, _: Any) -> CopiesItself:
            return CopiesItself()

        def __reduce__(self) -> Any:
            raise TypeError

    net = nn.Linear(1, 1)
    net.own = CopiesItself()  # type: ignore[assignment]
    copied = UnusedNet(net, _never).copy()
    assert copied.own is not net.own
    assert torch.equal(copied.weight, net.weight)  # type: ignore[arg-type]

    net.lock = threading.Lock()  # type: ignore[assignment]
    built = nn.Linear(2, 2)
    assert UnusedNet(net, lambda: built).copy() is built


def _never() -> nn.Module:
    raise AssertionError("built anew")


def test_a_scripted_net_is_built_anew() -> None:
    """PyTorch's own copies of its parameters are no leaves, which no optimizer takes."""

    def build() -> nn.Module:
        torch.manual_seed(1)
        return torch.jit.script(nn.Linear(3, 2))  # type: ignore[no-any-return]

    copied = UnusedNet(build(), build).copy()
    torch.optim.SGD(copied.parameters(), lr=0.1)
    assert all(parameter.is_leaf for parameter in copied.parameters())


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.scale = 0.0
        self.first.weight.register_hook(lambda gradient: gradient * self.scale)
        self.first.bias.register_post_accumulate_grad_hook(_negated)


def _negated(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad = -parameter.grad


@pytest.mark.parametrize("module_of_script", [False, True])
def test_hooks_on_gradients_are_those_of_the_copy(*, module_of_script: bool) -> None:
    """A variable of a module, which cannot be made anew, is copied with the hooks that it has."""
    made = Hooked()
    build = maker(made, DataFacts(None, None), {}) if module_of_script else Hooked
    copy = UnusedNet(build(), build).copy()
    if not module_of_script:
        copy.scale = 2.0
    copy.first(torch.ones(1, 2)).sum().backward()
    assert copy.first.weight.grad.tolist() == ([[0.0, 0.0]] * 2 if module_of_script else [[2.0, 2.0]] * 2)
    assert copy.first.bias.grad.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("is_shared", [False, True])
def test_attributes_of_parameters_are_copied(*, is_shared: bool) -> None:
    def build() -> nn.Module:
        net = nn.Linear(2, 2)
        net.weight.groups = ["no decay"]  # type: ignore[attr-defined]
        if is_shared:
            net.register_buffer("view", net.weight.data.t())
        return net

    net = build()
    first, second = (UnusedNet(net, build).copy() for _ in range(2))
    first.weight.groups.append("changed")  # type: ignore[attr-defined, union-attr, operator]
    assert second.weight.groups == net.weight.groups == ["no decay"]  # type: ignore[attr-defined]
