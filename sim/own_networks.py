"""Networks and optimizers in variables of user code, as a moving average of weights: what they hold is put back.

Those of libraries have no variables that are looked into, and a network of the user's own may be larger than what is
put back of other variables.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_MOST_BYTES = 2**30  # of a network that is put back


class Kept(Protocol):
    """A network or an optimizer, and what it held when it was noted."""

    def again(self) -> Self:
        """Return it with what it holds now."""

    def has_changed(self) -> bool:
        """Return whether it holds something else now."""

    def put_back(self) -> None:
        """Let it hold what it held."""


def kept(held: Any) -> Kept | None:
    """Note what a value holds; None if it is no network and no optimizer, or too large."""
    if isinstance(held, nn.Module):
        others = [each for module in held.modules() for each in vars(module).values() if isinstance(each, Tensor)]
        tensors = [*_tensors_of(held), *filter(_has_numbers, others)]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return _Network(held) if tensors and num_bytes <= _MOST_BYTES else None
    if isinstance(held, torch.optim.lr_scheduler.LRScheduler):
        return _WithState(held.optimizer, held)
    return _WithState(held) if isinstance(held, torch.optim.Optimizer | torch.amp.GradScaler) else None


class _Network:
    """The tensors of a network and the attributes of its modules: modes, and what a metric adds up in them."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._attributes = [(vars(module), _attributes_of(module)) for module in net.modules()]
        others = [held for _, known in self._attributes for held in known.values() if isinstance(held, Tensor)]
        self._tensors = [(tensor, _Content(tensor)) for tensor in (*_tensors_of(net), *others)]
        self._lists = [
            (held, [*held]) for _, known in self._attributes for held in known.values() if isinstance(held, list)
        ]

    def again(self) -> Self:
        return type(self)(self._net)

    def has_changed(self) -> bool:
        for variables, known in self._attributes:
            if any(not _is_as(variables.get(name), held) for name, held in known.items()):
                return True
        if any(len(held) != len(first) or any(map(operator.is_not, held, first)) for held, first in self._lists):
            return True
        return any(content.differs_from(tensor) for tensor, content in self._tensors)

    def put_back(self) -> None:
        for variables, known in self._attributes:
            variables.update(known)
        for held, first in self._lists:
            held[:] = first
        for tensor, content in self._tensors:
            if content.differs_from(tensor):
                content.put_into(tensor)


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    plain = bool, int, float, str, list, type(None)
    return {
        name: held
        for name, held in vars(module).items()
        if isinstance(held, plain) or (isinstance(held, Tensor) and _has_numbers(held))
    }


def _is_as(now: Any, held: Any) -> bool:
    return now is held or (isinstance(held, int | float | str) and type(now) is type(held) and now == held)


class _Content:
    """The numbers of a tensor, its gradient, and whether it has one."""

    def __init__(self, tensor: Tensor) -> None:
        self._numbers = tensor.detach().clone()
        self._requires_grad = tensor.requires_grad
        grad = tensor.grad if tensor.is_leaf else None  # PyTorch warns of any other one
        self._grad = None if grad is None else grad.detach().clone()

    def differs_from(self, tensor: Tensor) -> bool:
        if not tensor.is_leaf:  # made of other weights, as by weight_norm
            return not _same(tensor.detach(), self._numbers)
        if tensor.requires_grad is not self._requires_grad or not _same(tensor.detach(), self._numbers):
            return True
        if tensor.grad is None or self._grad is None:
            return tensor.grad is not self._grad
        if tensor.grad.layout != torch.strided:
            return True
        return not _same(tensor.grad, self._grad)

    def put_into(self, tensor: Tensor) -> None:
        with torch.no_grad():
            if tensor.shape == self._numbers.shape and tensor.dtype == self._numbers.dtype:
                tensor.copy_(self._numbers)
            else:
                tensor.data = self._numbers.clone()
        if not tensor.is_leaf:
            return
        tensor.requires_grad_(self._requires_grad)
        tensor.grad = None if self._grad is None else self._grad.clone()


class _WithState:
    def __init__(self, *made: Any) -> None:
        self._made, self._states = made, [copy.deepcopy(each.state_dict()) for each in made]

    def again(self) -> Self:
        return type(self)(*self._made)

    def has_changed(self) -> bool:
        return not all(_same(each.state_dict(), state) for each, state in zip(self._made, self._states, strict=True))

    def put_back(self) -> None:
        for each, state in zip(self._made, self._states, strict=True):
            if not _same(each.state_dict(), state):
                each.load_state_dict(copy.deepcopy(state))


def _tensors_of(net: nn.Module) -> list[Tensor]:
    """Return parameters and buffers with numbers that can be compared and copied."""
    return [tensor for tensor in (*net.parameters(), *net.buffers()) if _has_numbers(tensor)]


def _has_numbers(tensor: Tensor) -> bool:
    is_odd = is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta
    return not is_odd


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _same_numbers(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    try:
        if torch.equal(one, other):
            return True
        may_be_nan = one.is_floating_point() or one.is_complex()
        return may_be_nan and bool(((one == other) | (one.isnan() & other.isnan())).all())
    except RuntimeError:  # PyTorch compares no float8
        return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
