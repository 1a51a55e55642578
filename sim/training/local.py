"""``train`` and ``test`` in plain PyTorch, independent of clients, rounds and Flower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd

Loader = Iterable[tuple[Tensor, Tensor]]


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
) -> float:
    """Train ``net`` in place with the cross-entropy loss.

    A net in evaluation mode is put into training mode. In a net in training mode, parts in evaluation mode, such as a
    frozen BatchNorm, stay in it.

    Args:
        loader: gives batches (images float32 [B, C, H, W], labels int64 [B]).
        epochs: number of passes over ``loader``.
        lr: learning rate.
        momentum: momentum of SGD; the other optimizers do not use it.
        weight_decay: weight decay of the optimizer, as defined in torch.optim.
        proximal_mu: μ of the proximal term μ/2 ‖w − w₀‖², where w₀ are the weights before training; 0 for no such term
            (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2).
        optimizer: ``sgd``, ``adam`` or ``adamw``, which are SGD, Adam and AdamW of torch.optim.
        max_steps: training stops after this number of steps; 0 for no limit.
        precision: ``fp32``, or ``bf16`` for bfloat16 autocast; weights and optimizer state are always float32.

    Returns:
        The mean cross-entropy in nats per example over all steps, each computed before its step and without the
        proximal term.
    """
    if not _moved(net, device).training:
        net.train()  # a net in training mode keeps the parts that its maker put into evaluation mode
    weights: list[Tensor] = [p for p in net.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights] if proximal_mu else []
    stepper = OPTIMIZERS[optimizer](weights, lr, momentum, weight_decay)
    loss_sum = torch.zeros((), device=device)
    num_examples = 0
    autocast = partial(torch.autocast, device.type, torch.bfloat16)
    batches = chain.from_iterable(repeat(loader, epochs))
    for batch_images, batch_labels in islice(batches, max_steps or None):
        images, labels = batch_images.to(device), batch_labels.to(device)
        for weight in weights:
            weight.grad = None  # as stepper.zero_grad() does, but without the time for its profiler hooks
        with autocast() if precision == "bf16" else nullcontext():
            loss = F.cross_entropy(net(images), labels)
        objective = loss
        if proximal_mu:
            distance = torch.stack([(p - p0).square().sum() for p, p0 in zip(weights, start, strict=True)])
            objective = loss + proximal_mu / 2 * distance.sum()
        objective.backward()
        stepper.step()
        loss_sum.add_(loss.detach(), alpha=len(labels))
        num_examples += len(labels)
    return float(loss_sum) / num_examples


class Stepper(Protocol):
    """What training needs of an optimizer."""

    def zero_grad(self) -> None:
        """Drop all gradients."""

    def step(self) -> Any:
        """Take one step."""


class Sgd:
    """``torch.optim.SGD`` through its functional form ``torch.optim.sgd.sgd``: the same steps, to the bit.

    At its first step the class imports PyTorch's compiler, which takes a second in each process.
    """

    def __init__(self, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        self._weights = weights
        self._settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self._buffers: list[Tensor | None] = [None] * len(weights)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step the weights that have a gradient."""
        used = [index for index, weight in enumerate(self._weights) if weight.grad is not None]
        grads = [grad for weight in self._weights if (grad := weight.grad) is not None]
        buffers = [self._buffers[index] for index in used]
        sgd(
            [self._weights[index] for index in used],
            grads,
            buffers,
            has_sparse_grad=any(grad.is_sparse for grad in grads),
            dampening=0.0,
            nesterov=False,
            maximize=False,
            **self._settings,
        )
        for index, buffer in zip(used, buffers, strict=True):
            self._buffers[index] = buffer


OPTIMIZERS: dict[str, Callable[[list[Tensor], float, float, float], Stepper]] = {
    "sgd": Sgd,
    "adam": lambda weights, lr, _, decay: torch.optim.Adam(weights, lr=lr, weight_decay=decay),
    "adamw": lambda weights, lr, _, decay: torch.optim.AdamW(weights, lr=lr, weight_decay=decay),
}


@dataclass(frozen=True)
class TestSums:
    """The sums of a test: cross-entropy in nats, number of correct predictions, number of examples."""

    loss: float
    num_correct: float
    num_examples: int


def test(net: nn.Module, loader: Loader, device: torch.device) -> tuple[float, float]:
    """Return (mean cross-entropy in nats per example, accuracy as a fraction 0–1) of ``net`` over ``loader``."""
    sums = test_sums(net, loader, device)
    return sums.loss / sums.num_examples, sums.num_correct / sums.num_examples


@torch.no_grad()
def test_sums(net: nn.Module, loader: Loader, device: torch.device) -> TestSums:
    """Return the sums from which ``test`` computes its means."""
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    num_correct = torch.zeros((), dtype=torch.int64, device=device)
    num_examples = 0
    with evaluating(_moved(net, device)):
        for batch_images, batch_labels in loader:
            images, labels = batch_images.to(device), batch_labels.to(device)
            logits = net(images)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            num_correct += (logits.argmax(1) == labels).sum()
            num_examples += len(labels)
    return TestSums(float(loss_sum), int(num_correct), num_examples)


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


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto`` (a GPU if this process sees one, otherwise the CPU), ``cpu`` or ``cuda``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
