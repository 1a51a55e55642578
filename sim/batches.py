"""Examples → batches of tensors: the loader that ``train`` and ``test`` iterate over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from sim.data import Examples

_PADDING = 4


class Batches:
    """Iterates over (images float32 [B, C, H, W] in −1…1, labels int64 [B]), as a DataLoader would.

    The examples are copied to the device as uint8 when they are first needed; a batch is an index operation
    and a scaling there. With ``shuffle`` the order is drawn anew for each pass from torch's global generator.
    """

    def __init__(
        self,
        examples: Examples,
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
        self._examples = examples
        self._indices = indices
        self._device = device
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.channels_last = channels_last
        self.augment = augment

    @property
    def num_examples(self) -> int:
        """Number of examples in one pass."""
        return len(self._examples) if self._indices is None else len(self._indices)

    @cached_property
    def dataset(self) -> TensorDataset:
        """All images uint8 [N, C, H, W] and labels int64 [N], on the device."""
        chosen = slice(None) if self._indices is None else self._indices
        images = torch.from_numpy(np.array(self._examples.images[chosen])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.array(self._examples.labels[chosen]))
        if not self.channels_last:
            images = images.contiguous()
        return TensorDataset(images.to(self._device), labels.to(self._device))

    def __len__(self) -> int:
        """Number of batches; the last one may be smaller."""
        return math.ceil(self.num_examples / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.dataset.tensors
        if self.shuffle:
            order = torch.randperm(len(labels)).to(labels.device)
        for start in range(0, len(labels), self.batch_size):
            end = start + self.batch_size
            chosen = order[start:end] if self.shuffle else slice(start, end)
            batch = _crop_flip(images[chosen]) if self.augment == "crop-flip" else images[chosen]
            if not self.channels_last:
                batch = batch.contiguous()
            yield batch.to(torch.float32).mul_(2 / 255).sub_(1), labels[chosen]


def _crop_flip(images: Tensor) -> Tensor:
    """Pad by 4 mirrored pixels, crop to the old size and flip, each image of [B, C, H, W] on its own."""
    count, _, height, width = images.shape
    device = images.device
    shifts = torch.randint(-_PADDING, _PADDING + 1, (count, 2)).to(device)
    flips = torch.randint(0, 2, (count, 1), dtype=torch.bool).to(device)
    rows = _mirrored(torch.arange(height, device=device) + shifts[:, :1], height)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = _mirrored(torch.where(flips, columns.flip(1), columns) + shifts[:, 1:], width)
    number = torch.arange(count, device=device)[:, None, None]
    # NHWC is how the images lie, so that this reads whole pixels.
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
