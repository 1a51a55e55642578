"""The state of a model as numpy arrays, in the order of its ``state_dict``: the form in which weights travel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Weights = list[NDArray[Any]]


@dataclass(frozen=True)
class WeightLayout:
    """What the arrays of a model's ``state_dict`` are. A position is an index into the list of arrays.

    Attributes:
        names: the keys of the ``state_dict``, in its order.
        trained: positions of the parameters that are trained; of tied ones, which are one array, the first.
        averageable: positions of all arrays of finite floating-point numbers, tied ones once.
        tied: position of an array that is the same as an earlier one → position of the earlier one.
        is_known: False for the arrays of a Flower client, which has a model of its own and may send others each time.
    """

    names: list[str]
    trained: tuple[int, ...]
    averageable: tuple[int, ...]
    tied: dict[int, int]
    is_known: bool = True

    @classmethod
    def of(cls, net: nn.Module) -> Self:
        """Describe the arrays of ``net`` with its present weights."""
        state = state_of(net, keep_vars=True)
        first: dict[Any, int] = {}
        tied = {}
        for position, tensor in enumerate(state.values()):
            key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
            if tensor.numel() and key in first:
                tied[position] = first[key]
            first.setdefault(key, position)
        single = [(i, tensor) for i, tensor in enumerate(state.values()) if i not in tied]
        needs_grad = {tied.get(i, i) for i, tensor in enumerate(state.values()) if tensor.requires_grad}
        return cls(
            list(state),
            tuple(i for i, _ in single if i in needs_grad),
            tuple(i for i, tensor in single if tensor.is_floating_point() and _is_finite(tensor)),
            tied,
        )

    @classmethod
    def unknown(cls, names: list[str]) -> Self:
        """Describe arrays of which only names are known."""
        positions = tuple(range(len(names)))
        return cls(names, positions, positions, {}, is_known=False)

    def without(self, names: Collection[str]) -> Self:
        """Return a layout in which the arrays of these names, and those tied to them, are not trained."""
        chosen = {position for position, name in enumerate(self.names) if name in names}
        chosen |= {self.tied[position] for position in chosen if position in self.tied}
        return replace(
            self,
            trained=tuple(position for position in self.trained if position not in chosen),
            averageable=tuple(position for position in self.averageable if position not in chosen),
        )

    @property
    def untrained(self) -> frozenset[int]:
        """Positions of the arrays that are not trained: buffers and frozen parameters."""
        return frozenset(range(len(self.names))).difference(self.trained, self.tied)

    def is_untrained(self, before: Weights, after: Weights) -> bool:
        """Return whether no parameter that is trained has changed, but for the rounding of an average."""
        return self.is_known and all(np.allclose(before[i], after[i], 1e-6, 1e-9) for i in self.trained)

    @property
    def has_running_statistics(self) -> bool:
        """Whether a layer such as BatchNorm keeps statistics of its inputs."""
        return any(name.rpartition(".")[2] == "running_var" for name in self.names)


def state_of(net: nn.Module, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """Return the tensors of the model's ``state_dict``; extra state that is no tensor stays with the model."""
    state: dict[str, Any] = net.state_dict(keep_vars=keep_vars)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def get_weights(net: nn.Module, names: Sequence[str] | None = None) -> Weights:
    """Return a copy of every array of the model's ``state_dict``; see ``view_weights``."""
    return [array.copy() for array in view_weights(net, names)]


def view_weights(net: nn.Module, names: Sequence[str] | None = None) -> Weights:
    """Return the arrays of the model's ``state_dict``; on a CPU they change when the model does.

    What numpy has no type for, such as bfloat16, is returned as float32, which holds the same numbers.

    Args:
        names: their order, if it is not that of the ``state_dict``, because a parameter was registered again.

    Raises:
        ValueError: the model has other names.
    """
    state = state_of(net)
    if names is not None and list(state) != list(names):
        others = sorted(state.keys() ^ set(names))
        if others:
            raise ValueError(f"the model has other parameters than before its training: {', '.join(others[:4])}")
        state = {name: state[name] for name in names}
    return [array_of(tensor) for tensor in state.values()]


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array; on a CPU it changes when the tensor does. See ``view_weights``."""
    tensor = tensor.detach().cpu()
    return (tensor if _numpy_knows(tensor) else tensor.float()).numpy()


def _numpy_knows(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor if _numpy_knows(tensor) else tensor.float()).all())  # no kernel for float8


@torch.no_grad()
def set_weights(net: nn.Module, weights: Weights) -> None:
    """Copy arrays into the model's ``state_dict``, in its order.

    Raises:
        ValueError: their number or a shape does not fit the model.
    """
    state = state_of(net)
    if len(state) != len(weights):
        raise ValueError(f"{len(weights)} arrays for a model of {len(state)}")
    for (name, tensor), array in zip(state.items(), weights, strict=True):
        if tensor.shape != array.shape:
            raise ValueError(f"{name}: shape {array.shape}, the model has {tuple(tensor.shape)}")
        if tensor.device.type == "cpu" and _numpy_knows(tensor):
            np.copyto(tensor.numpy(), array)
        else:
            tensor.copy_(torch.tensor(array))
