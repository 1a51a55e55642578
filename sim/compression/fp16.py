"""fp16 – IEEE 754 half precision: 1 bit of sign, 5 of exponent, 10 of mantissa.

Numbers are rounded to the nearest, ties to even. A number beyond ±65,504, the largest one, becomes that.

Bytes: two for each number, in C order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.compression.codec import Shape, in_range, size_of

_HALF = np.dtype("<f2")


@dataclass(frozen=True)
class Fp16:
    """Half precision."""

    FITS_WEIGHTS: ClassVar[bool] = True

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return two bytes for each number."""
        return _HALF.itemsize * size_of(shape)

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Round to half precision."""
        return in_range(array, _HALF).tobytes()

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the same numbers in another dtype."""
        return np.frombuffer(content, _HALF).astype(dtype).reshape(shape)
