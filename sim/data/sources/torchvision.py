"""Data sets of torchvision: they are downloaded if they are missing, and read with torchvision's own classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.data.columns import ImageSplit
from sim.errors import DataError


@dataclass(frozen=True)
class Entry:
    """The name of a class in ``torchvision.datasets``, and the folder of its files below the root."""

    class_name: str
    folder: str


DATASETS = {
    "cifar10": Entry("CIFAR10", "cifar-10-batches-py"),
    "cifar100": Entry("CIFAR100", "cifar-100-python"),
    "mnist": Entry("MNIST", "MNIST/raw"),
    "fashion-mnist": Entry("FashionMNIST", "FashionMNIST/raw"),
}


def fingerprint(name: str, root: Path) -> str:
    """Return a hash of the names, sizes and modification times of a data set's files; download missing files.

    Raises:
        DataError: a file cannot be read, or the files cannot be downloaded.
    """
    folder = root / DATASETS[name].folder
    if not folder.is_dir():
        _open(name, root, train=True)
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"--dataset {name}: {path}: {error.strerror}; repair or remove that file") from error
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def read(name: str, root: Path) -> tuple[ImageSplit, ImageSplit, tuple[str, ...]]:
    """Return (images uint8 [N, H, W, C], labels int64 [N]) for training and for testing, and the class names.

    Raises:
        DataError: files are missing and cannot be downloaded, or are damaged.
    """
    train, test = (_open(name, root, train=train) for train in (True, False))
    return _arrays(train), _arrays(test), tuple(str(c) for c in train.classes)


def _open(name: str, root: Path, *, train: bool) -> Any:
    import torchvision.datasets

    made = getattr(torchvision.datasets, DATASETS[name].class_name)
    try:
        return made(str(root), train=train, download=False)
    except Exception as missing:  # noqa: BLE001 - each format raises errors of its own
        try:
            # torchvision shows a progress bar, and downloads a file again if its checksum is wrong.
            return made(str(root), train=train, download=True)
        except Exception as error:
            reason = missing if (root / DATASETS[name].folder).is_dir() else error
            raise DataError(
                f"--dataset {name}: {root / DATASETS[name].folder}: {type(reason).__name__}: {reason}; the "
                f"download failed, too ({error}); without a network, put torchvision's files there (--data-dir is its "
                "root folder), or use --dataset digits, synthetic or imagefolder"
            ) from error


def _arrays(split: Any) -> ImageSplit:
    images = np.asarray(split.data, np.uint8)
    if images.ndim == 3:
        images = images[..., None]
    return images, np.asarray(split.targets, np.int64)
