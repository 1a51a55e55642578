"""The state of a model as numpy arrays, in the order of its ``state_dict``: the form in which weights travel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Weights = list[NDArray[Any]]


def get_weights(net: nn.Module) -> Weights:
    """Return a copy of every array of the model's ``state_dict``, in its order."""
    return [array.copy() for array in view_weights(net)]


def view_weights(net: nn.Module) -> Weights:
    """Return the arrays of the model's ``state_dict``, in its order; on a CPU they change when the model does."""
    return [tensor.detach().cpu().numpy() for tensor in net.state_dict().values()]


@torch.no_grad()
def set_weights(net: nn.Module, weights: Weights) -> None:
    """Copy arrays into the model's ``state_dict``, in its order.

    Raises:
        ValueError: their number or a shape does not fit the model.
    """
    state = net.state_dict()
    if len(state) != len(weights):
        raise ValueError(f"{len(weights)} arrays for a model of {len(state)}")
    for (name, tensor), array in zip(state.items(), weights, strict=True):
        if tensor.shape != array.shape:
            raise ValueError(f"{name}: shape {array.shape}, the model has {tuple(tensor.shape)}")
        if tensor.device.type == "cpu":
            np.copyto(tensor.numpy(), array)
        else:
            tensor.copy_(torch.tensor(array))
