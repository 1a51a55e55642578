"""Losses and metrics by name, for outputs and targets of any shape.

Outputs of a classifier are logits: [B, K] for targets [B]; [B, K, …] or [B, …, K] for targets [B, …], as in
segmentation and text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sim.data.columns import TARGET_KEYS

Loss = Callable[..., Tensor]  # (outputs, target, reduction="mean") → a scalar
IGNORED_LABEL = -100  # a target that is no class, for PyTorch's cross-entropy as well as for ``nll``


def _per_class(outputs: Tensor, target: Tensor) -> Tensor:
    """Return logits with the classes in dimension 1, where ``cross_entropy`` expects them.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if outputs.ndim == target.ndim + 1:
        if outputs.shape[:1] + outputs.shape[2:] == target.shape:
            return outputs
        if outputs.shape[:-1] == target.shape:
            return outputs.movedim(-1, 1)
    raise ValueError(f"outputs {tuple(outputs.shape)} are no logits for targets {tuple(target.shape)}")


def cross_entropy(outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits; targets are classes int64, or probabilities of the outputs' shape."""
    if outputs.ndim != 2 or target.ndim != 1:
        outputs = outputs if outputs.shape == target.shape else _per_class(outputs, target)
        if outputs.is_cuda and reduction != "none":
            outputs, target = in_rows(outputs, target)
    return F.cross_entropy(outputs, target, reduction=reduction)


def nll(outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood in nats of log-probabilities, as a model that ends with ``log_softmax`` returns them."""
    outputs = _per_class(outputs, target)
    if outputs.is_cuda and reduction != "none":
        outputs, target = in_rows(outputs, target)
    return F.nll_loss(outputs, target, reduction=reduction)


def in_rows(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs [B, K, …] and targets [B, …], or of the outputs' shape, with one row for each target.

    CUDA's kernel for more dimensions adds in an order that changes from call to call; that for rows does not.
    """
    rows = outputs.movedim(1, -1).flatten(0, -2)
    return rows, target.movedim(1, -1).flatten(0, -2) if outputs.shape == target.shape else target.flatten()


def aligned(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs [B, 1] and targets [B] (or the other way round) in one shape, and targets in the outputs' dtype.

    Raises:
        ValueError: they hold different numbers of values.
    """
    if outputs.shape != target.shape:
        if outputs.numel() != target.numel():
            raise ValueError(f"outputs {tuple(outputs.shape)} do not fit targets {tuple(target.shape)}")
        outputs = outputs.view(target.shape)
    return outputs, target if target.is_floating_point() else target.to(outputs.dtype)


def _on_values(function: Callable[..., Tensor]) -> Loss:
    def loss(outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        outputs, target = aligned(outputs, target)
        return function(outputs, target, reduction=reduction)

    return loss


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "bce": _on_values(F.binary_cross_entropy_with_logits),
    "mse": _on_values(F.mse_loss),
    "mae": _on_values(F.l1_loss),
    "huber": _on_values(F.huber_loss),
    "nll": nll,
}

# What a program's own train may ask for as its criterion.
CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "bce": nn.BCEWithLogitsLoss,
    "mse": nn.MSELoss,
    "mae": nn.L1Loss,
    "huber": nn.HuberLoss,
    "nll": nn.NLLLoss,
}


@dataclass(frozen=True)
class Metric:
    """A metric of the built-in test.

    Attributes:
        batch: (outputs, target) of one batch → the sum over its examples of a value, which is 0 where there is no
            label; None if only ``whole`` can say it.
        whole: (outputs, target) of all examples → the value; None if the mean over examples is the value.
        after: the mean over examples → the value, such as the root of a mean square.
    """

    batch: Callable[[Tensor, Tensor], Tensor] | None = None
    whole: Callable[[Tensor, Tensor], float] | None = None
    after: Callable[[float], float] | None = None


def _mean_over_rest(values: Tensor) -> Tensor:
    """Return Σ over examples of the mean of each example's values, float64."""
    values = values.to(torch.float64)
    return values.sum() if values.ndim == 1 else values.flatten(1).mean(1).sum()


def is_labelled(target: Tensor) -> Tensor:
    """Return which classes are not ``IGNORED_LABEL``, bool; in uint8, 156 would be equal to it."""
    return target.long() != IGNORED_LABEL


def ignores(loss: Loss, target: Tensor) -> bool:
    """Return whether ``IGNORED_LABEL`` is no class for this loss, but a target that is left out of its mean."""
    return loss in (cross_entropy, nll) and not target.is_floating_point()


def num_labelled(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the number of examples with a label; one with several targets counts as the share that has one."""
    has_classes = not target.is_floating_point() and outputs.numel() != target.numel()
    return _mean_over_rest(is_labelled(target) if has_classes else torch.ones(len(target), device=target.device))


def _correct(outputs: Tensor, target: Tensor) -> Tensor:
    if outputs.ndim == 2 and target.ndim == 1 and outputs.shape[1] > 1:
        return (outputs.argmax(1) == target).sum()  # an integer, so that its sum is exact
    if outputs.ndim == target.ndim + 1 and not target.is_floating_point():
        return _mean_over_rest(_per_class(outputs, target).argmax(1) == target)
    outputs, target = aligned(outputs, target)
    return _mean_over_rest((outputs > 0) == (target > 0.5))


def _in_top5(outputs: Tensor, target: Tensor) -> Tensor:
    logits = _per_class(outputs, target)
    best = logits.topk(min(5, logits.shape[1]), 1).indices
    return _mean_over_rest((best == target.unsqueeze(1)).any(1))


def _difference(power: int) -> Callable[[Tensor, Tensor], Tensor]:
    def batch(outputs: Tensor, target: Tensor) -> Tensor:
        outputs, target = aligned(outputs, target)
        return _mean_over_rest((outputs - target).abs() ** power)

    return batch


def _entropy(outputs: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(_per_class(outputs, target), target, reduction="none")
    return _mean_over_rest(losses)


def _labelled(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets that have a label, [N], and their logits [N, K]."""
    chosen = is_labelled(target)
    return _per_class(outputs, target).movedim(1, -1)[chosen], target[chosen]


def _f1(outputs: Tensor, target: Tensor) -> float:
    from sklearn.metrics import f1_score

    if outputs.ndim == target.ndim + 1 and outputs.shape[1] > 1:
        outputs, target = _labelled(outputs, target)
        return float(f1_score(target, outputs.argmax(1), average="macro")) if len(target) else math.nan
    outputs, target = aligned(outputs, target)
    many = target.ndim > 1 and target.shape[1] > 1
    return float(f1_score(target > 0.5, outputs > 0, average="macro" if many else "binary", zero_division=0))


def _auroc(outputs: Tensor, target: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    if outputs.ndim == target.ndim + 1 and outputs.shape[1] > 1:
        outputs, target = _labelled(outputs, target)
        shares = outputs.double().softmax(1)
        if not len(target):
            return math.nan
        if shares.shape[1] == 2:
            return float(roc_auc_score(target, shares[:, 1]))
        return float(roc_auc_score(target, shares, multi_class="ovr", labels=range(shares.shape[1])))
    outputs, target = aligned(outputs, target)
    return float(roc_auc_score(target > 0.5, outputs.sigmoid()))


def _r2(outputs: Tensor, target: Tensor) -> float:
    from sklearn.metrics import r2_score

    outputs, target = aligned(outputs, target)
    return float(
        r2_score(target.flatten(1) if target.ndim > 1 else target, outputs.flatten(1) if outputs.ndim > 1 else outputs)
    )


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_correct),
    "top5": Metric(_in_top5),
    "f1": Metric(whole=_f1),
    "auroc": Metric(whole=_auroc),
    "mae": Metric(_difference(1)),
    "rmse": Metric(_difference(2), after=lambda mean: mean**0.5),
    "r2": Metric(whole=_r2),
    "perplexity": Metric(_entropy, after=lambda mean: float(torch.tensor(mean, dtype=torch.float64).exp())),
}


def inputs_and_target(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return what a model gets of a batch, as positional and keyword arguments, and the target.

    A list is (inputs …, target); in a dict, the target is ``label``, ``labels``, ``target``, ``targets`` or ``y``.

    Raises:
        ValueError: there is no target.
    """
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return tuple(batch[:-1]), {}, batch[-1]
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is not None:
            return (), {name: value for name, value in batch.items() if name != key}, batch[key]
    raise ValueError(f"a batch of type {type(batch).__name__} says no target; use your own train and test")
