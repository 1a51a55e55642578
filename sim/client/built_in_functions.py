"""The built-in training and test with the user's loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sim.training import local
from sim.training.losses import LOSSES


@dataclass(frozen=True)
class BuiltInTrain:
    """The built-in training with another loss than the cross-entropy."""

    loss: str | Callable[..., Any]

    def __call__(self, net: nn.Module, loader: Any, epochs: int, device: torch.device, **settings: Any) -> float | None:
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
