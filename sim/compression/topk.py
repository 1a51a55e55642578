"""topk:SHARE – the largest changes only.

Of each array, the ⌈SHARE · n⌉ numbers of largest magnitude are sent with their positions; the others arrive as 0. The
choice is made in each array by itself, as in Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression", ICLR 2018,
arXiv:1712.01887, where a threshold is taken for each layer: layers whose numbers are small are heard, too. Stich,
Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv:1809.07599, analyse it with error feedback.

Bytes: the k positions in ascending order, counted from 0 in C order, each in the fewest bytes of 1, 2, 4 and 8 that
hold n − 1; then the k numbers in the dtype of the array. Of equal magnitudes the one that comes first in the array is
sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.compression.codec import Shape, size_of


@dataclass(frozen=True)
class TopK:
    """The numbers of largest magnitude.

    Attributes:
        share: of the numbers of an array, above 0 and at most 1; exact, because 0.1 · 30 is not 3 in floating point.
    """

    FITS_WEIGHTS: ClassVar[bool] = False

    share: Fraction

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return k positions and k numbers."""
        size = size_of(shape)
        return self._count(size) * (_positions(size).itemsize + dtype.itemsize)

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Return the positions, then the numbers."""
        flat = array.reshape(-1)
        chosen = _largest(np.abs(flat), self._count(flat.size))
        values = flat[chosen].astype(array.dtype.newbyteorder("<"))
        positions = chosen.astype(_positions(flat.size))
        return b"".join([positions.tobytes(), values.tobytes()])

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Put the numbers at their positions, and 0 elsewhere."""
        size = size_of(shape)
        count, kind = self._count(size), _positions(size)
        positions = np.frombuffer(content, kind, count)
        decoded = np.zeros(size, dtype)
        decoded[positions] = np.frombuffer(content, dtype.newbyteorder("<"), count, count * kind.itemsize)
        return decoded.reshape(shape)

    def _count(self, size: int) -> int:
        return math.ceil(self.share * size)


def _positions(size: int) -> np.dtype[Any]:
    """Return the type of the positions in an array of this size."""
    return next(np.dtype(f"<u{width}") for width in (1, 2, 4, 8) if size <= 256**width)


def _largest(magnitudes: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the positions of the largest magnitudes in ascending order; of equal ones the first."""
    least = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    above = np.flatnonzero(magnitudes > least)
    equal = np.flatnonzero(magnitudes == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))
