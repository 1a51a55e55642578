"""int8 – whole numbers from −127 to 127 in units of the largest magnitude ÷ 127, one unit for each array.

Uniform symmetric quantisation, rounded to the nearest, ties to even (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, without a zero point).

Bytes: the unit as float32; then a signed byte for each number, in C order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.compression.codec import Shape, as_float32, in_range, size_of, to_bytes

_MOST = 127
_UNIT_BYTES = 4


@dataclass(frozen=True)
class Int8:
    """A byte for each number."""

    FITS_WEIGHTS: ClassVar[bool] = True

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return the unit and a byte for each number."""
        return _UNIT_BYTES + size_of(shape)

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Round to the nearest multiple of the unit."""
        flat = array.reshape(-1).astype(np.float64)
        unit = as_float32(float(np.abs(flat).max()) / _MOST)
        whole = np.clip(np.rint(flat / float(unit)), -_MOST, _MOST) if unit else np.zeros(flat.size)
        return to_bytes(unit) + whole.astype(np.int8).tobytes()

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Multiply by the unit."""
        unit = float(np.frombuffer(content, "<f4", 1)[0])
        return in_range(np.frombuffer(content, np.int8, offset=_UNIT_BYTES) * unit, dtype).reshape(shape)
