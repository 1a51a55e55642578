"""``train`` and ``test`` in plain PyTorch, independent of clients, rounds and Flower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from sim.training.losses import METRICS, Loss, Metric, cross_entropy, ignores, inputs_and_target, num_labelled
from sim.training.step_hooks import own_step

Loader = Iterable[Any]


def train(
    net: nn.Module,
    loader: Loader,
    epochs: int,
    device: torch.device,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal_mu: float = 0.0,
    optimizer: str = "sgd",
    max_steps: int = 0,
    precision: str = "fp32",
    clip_grad_norm: float | None = None,
    loss: Loss = cross_entropy,
) -> float | None:
    """Train ``net`` in place.

    A net in evaluation mode is put into training mode. In a net in training mode, parts in evaluation mode, such as a
    frozen BatchNorm, stay in it.

    Args:
        loader: gives batches: lists of the inputs of ``net`` and the target, or dicts (see ``inputs_and_target``).
        epochs: number of passes over ``loader``.
        lr: learning rate.
        momentum: momentum of SGD; the other optimizers do not use it.
        weight_decay: weight decay of the optimizer, as defined in torch.optim.
        proximal_mu: μ of the proximal term μ/2 ‖w − w₀‖², where w₀ are the weights before training; 0 for no such term
            (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2).
        optimizer: ``sgd``, ``adam`` or ``adamw``, which are SGD, Adam and AdamW of torch.optim.
        max_steps: training stops after this number of steps; 0 for no limit.
        precision: ``fp32``, or ``bf16`` for bfloat16 autocast; weights and optimizer state are always float32.
        clip_grad_norm: a gradient, of the proximal term too, whose norm over all parameters is larger is scaled down to
            it; None for no limit.
        loss: function (outputs, target) → mean loss of the batch; the cross-entropy in nats by default.

    Returns:
        The mean loss per example over all steps, each computed before its step and without the proximal term; None
        where the loader gave no batch, or none with a label that the loss does not ignore.
    """
    if not _moved(net, device).training:
        net.train()  # a net in training mode keeps the parts that its maker put into evaluation mode
    weights: list[Tensor] = [p for p in net.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights] if proximal_mu else []
    stepper = OPTIMIZERS[optimizer](weights, lr, momentum, weight_decay)
    loss_sum = torch.zeros((), device=device)
    steps: list[tuple[Tensor, int, bool]] = []  # loss, examples, and whether it is NaN without a label
    autocast = partial(torch.autocast, device.type, torch.bfloat16)
    batches = chain.from_iterable(repeat(loader, epochs))
    for batch in islice(batches, max_steps or None):
        inputs, named, target = on_device(batch, device)
        for weight in weights:
            weight.grad = None  # as stepper.zero_grad() does, but without the time for its profiler hooks
        with autocast() if precision == "bf16" else nullcontext():
            batch_loss = loss(net(*inputs, **named), target)
        objective = batch_loss
        if proximal_mu:
            distance = torch.stack([(p - p0).square().sum() for p, p0 in zip(weights, start, strict=True)])
            objective = batch_loss + proximal_mu / 2 * distance.sum()
        objective.backward()
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(weights, clip_grad_norm)
        stepper.step()
        steps.append((batch_loss.detach(), len(target), ignores(loss, target)))
        loss_sum.add_(steps[-1][0], alpha=len(target))
    total = float(loss_sum)
    if math.isnan(total) and all(bool(weight.isfinite().all()) for weight in weights):
        # The loss of a batch without any label is NaN, but its gradient is 0, and not NaN.
        steps = [(each, count, may_be) for each, count, may_be in steps if not (may_be and math.isnan(each))]
        total = sum(float(each) * count for each, count, _ in steps)
    num_examples = sum(count for _, count, _ in steps)
    return total / num_examples if num_examples else None


class Stepper(Protocol):
    """What training needs of an optimizer."""

    def zero_grad(self) -> None:
        """Drop all gradients."""

    def step(self) -> Any:
        """Take one step."""


class Sgd:
    """The steps of ``torch.optim.SGD``, to the bit, without its imports.

    A step of ``torch.optim.SGD`` imports PyTorch's compiler, which takes a second in each process. The functional form
    ``torch.optim.sgd.sgd`` does not.
    """

    def __init__(self, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        self._weights = weights
        self._settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups = [{"params": weights, **self._settings}]  # as those of an Optimizer
        self._buffers: list[Tensor | None] = [None] * len(weights)
        # What PyTorch would choose as well, but only after it has looked at each tensor, in each step.
        self._foreach = False if all(weight.device.type == "cpu" for weight in weights) else None

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step the weights that have a gradient."""
        with own_step(self):
            self._step()

    def _step(self) -> None:
        weights, buffers = self._weights, self._buffers
        grads = [grad for weight in weights if (grad := weight.grad) is not None]
        used = None
        if len(grads) < len(weights):
            used = [index for index, weight in enumerate(weights) if weight.grad is not None]
            weights, buffers = [weights[index] for index in used], [buffers[index] for index in used]
        sgd(
            weights,
            grads,
            buffers,
            has_sparse_grad=any(grad.is_sparse for grad in grads),
            foreach=self._foreach,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            **self._settings,
        )
        for index, buffer in zip(used or (), buffers, strict=False):
            self._buffers[index] = buffer


OPTIMIZERS: dict[str, Callable[[list[Tensor], float, float, float], Stepper]] = {
    "sgd": Sgd,
    "adam": lambda weights, lr, _, decay: torch.optim.Adam(weights, lr=lr, weight_decay=decay),
    "adamw": lambda weights, lr, _, decay: torch.optim.AdamW(weights, lr=lr, weight_decay=decay),
}


@dataclass(frozen=True)
class TestSums:
    """What a part of a test adds to its means: sums over examples, and their number.

    Attributes:
        loss: in nats for a cross-entropy; NaN where it was not measured.
        metrics: name → sum of a value over the examples, or the value itself.
        num_examples: also those without a label.
        loss_weight: what the sum of the loss is divided by.
        weight: what those of the metrics are divided by, see ``num_labelled``.
        are_means: nothing is a sum: these are the values of the whole test.
    """

    loss: float
    metrics: dict[str, float]
    num_examples: int
    loss_weight: float = 1
    weight: float = 1
    are_means: bool = True


def means(parts: Sequence[TestSums]) -> tuple[float, dict[str, float]]:
    """Return the mean loss and metrics over all parts of a test; NaN and none where no example has a label."""
    weight, loss_weight = sum(part.weight for part in parts), sum(part.loss_weight for part in parts)
    found = {}
    for name in parts[0].metrics if weight else ():
        value = sum(part.metrics[name] for part in parts) / weight
        after = METRICS[name].after if name in METRICS and not parts[0].are_means else None
        found[name] = value if after is None else after(value)
    return sum(part.loss for part in parts) / loss_weight if loss_weight else math.nan, found


def test(net: nn.Module, loader: Loader, device: torch.device) -> tuple[float, float]:
    """Return (mean cross-entropy in nats per example, accuracy as a fraction 0–1) of ``net`` over ``loader``."""
    loss, metrics = means([evaluation_sums(net, loader, device)])
    return loss, metrics.get("accuracy", math.nan)


@torch.no_grad()
def evaluation_sums(
    net: nn.Module,
    loader: Loader,
    device: torch.device,
    loss: Loss = cross_entropy,
    metrics: Sequence[str | tuple[str, Callable[..., Any]]] = ("accuracy",),
) -> TestSums:
    """Return the sums from which ``test`` computes its means.

    Args:
        metrics: names in ``METRICS``, or (name, function of the outputs and targets of all examples).
    """
    loss_sum, loss_weight, weight = torch.zeros(3, dtype=torch.float64, device=device)
    chosen = [(m, METRICS[m]) if isinstance(m, str) else (m[0], Metric(whole=m[1])) for m in metrics]
    sums: dict[str, Any] = {name: 0 for name, _ in chosen}
    kept: list[tuple[Tensor, Tensor]] = []
    num_examples = 0
    with evaluating(_moved(net, device)):
        for batch in loader:
            inputs, named, target = on_device(batch, device)
            outputs = net(*inputs, **named)
            labelled, leaves_out = num_labelled(outputs, target), ignores(loss, target)
            if outputs.ndim == 2 and target.ndim == 1:
                loss_sum += loss(outputs, target, reduction="sum")
            else:
                mean = loss(outputs, target).double()
                loss_sum += torch.where(labelled > 0, mean * labelled, 0) if leaves_out else mean * len(target)
            loss_weight += labelled if leaves_out else len(target)
            weight += labelled
            for name, metric in chosen:
                if metric.batch is not None:
                    sums[name] += metric.batch(outputs, target)
            if any(metric.whole is not None for _, metric in chosen):
                kept.append((outputs.float().cpu(), target.cpu()))
            num_examples += len(target)
    whole = {name: metric.whole for name, metric in chosen if metric.whole is not None}
    if not whole:
        values = {n: float(value) for n, value in sums.items()}
        return TestSums(float(loss_sum), values, num_examples, float(loss_weight), float(weight), are_means=False)
    if not weight:
        return TestSums(float(loss_sum / loss_weight), {}, num_examples)
    outputs, target = (torch.cat(parts) for parts in zip(*kept, strict=True))
    values = {name: float(sums[name]) / float(weight) for name, _ in chosen}
    values = {n: after(v) if (after := METRICS[n].after if n in METRICS else None) else v for n, v in values.items()}
    values |= {name: float(function(outputs, target)) for name, function in whole.items()}
    return TestSums(float(loss_sum / loss_weight), values, num_examples)


def on_device(batch: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return the inputs and the target of a batch on ``device``, as ``inputs_and_target`` does."""
    inputs, named, target = inputs_and_target(batch)
    to = partial(_to, device=device)
    return tuple(map(to, inputs)), {name: to(value) for name, value in named.items()}, to(target)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put ``net`` into evaluation mode inside the block; after it, each module is in the mode in which it was."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _moved(net: nn.Module, device: torch.device) -> nn.Module:
    """Return ``net`` on ``device``; ``net.to`` is called only if it is needed, because it is slow."""
    first = next(net.parameters(), None)
    return net if first is not None and first.device == device else net.to(device)
