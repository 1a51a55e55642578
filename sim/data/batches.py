"""The loader that ``train`` and ``test`` iterate over: it makes batches of tensors from examples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from sim.data.load_dataset import Examples

_PADDING_PIXELS = 4
# What is read and scaled in one operation: 1,024 images, or fewer if they are large.
_BLOCK_EXAMPLES, _BLOCK_BYTES = 1024, 2**24


@dataclass(frozen=True)
class Resident:
    """All examples of a split on one device: images uint8 [N, C, H, W], stored as NHWC, and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, examples: Examples, device: torch.device) -> Self:
        """Move examples to ``device``; on a CPU, nothing is copied and memory-mapped files stay mapped."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of read-only arrays, but nothing writes to them
            images = torch.from_numpy(examples.images).permute(0, 3, 1, 2)
            labels = torch.from_numpy(examples.labels)
        return cls(images.to(device), labels.to(device))


class Drawn:
    """What a loader over examples that were drawn before the run has as its data set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tensors", "columns", "positions") or name in vars(self):
            raise AttributeError(
                f"setting {name} of loader.dataset has no effect, because the examples were drawn before the run; "
                "--data-form items gives the Dataset of your load_data itself"
            )
        super().__setattr__(name, value)


class DrawnImages(Drawn, TensorDataset):
    """The images of a client as the model gets them, and their labels."""


class Batches:
    """Iterates over batches (images float32 [B, C, H, W] in −1…1, labels int64 [B]), as a DataLoader does.

    A batch is made by indexing and scaling on the device that holds the examples. With ``shuffle``, each pass draws a
    new order from torch's global generator.

    Attributes:
        noise: standard deviation of the Gaussian noise that is added to each batch, of pixels from 0 to 1.
        was_read: whether anything has asked for its examples.
    """

    noise = 0.0
    was_read = False

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
        """
        Args:
            indices: int64 [n], the examples to use; None for all.
            augment: ``crop-flip`` shifts each image by up to 4 pixels, fills the border by mirroring, and flips the
                image horizontally with probability 1/2. The random numbers come from torch's global generator.
            channels_last: whether images are in PyTorch's memory format channels_last, which is faster, but
                ``x.view(-1, …)`` in a model fails on it.
        """
        self._resident = examples if isinstance(examples, Resident) else Resident.of(examples, device)
        self._indices = None if indices is None else torch.from_numpy(np.array(indices))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.channels_last = channels_last
        self.augment = augment

    @property
    def num_examples(self) -> int:
        """Return the number of examples in one pass."""
        return len(self._resident.labels if self._indices is None else self._indices)

    @property
    def dataset(self) -> DrawnImages:
        """Return all images as in a batch, float32 [N, C, H, W] in −1…1, and labels int64 [N], on the device."""
        self.was_read = True
        images, labels = self._resident.images, self._resident.labels
        if self._indices is not None:
            chosen = self._indices.to(labels.device)
            images, labels = images[chosen], labels[chosen]
        return DrawnImages(pixels(images, DrawnBatch(labels), channels_last=self.channels_last), labels)

    def with_batch_size(self, batch_size: int) -> Self:
        """Return this loader with another batch size."""
        self.batch_size = batch_size
        return self

    def __len__(self) -> int:
        """Return the number of batches; the last batch may be smaller."""
        return math.ceil(self.num_examples / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.was_read = True
        images, labels = self._resident.images, self._resident.labels
        if self.augment != "none" or self.noise:
            for drawn in self.drawn_batches():
                chosen = drawn.chosen.to(labels.device)
                yield pixels(images[chosen], drawn, channels_last=self.channels_last), labels[chosen]
            return
        # Many batches are read in one operation, which is faster; each batch is a view of the result.
        image_bytes = 4 * math.prod(images.shape[1:])  # as float32
        most = min(_BLOCK_EXAMPLES, _BLOCK_BYTES // image_bytes)
        for block in self._order().to(labels.device).split(self.batch_size * max(1, most // self.batch_size)):
            read = pixels(images[block], DrawnBatch(block), channels_last=self.channels_last), labels[block]
            yield from zip(*(tensor.split(self.batch_size) for tensor in read), strict=True)

    def drawn_batches(self) -> Iterator[DrawnBatch]:
        """Draw the batches of one pass: the examples of each batch and how their images are changed."""
        for batch in self._order().split(self.batch_size):
            shifts = flips = None
            if self.augment == "crop-flip":
                shifts = torch.randint(-_PADDING_PIXELS, _PADDING_PIXELS + 1, (len(batch), 2))
                flips = torch.randint(0, 2, (len(batch), 1), dtype=torch.bool)
            # A seed instead of the noise itself: vectorized training draws all batches of a client at once.
            seed = int(torch.randint(2**63 - 1, ())) if self.noise else 0
            yield DrawnBatch(batch, shifts, flips, self.noise, seed)

    def _order(self) -> Tensor:
        """Return the positions of all examples in the order of a pass, on the CPU."""
        count = self.num_examples
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        return order if self._indices is None else self._indices[order]


@dataclass(frozen=True)
class DrawnBatch:
    """One batch before its examples are read.

    Attributes:
        chosen: int64 [B], positions of its examples in the split, on the CPU.
        shifts: int64 [B, 2] in pixels (down, right), for ``crop-flip``; otherwise None.
        flips: bool [B, 1], for ``crop-flip``; otherwise None.
        noise: standard deviation of the noise that is added, of pixels from 0 to 1.
        noise_seed: from which that noise is drawn.
    """

    chosen: Tensor
    shifts: Tensor | None = None
    flips: Tensor | None = None
    noise: float = 0.0
    noise_seed: int = 0


def pixels(images: Tensor, drawn: DrawnBatch, *, channels_last: bool) -> Tensor:
    """Return images uint8 [B, C, H, W] as the model gets them, float32 in −1…1 plus noise."""
    if drawn.shifts is not None and drawn.flips is not None:
        images = _crop_flip(images, drawn.shifts.to(images.device), drawn.flips.to(images.device))
    if not channels_last:
        images = images.contiguous()
    scaled = images.to(torch.float32).mul_(2 / 255).sub_(1)
    add_noise(scaled, drawn)
    return scaled


def add_noise(scaled: Tensor, drawn: DrawnBatch) -> None:
    """Add the noise of a batch to its images float32 [B, C, H, W], whose pixels are in −1…1."""
    if drawn.noise:
        drawing = torch.Generator(scaled.device).manual_seed(drawn.noise_seed)
        normal = torch.randn(scaled.shape, generator=drawing, device=scaled.device)
        scaled.add_(normal, alpha=2 * drawn.noise)  # from −1 to 1 is twice as far as from 0 to 1


def _crop_flip(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Pad each image of [B, C, H, W] with 4 mirrored pixels, crop it to its original size and flip it."""
    count, _, height, width = images.shape
    device = images.device
    rows = _mirrored(torch.arange(height, device=device) + shifts[:, :1], height)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = _mirrored(torch.where(flips, columns.flip(1), columns) + shifts[:, 1:], width)
    image = torch.arange(count, device=device)[:, None, None]
    # The images are stored as NHWC, so in this order the indexing copies whole pixels.
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
