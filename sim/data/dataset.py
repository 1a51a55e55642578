"""Data sets: images uint8 [N, H, W, C] and labels int64 [N], decoded once and memory-mapped afterwards.

Each data set is stored in the cache (``$SIM_CACHE``, by default ``~/.cache/sim``) as plain .npy files, which every
process maps read-only, so that nothing is decoded, pickled or copied for a client. The images are stored as NHWC;
their NCHW view has PyTorch's memory format channels_last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.config.run_config import TrainingConfig
from sim.data.cache import cached, save_array
from sim.data.sources import by_name
from sim.data.sources.by_name import Loaded
from sim.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Images uint8 [N, H, W, C] in 0–255 and labels int64 [N] in 0…num_classes−1."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set, the names of its classes, and the cache folder from which it is mapped."""

    folder: Path
    train: Examples
    test: Examples
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape of one image as models get it: (C, H, W)."""
        _, height, width, channels = self.train.images.shape
        return channels, height, width


def load_dataset(config: TrainingConfig) -> Dataset:
    """Return the configured data set; it is loaded from its source only if it is not in the cache.

    Raises:
        DataError: the source is missing, damaged, inconsistent or too large, or the cache cannot be written.
        PluginError: the user's own function cannot be imported.
    """
    try:
        key, make = by_name.find(config)
        folder = cached("data", {"dataset": config.dataset, **key}, lambda target: _store(target, make()))
    except MemoryError as error:
        raise DataError(
            f"--dataset {config.dataset}: does not fit into the memory of this machine ({error or 'MemoryError'}); use "
            "fewer examples or a smaller --image-size"
        ) from error
    return open_dataset(folder)


def open_dataset(folder: Path) -> Dataset:
    """Memory-map a data set in the cache read-only.

    Raises:
        DataError: its files are damaged.
    """
    try:
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        classes = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the cached data set {folder} is damaged ({error}); delete that folder") from error
    sound = all(
        images.dtype == np.uint8 and images.ndim == 4 and labels.dtype == np.int64 and labels.shape == images.shape[:1]
        for images, labels in ((arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    )
    if not sound:
        raise DataError(f"the cached data set {folder} is damaged (other shapes or dtypes); delete that folder")
    return Dataset(
        folder=folder,
        train=Examples(arrays["train_images"], arrays["train_labels"]),
        test=Examples(arrays["test_images"], arrays["test_labels"]),
        classes=classes,
    )


def _store(folder: Path, loaded: Loaded) -> None:
    train, test, classes = loaded
    for split, (images, labels) in (("train", train), ("test", test)):
        save_array(folder / f"{split}_images.npy", images.astype(np.uint8, copy=False))
        save_array(folder / f"{split}_labels.npy", labels.astype(np.int64))
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
