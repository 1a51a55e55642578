"""A folder of images in train/<class>/* and test/<class>/*: lists and decodes them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SHAPE = "a folder with train/<class>/* and test/<class>/* is needed"


@dataclass(frozen=True)
class Listing:
    """The images of each split as (path, label), ordered by class and file name, and the names of the classes."""

    samples: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]


def list_images(root: Path) -> Listing:
    """List the images and classes below ``root``.

    Raises:
        DataError: a folder is missing, unreadable or empty, or a class is in one split only.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for split in ("train", "test"):
        found[split] = {
            folder.name: [path for path in _entries(folder) if path.suffix.lower() in ENDINGS]
            for folder in _entries(root / split)
            if folder.is_dir()
        }
        if not found[split]:
            raise DataError(f"--data-dir {root}: {split}/ has no class folders; {_SHAPE}")
        for name, paths in found[split].items():
            if not paths:
                raise DataError(
                    f"--data-dir {root}: {split}/{name} has no images; known endings are {', '.join(ENDINGS)}"
                )
    for one, other in (("train", "test"), ("test", "train")):
        alone = sorted(set(found[one]) - set(found[other]))
        if alone:
            raise DataError(
                f"--data-dir {root}: class {', '.join(alone)} is in {one}/ only; both splits need every class"
            )
    classes = tuple(sorted(found["train"]))
    if len(classes) < 2:
        raise DataError(f"--data-dir {root}: only one class, {classes[0]}; at least two are needed")
    samples = {
        split: [(path, label) for label, name in enumerate(classes) for path in by_class[name]]
        for split, by_class in found.items()
    }
    return Listing(samples, classes)


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in sorted(entries, key=lambda e: e.name) if entry.name[0] != "."]
    except OSError as error:
        raise DataError(f"--data-dir: {folder}: {error.strerror}; {_SHAPE}") from None


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read an image, and convert its colours to ``mode`` of Pillow's.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # a named pipe would be read for ever
            raise DataError(f"{path}: is no file")
        with Image.open(path) as opened:
            return _in_8_bits(opened, path).convert(mode)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # each format raises errors of its own
        reason = getattr(error, "strerror", None) or "not a complete image in a known format"
        raise DataError(f"{path}: {reason}") from error


def _in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Return an image with 8 bits per pixel, to which Pillow would clip pixels of 16 bits, and not scale them.

    Raises:
        DataError: its pixels have no known range.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: has pixels of 32 bits, whose range is not known; 8 or 16 bits are")
    return image


def decode(paths: list[Path], size: int) -> NDArray[np.uint8]:
    """Decode images to RGB uint8 [N, size, size, 3].

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def decode_one(index: int) -> None:
        try:
            image = read_image(paths[index])
        except DataError as error:
            raise DataError(f"--data-dir: {error}; repair or remove that file") from error
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        images[index] = np.asarray(image)

    # Threads work in parallel here, because Pillow releases the interpreter lock while it decodes.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        for _ in pool.map(decode_one, range(len(paths))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images
