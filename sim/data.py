"""Data sets: a source → images uint8 [N, H, W, C] and labels int64 [N], decoded once, memory-mapped after.

Each data set lives in the cache (``$SIM_CACHE``, by default ``~/.cache/sim``) as plain .npy files, which
every process maps read-only: nothing is decoded, pickled or copied for a client. The images lie as NHWC,
whose NCHW view is PyTorch's channels_last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config import TrainingConfig
from sim.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

_FORMAT = 1  # part of every cache key: raise it when what a source produces changes


@dataclass(frozen=True)
class Examples:
    """Images uint8 [N, H, W, C] in 0–255 and labels int64 [N] in 0…num_classes−1."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set, its classes, and the cache folder it is mapped from."""

    folder: Path
    train: Examples
    test: Examples
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image as models see it: (C, H, W)."""
        _, height, width, channels = self.train.images.shape
        return channels, height, width


Source = tuple[Examples, Examples, tuple[str, ...]]


def cache_folder() -> Path:
    """Where decoded data sets and partitions are kept."""
    return Path(os.environ.get("SIM_CACHE") or Path.home() / ".cache" / "sim")


def load(config: TrainingConfig) -> Dataset:
    """Return the configured data set, from the cache if it is there.

    Raises:
        DataError: the source is missing, broken or inconsistent, or the cache cannot be written.
    """
    key, make = _SOURCES[config.dataset](config)
    folder = cached("data", {"dataset": config.dataset, **key}, lambda target: _store(target, make()))
    return open_cached(folder)


def open_cached(folder: Path) -> Dataset:
    """Map a data set of the cache read-only.

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
    return Dataset(
        folder=folder,
        train=Examples(arrays["train_images"], arrays["train_labels"]),
        test=Examples(arrays["test_images"], arrays["test_labels"]),
        classes=classes,
    )


def cached(kind: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """Return the cache folder for ``key``, made by ``make(folder)`` if it is not there.

    The folder appears whole, by a rename; of two processes that make it at once, one wins.

    Raises:
        DataError: the cache cannot be written.
    """
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    folder = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:20]
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        target.chmod(0o755)  # others may share the cache
    except OSError as error:
        raise DataError(f"the cache {cache_folder()} cannot be written: {error.strerror}; set SIM_CACHE") from error
    try:
        make(target)
        (target / "key.json").write_text(text, encoding="utf-8")
        target.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise DataError(f"the cache {folder.parent} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return folder


def _store(folder: Path, source: Source) -> None:
    train, test, classes = source
    for split, examples in (("train", train), ("test", test)):
        np.save(folder / f"{split}_images.npy", np.ascontiguousarray(examples.images, dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", examples.labels.astype(np.int64))
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")


# A source returns (what its content depends on, a function that makes it).


def _digits(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Source]]:
    """1,797 handwritten digits, 8×8 in 17 greys, from scikit-learn, scaled to one channel of image_size².

    The test split is fixed and stratified: 360 examples, whatever the run's seed. Source: E. Alpaydin and
    C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    def make() -> Source:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        scaled = np.stack([_scaled(image, config.image_size) for image in images])[..., None]
        train, test = train_test_split(
            np.arange(len(images)), test_size=360, random_state=0, stratify=digits.target
        )
        train.sort()
        test.sort()
        return (
            Examples(scaled[train], digits.target[train]),
            Examples(scaled[test], digits.target[test]),
            tuple(str(digit) for digit in range(10)),
        )

    return {"image_size": config.image_size}, make


def _scaled(image: Images, size: int) -> Images:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _synthetic(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Source]]:
    """Class-conditional RGB images: a smooth pattern a class, shifted by up to a quarter, under noise.

    The same for every seed of a run, as any data set is. The test split has a fifth as many examples.
    """
    num_examples, num_classes = config.num_examples or 10_000, config.num_classes or 10
    size = config.image_size

    def make() -> Source:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, size=(num_classes, 4, 4, 3), dtype=np.uint8)
        patterns = np.stack([_scaled(pattern, size) for pattern in coarse]).astype(np.float32)

        def draw(count: int) -> Examples:
            labels = rng.permutation(np.arange(count) % num_classes).astype(np.int64)
            images = np.empty((count, size, size, 3), np.uint8)
            shifts = rng.integers(0, max(1, size // 4), size=(count, 2))
            for index, (label, (down, right)) in enumerate(zip(labels, shifts, strict=True)):
                noise = rng.normal(0.0, 48.0, size=(size, size, 3)).astype(np.float32)
                pattern = np.roll(patterns[label], (int(down), int(right)), axis=(0, 1))
                images[index] = np.clip(pattern * 0.6 + 51 + noise, 0, 255)
            return Examples(images, labels)

        train = draw(num_examples)
        return train, draw(max(1, num_examples // 5)), tuple(str(c) for c in range(num_classes))

    return {"image_size": size, "num_examples": num_examples, "num_classes": num_classes}, make


def _imagefolder(config: TrainingConfig) -> tuple[dict[str, Any], Callable[[], Source]]:
    """The user's own images under train/<class>/* and test/<class>/*, as RGB, scaled to image_size²."""
    from sim.imagefolder import decode, list_images

    root = Path(config.data_dir or "")
    listing = list_images(root)
    stats = hashlib.sha256()
    for path, _ in (*listing.samples["train"], *listing.samples["test"]):
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"--data-dir: {path}: {error.strerror}; mend or remove that file") from error
        stats.update(os.fsencode(path.resolve()) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())

    def make() -> Source:
        train, test = (
            Examples(
                decode([path for path, _ in listing.samples[split]], config.image_size),
                np.array([label for _, label in listing.samples[split]], np.int64),
            )
            for split in ("train", "test")
        )
        return train, test, listing.classes

    return {"image_size": config.image_size, "files": stats.hexdigest()}, make


_SOURCES: dict[str, Callable[[TrainingConfig], tuple[dict[str, Any], Callable[[], Source]]]] = {
    "digits": _digits,
    "imagefolder": _imagefolder,
    "synthetic": _synthetic,
}
