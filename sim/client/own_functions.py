"""The user's own ``train`` and ``test``: what their parameters mean, and what they return as metrics."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sim.errors import PluginError
from sim.parameter_roles import Binding, is_text
from sim.training import local
from sim.training.losses import CRITERIA, LOSSES

_SETTINGS = ("lr", "momentum", "weight_decay", "proximal_mu", "optimizer", "max_steps", "precision", "batch_size")
_UNCHANGED = {"max_steps": 0, "precision": "fp32"}
_DEFAULTS = ("lr", "momentum", "weight_decay", "optimizer", "batch_size")
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda weights, lr, momentum, weight_decay: torch.optim.SGD(
        weights, lr, momentum, weight_decay=weight_decay
    ),
    "adam": lambda weights, lr, momentum, weight_decay: torch.optim.Adam(weights, lr, weight_decay=weight_decay),
    "adamw": lambda weights, lr, momentum, weight_decay: torch.optim.AdamW(weights, lr, weight_decay=weight_decay),
}
WHAT_TEST_RETURNS = "accuracy, (loss, accuracy), (loss, dict of metrics) or dict of metrics"


class OwnReturnError(TypeError):
    """A function of the user's returned something that is no metric."""


def scalar(value: Any) -> float | None:
    """Return a number, also of numpy or PyTorch, as a float; None if it is none."""
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if is_number else None


def metrics_of(returned: Mapping[Any, Any], what: str) -> dict[str, float]:
    """Return a dict of metrics with plain numbers.

    Raises:
        OwnReturnError: a value is no number.
    """
    found = {}
    for name, value in returned.items():
        number = scalar(value)
        if number is None:
            raise OwnReturnError(f"{what} returned {name} = {type(value).__name__}; a number is expected")
        found[str(name)] = number
    return found


@dataclass(frozen=True)
class OwnTrain:
    """The user's ``train``, called as ``sim.training.local.train`` is.

    It may train for all local epochs, or for one, in which case it is called once for each.

    Attributes:
        loss: name of the loss that it gets as its criterion, if it asks for one.
        args: the program's own arguments.
    """

    function: Callable[..., Any]
    place: str
    loss: str | Callable[..., Any] = "cross_entropy"
    args: Any = None

    @cached_property
    def binding(self) -> Binding:
        """What its parameters mean.

        Raises:
            PluginError: one cannot be given.
        """
        offered = ("net", "loader", "epochs", "epoch", "device", "criterion", "args", *_SETTINGS)
        binding = Binding.of(self.function, offered, self.place)
        if not binding.takes("net") and not binding.open_ended:
            raise PluginError(f"{self.place}: has no parameter for the model, such as net or model")
        return binding

    def defaults(self) -> dict[str, Any]:
        """Return the settings for which it has a default of its own; None where that is no value of the setting."""
        found: dict[str, Any] = {}
        for name, value in self.binding.defaults.items():
            is_known = value in _OPTIMIZERS if isinstance(value, str) else scalar(value) is not None
            is_usable = is_known and (name == "optimizer") == isinstance(value, str)
            if name in _DEFAULTS and (is_usable or name != "batch_size"):  # loaders need a batch size
                found[name] = value if is_usable else None
        return found

    def __call__(
        self, net: nn.Module, loader: Any, epochs: int, device: torch.device, **settings: Any
    ) -> dict[str, float]:
        """Train and return the metrics; the mean over the calls, where there are several.

        Raises:
            OwnReturnError: it returned something else than a loss, metrics or None.
        """
        binding = self.binding
        # What no flag has changed does not replace a default of the program's own.
        unchanged = {role for role, value in _UNCHANGED.items() if settings.get(role) == value}
        settings = {k: v for k, v in settings.items() if k not in unchanged or k not in binding.defaults}
        offered = {"net": net, "loader": loader, "device": device, "args": self.args, **settings}
        if binding.takes("criterion") and ("criterion" in binding.required or self.loss != "cross_entropy"):
            offered["criterion"] = criterion(self.loss).to(device)
        if binding.takes("optimizer") and not is_text(binding, "optimizer"):
            offered.pop("optimizer", None)
            if "optimizer" in binding.required:
                offered["optimizer"] = make_optimizer(net, settings)
        if binding.takes("epochs") or (binding.open_ended and not binding.takes("epoch")):
            return trained(binding.call({**offered, "epochs": epochs}))
        returned = [trained(binding.call({**offered, "epoch": number})) for number in range(1, epochs + 1)]
        return {name: sum(each.get(name, math.nan) for each in returned) / epochs for name in returned[0]}


@dataclass(frozen=True)
class BuiltInTrain:
    """The built-in training with another loss than the cross-entropy."""

    loss: str | Callable[..., Any]

    def __call__(self, net: nn.Module, loader: Any, epochs: int, device: torch.device, **settings: Any) -> float:
        """Train as ``sim.training.local.train`` does."""
        return local.train(net, loader, epochs, device, loss=_function(self.loss), **settings)


@dataclass(frozen=True)
class BuiltInTest:
    """The built-in test with a loss and metrics."""

    loss: str | Callable[..., Any]
    metrics: Sequence[str | tuple[str, Callable[..., Any]]]

    def sums(self, net: nn.Module, loader: Any, device: torch.device) -> local.TestSums:
        """Return the sums of a part of the test."""
        return local.evaluation_sums(net, loader, device, _function(self.loss), self.metrics)

    def __call__(self, net: nn.Module, loader: Any, device: torch.device) -> tuple[float, dict[str, float]]:
        """Return (loss, metrics)."""
        return local.means([self.sums(net, loader, device)])


def _function(loss: str | Callable[..., Any]) -> Callable[..., Any]:
    return LOSSES[loss] if isinstance(loss, str) else OwnLoss(loss)


@dataclass(frozen=True)
class OwnLoss:
    """The user's loss (outputs, target) → mean of the batch, also where a sum is asked for."""

    function: Callable[..., Any]

    def __call__(self, outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Return the mean, or the sum, of the batch."""
        mean: Tensor = self.function(outputs, target)
        return mean if reduction == "mean" else mean * len(target)


def make_optimizer(net: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Make the optimizer that the settings describe, for a ``train`` that asks for one."""
    name = settings.get("optimizer") or "sgd"
    lr = settings.get("lr") or 0.1
    momentum, weight_decay = settings.get("momentum") or 0.0, settings.get("weight_decay") or 0.0
    return _OPTIMIZERS[name](net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


def criterion(loss: str | Callable[..., Any]) -> Any:
    """Make the criterion for a function that asks for one."""
    return CRITERIA[loss]() if isinstance(loss, str) else _Criterion(loss)


class _Criterion(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Tensor, target: Tensor) -> Any:
        return self.function(outputs, target)


def trained(returned: Any) -> dict[str, float]:
    """Return what ``train`` returned as metrics.

    Raises:
        OwnReturnError: it is neither None, a loss, (loss, accuracy) nor a dict of metrics.
    """
    if returned is None:
        return {}
    number = scalar(returned)
    if number is not None:
        return {"loss": number}
    if isinstance(returned, Mapping):
        return metrics_of(returned, "train")
    if isinstance(returned, tuple) and len(returned) == 2:
        numbers = [scalar(value) for value in returned]
        if None not in numbers:
            return dict(zip(("loss", "accuracy"), numbers, strict=True))  # type: ignore[arg-type]
    raise OwnReturnError(
        f"train returned {type(returned).__name__}; the mean loss, (loss, accuracy), a dict of metrics or None is "
        "expected"
    )


@dataclass(frozen=True)
class OwnTest:
    """The user's ``test``: what it returns becomes a loss and metrics.

    Attributes:
        score: what its second number is called: ``accuracy``, or ``score`` where the targets are no classes.
        in_percent: its accuracy is in percent.
        instead: the built-in test, for a function that prints its result and returns nothing.
    """

    function: Callable[..., Any]
    place: str
    loss: str | Callable[..., Any] = "cross_entropy"
    args: Any = None
    score: str = "accuracy"
    in_percent: bool = False
    instead: Callable[..., tuple[float, dict[str, float]]] | None = None

    @cached_property
    def binding(self) -> Binding:
        """What its parameters mean.

        Raises:
            PluginError: one cannot be given.
        """
        binding = Binding.of(self.function, ("net", "loader", "device", "criterion", "args", "epoch"), self.place)
        if not binding.takes("net") and not binding.open_ended:
            raise PluginError(f"{self.place}: has no parameter for the model, such as net or model")
        return binding

    def __call__(self, net: nn.Module, loader: Any, device: torch.device) -> tuple[float, dict[str, float]]:
        """Test and return (loss, metrics); the loss is NaN if it gives none.

        Raises:
            OwnReturnError: it returned something else than ``WHAT_TEST_RETURNS``, or an accuracy that is no fraction.
        """
        binding = self.binding
        offered = {"net": net, "loader": loader, "device": device, "args": self.args, "epoch": 0}
        if binding.takes("criterion") and ("criterion" in binding.required or self.loss != "cross_entropy"):
            offered["criterion"] = criterion(self.loss).to(device)
        with _noting_output() as printed:
            returned = binding.call(offered)
        if returned is None and printed() and self.instead is not None:
            return self.instead(net, loader, device)
        loss, metrics = self._measured(returned)
        if "accuracy" in metrics:
            metrics["accuracy"] = self._fraction(metrics["accuracy"])
        return loss, metrics

    def _measured(self, returned: Any) -> tuple[float, dict[str, float]]:
        number = scalar(returned)
        if number is not None:
            return math.nan, {self.score: number}
        if isinstance(returned, Mapping) and returned:
            metrics = metrics_of(returned, "test")
            return metrics.pop("loss", math.nan), metrics
        match returned:
            case (first, Mapping() as rest) if (loss := scalar(first)) is not None:
                metrics = metrics_of(rest, "test")
                metrics.pop("loss", None)
                return loss, metrics
            case (first, second):
                loss, value = scalar(first), scalar(second)
                if loss is not None and value is not None:
                    return loss, {self.score: value}
        shown = repr(returned) if isinstance(returned, int | float | str | tuple | list) else type(returned).__name__
        raise OwnReturnError(f"test returned {shown}; {WHAT_TEST_RETURNS} is expected")

    def _fraction(self, accuracy: float) -> float:
        value = accuracy / 100 if self.in_percent else accuracy
        if not 0 <= value <= 1 + 1e-6:
            raise OwnReturnError(
                f"test returned accuracy {accuracy:g}; "
                + (
                    "a number 0–100 is expected"
                    if self.in_percent
                    else "a fraction 0–1 is expected; --accuracy-in-percent is for a test that returns percent"
                )
            )
        return value


@contextmanager
def _noting_output() -> Iterator[Callable[[], bool]]:
    """Note whether the block prints; what it prints goes on to where it would have gone."""

    class Noting:
        def write(self, text: str) -> int:
            seen.append(bool(text.strip()))
            return target.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(target, name)  # flush, buffer, encoding …

    seen: list[bool] = []
    noting: Any = Noting()
    target = sys.stdout
    sys.stdout = noting
    try:
        yield lambda: any(seen)
    finally:
        if sys.stdout is noting:
            sys.stdout = target
