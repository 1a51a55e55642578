"""What objects of PyTorch hold, as arrays and plain values: tensors, modules, optimizers and schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.common import NDArray
from torch.utils.data import Dataset

Tree = dict[str, Any]  # a JSON object; one of its keys names the kind of the value


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor."""
    return isinstance(value, torch.Tensor)


def is_module(value: Any) -> bool:
    """Whether a value is a net."""
    return isinstance(value, torch.nn.Module)


def is_data_set(value: Any) -> bool:
    """Whether a value is a data set."""
    return isinstance(value, Dataset)


def has_state_dict(value: Any) -> bool:
    """Whether an object gives and takes its state as PyTorch's modules, optimizers and schedulers do."""
    methods = ("state_dict", "load_state_dict")
    return not isinstance(value, type) and all(callable(getattr(type(value), name, None)) for name in methods)


def state_of(held: Any) -> dict[str, Any]:
    """Return the state of an object that has a ``state_dict``."""
    training = [module.training for module in held.modules()] if is_module(held) else []
    return {"state": dict(held.state_dict()), "training": training}


def put_state(held: Any, state: dict[str, Any]) -> None:
    """Put back what ``state_of`` returned."""
    held.load_state_dict(state["state"])
    if is_module(held):
        for module, training in zip(held.modules(), state["training"], strict=True):
            module.training = training


def array_of(tensor: Any) -> tuple[NDArray, Tree]:
    """Return the content of a tensor, and what else makes the tensor.

    Raises:
        TypeError, RuntimeError: numpy has no such array.
    """
    plain = tensor.detach().cpu()
    array: NDArray = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
    return array, {
        "kind": "parameter" if isinstance(tensor, torch.nn.Parameter) else "tensor",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": str(tensor.device),
        "needs_grad": tensor.requires_grad,
    }


def tensor_of(array: NDArray, tree: Tree, into: Any) -> Any:
    """Return the tensor of which ``array_of`` made ``array`` and ``tree``; it is ``into`` if that has its shape."""
    made = torch.from_numpy(np.array(array))
    made = (made.view(torch.bfloat16) if tree["dtype"] == "bfloat16" else made).to(tree["device"])
    if isinstance(into, torch.Tensor) and (into.shape, into.dtype) == (made.shape, made.dtype):
        with torch.no_grad():
            into.copy_(made)
        return into
    if tree["kind"] == "parameter":
        return torch.nn.Parameter(made, requires_grad=tree["needs_grad"])
    return made.requires_grad_(tree["needs_grad"])
