"""Trains many clients in one computation: their weights stacked, their batches side by side (torch.func.vmap).

A small model does not use all of a GPU: a kernel takes as long for ten images of one client as for five hundred of
fifty clients. The arithmetic is that of ``local.train`` for each client, up to the order of float sums.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sim.data.batches import DrawnBatch, Resident, add_noise, pixels
from sim.data.columns import mapped
from sim.data.loaders import Loader, ResidentColumns, flipped_target, with_target
from sim.private_names import gradient_hooks
from sim.training.local import OPTIMIZERS
from sim.training.losses import Loss, cross_entropy, ignores, inputs_and_target, is_labelled
from sim.training.weights import WeightLayout, Weights

_OTHER_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Member:
    """One client of a group: the batches that it draws, and a generator for its dropout.

    Attributes:
        constant: is added to the gradient of each parameter.
        pull: and so is the distance of the parameter from its start, times this.
        flipped_classes: the number of classes of an attacker that trains on flipped targets (see
            ``flipped_target``); otherwise 0.
    """

    batches: Sequence[DrawnBatch]
    generator: torch.Generator
    constant: Sequence[Tensor] | None = None
    pull: float = 0.0
    flipped_classes: int = 0


def drawn(loader: Loader, epochs: int, max_steps: int, seed: int, device: torch.device) -> Member:
    """Draw all batches of a client from torch's global generator, in the order in which ``train`` would draw them."""
    batches = chain.from_iterable(loader.drawn_batches() for _ in range(epochs))
    return Member(list(islice(batches, max_steps or None)), torch.Generator(device).manual_seed(seed))


class Trainer:
    """A model prepared for training many copies of it at once."""

    def __init__(
        self,
        net: nn.Module,
        split: Resident | ResidentColumns,
        batch_size: int,
        *,
        channels_last: bool,
        loss: Loss = cross_entropy,
    ) -> None:
        """
        Args:
            net: is copied.
            split: the training examples, on the device.
            batch_size: the most examples in a batch.
            loss: one that can say the loss of each example, as those in ``LOSSES`` can.

        Raises:
            ValueError: this model cannot be vectorized; the message says why.
        """
        self.device = next(net.parameters()).device
        self.split = split
        self.batch_size = batch_size
        self.channels_last = channels_last
        self.loss = loss
        target = split.labels if isinstance(split, Resident) else inputs_and_target(split.batch)[2]
        self.leaves_out = ignores(loss, target) and not bool(is_labelled(target).all())
        self.net = copy.deepcopy(net)
        layout = WeightLayout.of(net)
        self.names = layout.names
        for position, first in layout.tied.items():
            raise ValueError(f"{self.names[position]} and {self.names[first]} are one parameter")
        if layout.has_running_statistics:
            raise ValueError("it keeps buffers, such as BatchNorm's running statistics")
        if not all(parameter.requires_grad for parameter in net.parameters()):
            raise ValueError("some of its parameters are frozen")
        for position in sorted(layout.untrained):
            raise ValueError(f"{self.names[position]} is a buffer")
        for name, parameter in net.named_parameters():
            if any(gradient_hooks(parameter)):
                raise ValueError(f"{name} has hooks on its gradient")
        example = DrawnBatch(torch.zeros(batch_size, dtype=torch.int64))
        self.masks = _mask_dropout(self.net, _read(split, example, channels_last=False), self.device)

    def train(
        self,
        weights: Weights,
        members: Sequence[Member],
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        proximal_mu: float = 0.0,
        optimizer: str = "sgd",
        precision: str = "fp32",
        clip_grad_norm: float | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Train a copy of ``weights`` for each member.

        Returns:
            The new weights, each [K, …] in the order of the state_dict, and each member's mean loss float64 [K], as
            ``local.train`` returns it, but NaN for None.
        """
        count = len(members)
        start = [torch.tensor(array, device=self.device) for array in weights]
        stacked = [w.expand(count, *w.shape).clone().requires_grad_() for w in start]
        params = dict(zip(self.names, stacked, strict=True))
        stepper = OPTIMIZERS[optimizer](list(stacked), lr, momentum, weight_decay)
        schedule = _Schedule.of(members, self.batch_size, self.device)
        noisy = [k for k, member in enumerate(members) if any(batch.noise for batch in member.batches[:1])]
        constants, pull = _stacked([m.constant for m in members], start), members[0].pull
        loss_sums = torch.zeros(count, dtype=torch.float64, device=self.device)
        num_counted = torch.zeros(count, dtype=torch.int64, device=self.device)
        flipped = torch.tensor([member.flipped_classes > 0 for member in members], device=self.device)
        num_classes = max(member.flipped_classes for member in members)
        for number in range(schedule.num_steps):
            chosen, sizes, present = schedule.batch(number), schedule.sizes[number], schedule.present[number]
            batch = _read(self.split, chosen, channels_last=self.channels_last)
            batch = mapped(batch, lambda tensor: tensor.unflatten(0, (count, -1)))
            for k in noisy:
                if number < len(members[k].batches):
                    own = members[k].batches[number]
                    add_noise(batch[0][k, : len(own.chosen)], own)
            if num_classes:
                batch = with_target(batch, lambda target: _flipped_where(flipped, num_classes, target))
            shares, counted = present / sizes.clamp(min=1)[:, None], sizes
            if self.leaves_out:
                shares, num_labelled = _shares(inputs_and_target(batch)[2], present)
                counted = sizes * (num_labelled > 0)
            stepper.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = vmap(self._loss)(params, self._drop(members), batch, shares)
            objective = losses.sum()
            if proximal_mu:
                distance = [(p - p0).square().sum() for p, p0 in zip(stacked, start, strict=True)]
                objective = objective + proximal_mu / 2 * torch.stack(distance).sum()
            objective.backward()
            if clip_grad_norm is not None:
                _clip(stacked, clip_grad_norm)
            _correct(stacked, start, constants, pull)
            done = None if schedule.all_active[number] else sizes == 0
            before = [p.detach().clone() for p in stacked] if done is not None else []
            stepper.step()
            if done is not None:  # momentum and weight decay would move the weights of clients that have ended
                for p, old in zip(stacked, before, strict=True):
                    p.data = torch.where(done.view(-1, *[1] * (p.ndim - 1)), old, p.data)
            loss_sums += losses.detach() * counted
            num_counted += counted
        return [p.detach() for p in stacked], loss_sums / num_counted

    def _loss(self, params: dict[str, Tensor], masks: dict[str, Tensor], batch: Any, shares: Tensor) -> Tensor:
        inputs, named, target = inputs_and_target(batch)
        outputs = functional_call(self.net, {**params, **masks}, inputs, named)
        losses = self.loss(outputs, target, reduction="none")
        if losses.ndim > shares.ndim:  # several values for each example, of which its loss is the mean
            losses = losses.flatten(1).mean(1)
        return (losses * shares).sum()

    def _drop(self, members: Sequence[Member]) -> dict[str, Tensor]:
        """Draw each member's dropout of one step."""
        return {
            name: torch.stack(
                [(torch.rand(shape, generator=m.generator, device=self.device) >= p) / (1 - p) for m in members]
            )
            for name, (shape, p) in self.masks.items()
        }


def _read(split: Resident | ResidentColumns, drawn: DrawnBatch, *, channels_last: bool) -> Any:
    """Return the examples of a batch, in the form in which a loader gives it."""
    if isinstance(split, Resident):
        return [pixels(split.images[drawn.chosen], drawn, channels_last=channels_last), split.labels[drawn.chosen]]
    return mapped(split.batch, lambda column: column[drawn.chosen])


def _shares(target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight of each target [K, B, …] in the mean loss of its batch, and how many labels that has, [K]."""
    labelled = is_labelled(target) * present.view(*present.shape, *[1] * (target.ndim - 2))
    counts = labelled.flatten(1).sum(1)
    return labelled / counts.clamp(min=1).view(-1, *[1] * (target.ndim - 1)), counts


def _flipped_where(flipped: Tensor, num_classes: int, target: Tensor) -> Tensor:
    """Return targets [K, …] that are flipped for the members of which ``flipped``, bool [K], says so."""
    return torch.where(flipped.view(-1, *[1] * (target.ndim - 1)), flipped_target(num_classes, target), target)


def _stacked(constants: Sequence[Sequence[Tensor] | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return the members' constants side by side, each [K, …]; nothing if no member has any."""
    if all(constant is None for constant in constants):
        return []
    whole = [[torch.zeros_like(w) for w in like] if constant is None else constant for constant in constants]
    return [torch.stack(list(each)) for each in zip(*whole, strict=True)]


@torch.no_grad()
def _clip(stacked: Sequence[Tensor], most: float) -> None:
    """Scale down the gradient of each member as ``torch.nn.utils.clip_grad_norm_`` does."""
    grads = [parameter.grad for parameter in stacked if parameter.grad is not None]
    norms = torch.stack([grad[..., None].flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
    factors = (most / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factors.view(-1, *[1] * (grad.ndim - 1)))


@torch.no_grad()
def _correct(stacked: Sequence[Tensor], start: Sequence[Tensor], constants: Sequence[Tensor], pull: float) -> None:
    for index, parameter in enumerate(stacked):
        assert parameter.grad is not None
        if constants:
            parameter.grad.add_(constants[index])
        if pull:
            parameter.grad.add_(parameter - start[index], alpha=pull)


@dataclass(frozen=True)
class _Schedule:
    """The batches of all members, padded to one size.

    Attributes:
        chosen: int64 [S, K·B], positions of examples; 0 where there is none.
        present: float32 [S, K, B], 1 where there is one.
        sizes: int64 [S, K], examples of each batch.
    """

    chosen: Tensor
    shifts: Tensor | None
    flips: Tensor | None
    present: Tensor
    sizes: Tensor
    all_active: list[bool]

    @property
    def num_steps(self) -> int:
        return len(self.chosen)

    def batch(self, number: int) -> DrawnBatch:
        if self.shifts is None or self.flips is None:
            return DrawnBatch(self.chosen[number])
        return DrawnBatch(self.chosen[number], self.shifts[number], self.flips[number])

    @classmethod
    def of(cls, members: Sequence[Member], batch_size: int, device: torch.device) -> _Schedule:
        num_steps, count = max(len(member.batches) for member in members), len(members)
        shape = num_steps, count, batch_size
        chosen = np.zeros(shape, np.int64)
        present = np.zeros(shape, np.float32)
        augmented = any(batch.shifts is not None for member in members for batch in member.batches[:1])
        shifts = np.zeros((*shape, 2), np.int64) if augmented else None
        flips = np.zeros((*shape, 1), np.bool_) if augmented else None
        for k, member in enumerate(members):
            for s, batch in enumerate(member.batches):
                size = len(batch.chosen)
                chosen[s, k, :size] = batch.chosen.numpy()
                present[s, k, :size] = 1
                if shifts is not None and flips is not None and batch.shifts is not None and batch.flips is not None:
                    shifts[s, k, :size] = batch.shifts
                    flips[s, k, :size] = batch.flips
        sizes = present.sum(-1).astype(np.int64)

        def flat(array: np.ndarray[Any, Any] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array).flatten(1, 2).to(device)

        return cls(
            torch.from_numpy(chosen).flatten(1).to(device),
            flat(shifts),
            flat(flips),
            torch.from_numpy(present).to(device),
            torch.from_numpy(sizes).to(device),
            (sizes > 0).all(1).tolist(),
        )


class _Masked(nn.Module):
    """Dropout by a mask that comes from outside; its buffer ``mask`` is replaced in each call."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the mask."""
        return x * self.mask


def _mask_dropout(net: nn.Module, batch: Any, device: torch.device) -> dict[str, tuple[torch.Size, float]]:
    """Put ``_Masked`` in place of each Dropout; return (shape of its input, p) by the name of its mask.

    Raises:
        ValueError: other modules draw random numbers.
    """
    found: dict[str, tuple[torch.Size, float]] = {}
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, _OTHER_DROPOUTS):
            raise ValueError(f"{name} is a {type(module).__name__}; only Dropout can be drawn for each client")
        if type(module) is nn.Dropout and module.training:

            def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                shapes[name] = inputs[0].shape

            hooks.append(module.register_forward_hook(note))
    inputs, named, _ = inputs_and_target(batch)
    with torch.no_grad():
        net(*inputs, **named)
    for hook in hooks:
        hook.remove()
    for name, shape in shapes.items():
        parent, _, child = name.rpartition(".")
        dropout: Any = net.get_submodule(name)
        setattr(net.get_submodule(parent), child, _Masked().to(device))
        found[f"{name}.mask"] = shape, dropout.p
    return found
