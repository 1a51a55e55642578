"""bf16 – the upper half of a float32: 1 bit of sign, 8 of exponent, 7 of mantissa.

Numbers are rounded to the nearest, ties to even; those of float64 are rounded to float32 before. A number beyond the
largest one, about ±3.39e38, becomes that.

Bytes: two for each number, in C order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.compression.codec import Shape, in_range, size_of

_MOST = float(np.uint32(0x7F7F0000).view(np.float32))  # the largest number
_BITS = np.dtype("<u2")


@dataclass(frozen=True)
class Bf16:
    """The range of float32 with 8 bits of precision."""

    FITS_WEIGHTS: ClassVar[bool] = True

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return two bytes for each number."""
        return _BITS.itemsize * size_of(shape)

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Round to the upper half."""
        limited = array if array.dtype.itemsize == 2 else np.clip(array, -_MOST, _MOST)
        bits = limited.astype(np.float32, order="C").view(np.uint32)
        # Half of a unit, less 1 where the last bit that stays is 0: a tie goes to the even one.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(_BITS).tobytes()

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the same numbers in another dtype."""
        bits = np.frombuffer(content, _BITS).astype(np.uint32) << 16
        return in_range(bits.view(np.float32), dtype).reshape(shape)
