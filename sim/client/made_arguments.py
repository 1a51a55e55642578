"""The loss and the optimizer for a ``train`` that asks for them: its module's own, or those of the flags."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sim.client.borrowed_variables import Variable, is_for, own_criterion
from sim.parameter_roles import Binding, is_text
from sim.training import local
from sim.training.losses import CRITERIA

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    **local.OPTIMIZERS,
    "sgd": lambda weights, lr, momentum, decay: torch.optim.SGD(weights, lr, momentum, weight_decay=decay),
}


def criterion_for(
    binding: Binding, loss: str | Callable[..., Any], device: torch.device, *, is_given: bool
) -> dict[str, Any]:
    """Return the argument for a parameter that wants a loss: the module's own, unless the user gave one.

    A default of the function's own is replaced by nothing but what the user gave.

    Args:
        is_given: ``loss`` is the user's choice.
    """
    name = binding.parameter_for("criterion")
    if name is None or not ("criterion" in binding.required or is_given):
        return {}
    if is_text(binding, "criterion"):
        return {"criterion": loss}
    variable = None if is_given else own_criterion(binding.function, name)
    found = criterion(loss) if variable is None else variable.value
    return {"criterion": copy.deepcopy(found).to(device) if isinstance(found, nn.Module) else found}


def takes_own(own: Variable, net: nn.Module, settings: Mapping[str, Any]) -> bool:
    """Whether a parameter gets a copy of the module's optimizer: it is of such a model, and no flag says another."""
    is_open = all(settings.get(name) is None for name in ("optimizer", "momentum", "weight_decay"))
    return is_open and is_for(own.value, own.module, net)


def make_optimizer(net: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Make the optimizer that the settings describe, for a ``train`` that asks for one."""
    name = settings.get("optimizer") or "sgd"
    lr = settings.get("lr") or 0.1
    momentum, weight_decay = settings.get("momentum") or 0.0, settings.get("weight_decay") or 0.0
    made: torch.optim.Optimizer = OPTIMIZERS[name](list(net.parameters()), lr, momentum, weight_decay)
    return made


def criterion(loss: str | Callable[..., Any]) -> Any:
    """Make the criterion for a function that asks for one."""
    return CRITERIA[loss]() if isinstance(loss, str) else _Criterion(loss)


class _Criterion(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Tensor, target: Tensor) -> Any:
        return self.function(outputs, target)
