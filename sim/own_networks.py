"""Networks and optimizers in variables of user code, as a moving average of weights: what they hold is put back.

Those of libraries have no variables that are looked into, and a network of the user's own may be larger than what is
put back of other variables.
"""

from __future__ import annotations

import copy
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
        tensors = _tensors_of(held)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return _Network(held) if tensors and num_bytes <= _MOST_BYTES else None
    if isinstance(held, torch.optim.lr_scheduler.LRScheduler):
        return _WithState(held.optimizer, held)
    return _WithState(held) if isinstance(held, torch.optim.Optimizer | torch.amp.GradScaler) else None


class _Network:
    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._tensors = [(tensor, _Content(tensor)) for tensor in _tensors_of(net)]
        self._modes = [(module, module.training) for module in net.modules()]

    def again(self) -> Self:
        return type(self)(self._net)

    def has_changed(self) -> bool:
        if any(module.training is not mode for module, mode in self._modes):
            return True
        return any(content.differs_from(tensor) for tensor, content in self._tensors)

    def put_back(self) -> None:
        for module, mode in self._modes:
            module.training = mode
        for tensor, content in self._tensors:
            if content.differs_from(tensor):
                content.put_into(tensor)


class _Content:
    """The numbers of a tensor, its gradient, and whether it has one."""

    def __init__(self, tensor: Tensor) -> None:
        self._numbers = tensor.detach().clone()
        self._requires_grad = tensor.requires_grad
        self._grad = None if tensor.grad is None else tensor.grad.detach().clone()

    def differs_from(self, tensor: Tensor) -> bool:
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
    every = [tensor for tensor in (*net.parameters(), *net.buffers()) if not is_lazy(tensor)]
    return [each for each in every if each.layout == torch.strided and not (each.is_quantized or each.is_meta)]


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
