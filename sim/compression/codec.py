"""What a codec is: it turns an array into bytes whose number follows from shape and dtype alone, and back."""

from __future__ import annotations

import math
import struct
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
_ITEM_BYTES = (2, 4, 8)  # of the floating-point numbers that PyTorch and numpy have in common


class Codec(Protocol):
    """A form in which an array is sent. All numbers in it are little-endian.

    Attributes:
        FITS_WEIGHTS: whole weights may be sent so, not only the differences between weights.
    """

    FITS_WEIGHTS: ClassVar[bool]

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return how many bytes an array takes."""

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Return the bytes that are sent.

        Args:
            array: of floating-point numbers, all finite, at least one.
            rng: for what is rounded at random.
        """

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return what the other end makes of the bytes; all of it is finite."""


def is_compressible(array: NDArray[Any]) -> bool:
    """Return whether an array is sent encoded: floating-point numbers, at least one, all finite.

    A mask of −∞, say, is a constant that must arrive as it is.
    """
    is_float = array.dtype.kind == "f" and array.dtype.itemsize in _ITEM_BYTES
    return is_float and array.size > 0 and bool(np.isfinite(array).all())


def in_range(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers as ``dtype``; one that is too large for it becomes the largest, instead of infinite."""
    most = np.finfo(dtype).max
    limited: NDArray[Any] = np.clip(values, -most, most).astype(dtype)
    return limited


def as_float32(value: float) -> np.float32:
    """Return a number ≥ 0 as float32; one that is too large becomes the largest."""
    return np.float32(min(value, float(np.finfo(np.float32).max)))


def to_bytes(value: np.float32) -> bytes:
    """Return the four bytes of a number."""
    return struct.pack("<f", value)


def size_of(shape: Shape) -> int:
    """Return the number of numbers in an array."""
    return math.prod(shape)
