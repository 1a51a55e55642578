"""sign – of each number its sign alone, times the mean magnitude of its array.

Seide, Fu, Droppo, Li, Yu, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training
of Speech DNNs", Interspeech 2014, introduced it with error feedback, without which it need not converge: Karimireddy,
Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
arXiv:1901.09847, whose scale ‖v‖₁ / n this is, here of each array. 0 counts as positive.

Bytes: the mean magnitude as float32; then a bit for each number in C order, 1 for negative, eight in a byte, the first
in the highest place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.compression.codec import Shape, as_float32, in_range, size_of, to_bytes

_SCALE_BYTES = 4


@dataclass(frozen=True)
class Sign:
    """A bit for each number."""

    FITS_WEIGHTS: ClassVar[bool] = False

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return the scale and a bit for each number."""
        return _SCALE_BYTES + math.ceil(size_of(shape) / 8)

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Return the mean magnitude, then the signs."""
        flat = array.reshape(-1)
        largest = float(np.abs(flat).max())
        # In units of the largest number, because the sum of large ones is infinite.
        mean = largest * float(np.abs(flat.astype(np.float64) / largest).mean()) if largest else 0.0
        return to_bytes(as_float32(mean)) + np.packbits(flat < 0).tobytes()

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return ± the mean magnitude."""
        size, scale = size_of(shape), np.frombuffer(content, "<f4", 1)[0]
        signs = np.unpackbits(np.frombuffer(content, np.uint8, offset=_SCALE_BYTES), count=size)
        return in_range(np.where(signs, -scale, scale), dtype).reshape(shape)
