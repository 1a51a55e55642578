"""Examples → batches of tensors: the loader that ``train`` and ``test`` iterate over."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from sim.data.examples import Examples

_PADDING = 4
_BLOCK = 1024  # images whose pixels are read at once


@dataclass(frozen=True)
class Resident:
    """All examples of a split on a device: images uint8 [N, C, H, W] that lie as NHWC, labels int64 [N]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, examples: Examples, device: torch.device) -> Self:
        """Bring examples to ``device``; on a CPU that copies nothing, mapped files stay mapped."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mapped read-only, and nobody writes
            images = torch.from_numpy(examples.images).permute(0, 3, 1, 2)
            labels = torch.from_numpy(examples.labels)
        return cls(images.to(device), labels.to(device))


class Batches:
    """Iterates over (images float32 [B, C, H, W] in −1…1, labels int64 [B]), as a DataLoader would.

    A batch is an index operation and a scaling on the device where the examples are. With ``shuffle`` the order is
    drawn anew for each pass from torch's global generator.
    """

    def __init__(
        self,
        examples: Examples | Resident,
        indices: NDArray[np.int64] | None,
        batch_size: int,
        device: torch.device,
        *,
        shuffle: bool,
        channels_last: bool,
        augment: str = "none",
    ) -> None:
        """Take the examples at ``indices``, all of them for None.

        Args:
            augment: ``crop-flip`` shifts each image by up to 4 pixels, its edges mirrored, and mirrors every second
                one; drawn anew for each batch from torch's global generator.
            channels_last: the memory order of the images; faster, but ``x.view(-1, …)`` in a model fails on it.
        """
        self._resident = examples if isinstance(examples, Resident) else Resident.of(examples, device)
        self._indices = None if indices is None else torch.from_numpy(np.array(indices)).to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.channels_last = channels_last
        self.augment = augment

    @property
    def num_examples(self) -> int:
        """Number of examples in one pass."""
        return len(self._resident.labels if self._indices is None else self._indices)

    @property
    def dataset(self) -> TensorDataset:
        """All images uint8 [N, C, H, W] and labels int64 [N], on the device."""
        chosen = slice(None) if self._indices is None else self._indices
        return TensorDataset(self._resident.images[chosen], self._resident.labels[chosen])

    def __len__(self) -> int:
        """Number of batches; the last one may be smaller."""
        return math.ceil(self.num_examples / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._resident.images, self._resident.labels
        if self.augment != "none":
            for step in self.steps():
                yield pixels(images[step.chosen], step, channels_last=self.channels_last), labels[step.chosen]
            return
        # Pixels of many batches are read at once; each batch is a view of them.
        for block in self._order().split(self.batch_size * max(1, _BLOCK // self.batch_size)):
            read = pixels(images[block], Step(block), channels_last=self.channels_last), labels[block]
            yield from zip(*(tensor.split(self.batch_size) for tensor in read), strict=True)

    def steps(self) -> Iterator[Step]:
        """Draw one pass: which examples each batch takes, and how their images are changed."""
        for batch in self._order().split(self.batch_size):
            if self.augment == "crop-flip":
                shifts = torch.randint(-_PADDING, _PADDING + 1, (len(batch), 2))
                yield Step(batch, shifts, torch.randint(0, 2, (len(batch), 1), dtype=torch.bool))
            else:
                yield Step(batch)

    def _order(self) -> Tensor:
        count = self.num_examples
        order = (torch.randperm(count) if self.shuffle else torch.arange(count)).to(self._resident.labels.device)
        return order if self._indices is None else self._indices[order]


@dataclass(frozen=True)
class Step:
    """One batch before its pixels are read: positions int64 [B] in the split, and for ``crop-flip``
    shifts int64 [B, 2] in pixels and flips bool [B, 1]."""

    chosen: Tensor
    shifts: Tensor | None = None
    flips: Tensor | None = None


def pixels(images: Tensor, step: Step, *, channels_last: bool) -> Tensor:
    """Return images uint8 [B, C, H, W] as the model sees them: changed as ``step`` says, float32 in −1…1."""
    if step.shifts is not None and step.flips is not None:
        images = _crop_flip(images, step.shifts.to(images.device), step.flips.to(images.device))
    if not channels_last:
        images = images.contiguous()
    return images.to(torch.float32).mul_(2 / 255).sub_(1)


def _crop_flip(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Pad by 4 mirrored pixels, crop to the old size and flip, each image of [B, C, H, W] on its own."""
    count, _, height, width = images.shape
    device = images.device
    rows = _mirrored(torch.arange(height, device=device) + shifts[:, :1], height)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = _mirrored(torch.where(flips, columns.flip(1), columns) + shifts[:, 1:], width)
    number = torch.arange(count, device=device)[:, None, None]
    # NHWC is how the images lie, so that this reads whole pixels.
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
