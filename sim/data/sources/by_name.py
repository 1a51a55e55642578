"""The sources of data sets by name.

A source is a function that takes the config and returns two things: what the content of the data set depends on, which
is its key in the cache, and a function that loads the data set, which is called if the cache does not have that key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import arguments_of
from sim.config.run_config import TrainingConfig
from sim.data.cache import cache_folder
from sim.data.columns import ImageSplit, LoadedColumns
from sim.errors import DataError

Images = tuple[ImageSplit, ImageSplit, tuple[str, ...]]  # train, test, and the names of the classes


Loaded = Images | LoadedColumns


def _digits(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """Handwritten digits from scikit-learn: 1,797 images of 8×8 pixels in 17 grey levels, scaled to image_size².

    The test split is fixed and stratified: 360 examples, which do not depend on the run's seed. Source: E. Alpaydin
    and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    def make() -> Images:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        scaled = np.stack([_scaled(image, config.side) for image in images])[..., None]
        train, test = train_test_split(np.arange(len(images)), test_size=360, random_state=0, stratify=digits.target)
        train.sort()
        test.sort()
        return (
            (scaled[train], digits.target[train]),
            (scaled[test], digits.target[test]),
            tuple(str(digit) for digit in range(10)),
        )

    return {"image_size": config.side}, make


def _scaled(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


_DRAWN_TOGETHER = 2**18  # pixels of synthetic images, of which several float arrays are in memory


def _synthetic(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """Synthetic RGB images: each class has a smooth pattern, which is shifted by up to a quarter and has noise added.

    The images do not depend on the run's seed, like those of any other data set. The number of test examples is a
    fifth of the number of training examples.
    """
    num_examples, num_classes = config.num_examples or 10_000, config.num_classes or 10
    size = config.side
    pixels = np.arange(size)

    def make() -> Images:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, size=(num_classes, 4, 4, 3), dtype=np.uint8)
        patterns = np.stack([_scaled(pattern, size) for pattern in coarse]).astype(np.float32)

        def draw(count: int) -> ImageSplit:
            labels = rng.permutation(np.arange(count) % num_classes).astype(np.int64)
            images = np.empty((count, size, size, 3), np.uint8)
            shifts = rng.integers(0, max(1, size // 4), size=(count, 2))
            together = max(1, _DRAWN_TOGETHER // (size * size))
            for first in range(0, count, together):
                part = slice(first, first + together)
                down, right = ((pixels - shifts[part, axis, None]) % size for axis in (0, 1))
                shifted = patterns[labels[part, None, None], down[:, :, None], right[:, None, :]]
                noise = rng.normal(0.0, 48.0, size=shifted.shape).astype(np.float32)
                images[part] = np.clip(shifted * 0.6 + 51 + noise, 0, 255)
            return images, labels

        train = draw(num_examples)
        return train, draw(max(1, num_examples // 5)), tuple(str(c) for c in range(num_classes))

    return {"image_size": size, "num_examples": num_examples, "num_classes": num_classes}, make


def _imagefolder(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """The user's own images in train/<class>/* and test/<class>/*, converted to RGB and scaled to image_size²."""
    from sim.data.sources.image_folder import decode, list_images

    root = Path(config.data_dir or "")
    listing = list_images(root)
    stats = _state_of(path for path, _ in (*listing.samples["train"], *listing.samples["test"]))

    def make() -> Images:
        train, test = (
            (
                decode([path for path, _ in listing.samples[split]], config.side),
                np.array([label for _, label in listing.samples[split]], np.int64),
            )
            for split in ("train", "test")
        )
        return train, test, listing.classes

    return {"image_size": config.side, "files": stats}, make


def _torchvision(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """CIFAR-10 and CIFAR-100 (Krizhevsky 2009), MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017)."""
    from sim.data.sources import torchvision

    root = Path(config.data_dir) if config.data_dir else cache_folder() / "torchvision"
    key = {"image_size": config.side, "files": torchvision.fingerprint(config.dataset, root)}
    return key, lambda: resized(torchvision.read(config.dataset, root), config.side)


def _tables(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """The tables of scikit-learn: see ``sim.data.sources.scikit_learn``."""
    from sim.data.sources.scikit_learn import TABLES

    return {}, TABLES[config.dataset]


def _fedprox(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """Synthetic(α, β) of Li et al. (2020): see ``sim.data.sources.fedprox``."""
    from sim.data.sources.fedprox import Arguments, fedprox_synthetic

    arguments = arguments_of(Arguments, config.dataset_args, "--dataset", config.dataset)
    return {"arguments": asdict(arguments)}, lambda: fedprox_synthetic(arguments)


def _text(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """The user's own texts: see ``sim.data.sources.text``."""
    from sim.data.sources.text import Arguments, list_texts, read_texts

    arguments = arguments_of(Arguments, config.dataset_args, "--dataset", config.dataset)
    paths = list_texts(Path(config.data_dir or ""))
    return {"arguments": asdict(arguments), "files": _state_of(paths)}, lambda: read_texts(paths, arguments)


def _csv(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """The user's own tables: see ``sim.data.sources.table``."""
    from sim.data.sources.table import Arguments, paths_of, read_tables

    arguments = arguments_of(Arguments, config.dataset_args, "--dataset", config.dataset)
    root, target, clients = Path(config.data_dir or ""), config.target or "", config.client_column
    key = {"arguments": asdict(arguments), "target": target, "clients": clients, "files": _state_of(paths_of(root))}
    return key, lambda: read_tables(root, target, clients, arguments)


def _leaf(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """The user's own files of LEAF: see ``sim.data.sources.leaf``."""
    from sim.data.sources.leaf import Arguments, paths_of, read

    arguments = arguments_of(Arguments, config.dataset_args, "--dataset", config.dataset)
    paths = paths_of(Path(config.data_dir or ""))
    state = {split: _state_of(files) for split, files in paths.items()}
    return {"arguments": asdict(arguments), "files": state}, lambda: read(paths, arguments)


def _state_of(paths: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and modification times of files, and of those to which names are links.

    Raises:
        DataError: a file cannot be read.
    """
    stats = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"--data-dir: {path}: {error.strerror}; repair or remove that file") from error
        names = b"\0".join(map(os.fsencode, (path.absolute(), path.resolve())))
        stats.update(names + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return stats.hexdigest()


def resized(loaded: Images, size: int) -> Images:
    """Return the images of both splits scaled to ``size``² pixels."""
    train, test, classes = loaded

    def scale(split: ImageSplit) -> ImageSplit:
        images, labels = split
        if images.shape[1:3] == (size, size):
            return split
        channels = images.shape[-1]
        flat = (np.dstack([_scaled(image[..., c], size) for c in range(channels)]) for image in images)
        return np.stack(list(flat)), labels

    return scale(train), scale(test), classes


@dataclass(frozen=True)
class _NoArguments:
    """The arguments of all other data sets."""


Source = Callable[[TrainingConfig], tuple[dict[str, Any], Callable[[], Loaded]]]
SOURCES: dict[str, Source] = {
    "digits": _digits,
    "imagefolder": _imagefolder,
    "synthetic": _synthetic,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
    "mnist": _torchvision,
    "fashion-mnist": _torchvision,
    "breast-cancer": _tables,
    "wine": _tables,
    "diabetes": _tables,
    "fedprox-synthetic": _fedprox,
    "text": _text,
    "csv": _csv,
    "leaf": _leaf,
}
_WITH_ARGUMENTS = ("fedprox-synthetic", "text", "csv", "leaf")


def find(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Loaded]]:
    """Return what the content of the configured data set depends on, and a function that loads it.

    Raises:
        ConfigError: ``--dataset-args`` has an argument that the data set does not take.
        DataError: its files are missing or damaged.
    """
    if config.dataset not in _WITH_ARGUMENTS:
        arguments_of(_NoArguments, config.dataset_args, "--dataset", config.dataset)
    return SOURCES[config.dataset](config)
