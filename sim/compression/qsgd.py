"""qsgd:BITS – each number is rounded at random to a multiple of the norm ÷ s, so that its mean is the number itself.

Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
NeurIPS 2017, arXiv:1610.02132, section 3.1:

    Q(vᵢ) = ‖v‖₂ · sgn(vᵢ) · ℓᵢ / s,   ℓᵢ = ⌊s |vᵢ| / ‖v‖₂ + u⌋,   u uniform in [0, 1)

Here s = 2^BITS − 1, so that a level ℓ from 0 to s takes BITS bits beside the sign. v is one array. Every level takes
the same number of bits, instead of Elias' code of the paper, so that the number of bytes is known before.

Bytes: ‖v‖₂ as float32, rounded up; then bits, eight in a byte, the first in the highest place: of each 65,536 numbers
in C order all signs (1 for negative), then the highest bits of all levels, and so on to the lowest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.compression.codec import Shape, as_float32, in_range, size_of, to_bytes

_BLOCK = 65_536  # a multiple of 8, so that each block but the last fills its bytes
_NORM_BYTES = 4


@dataclass(frozen=True)
class Qsgd:
    """Stochastic quantisation.

    Attributes:
        bits: of a level, 1 to 16.
    """

    FITS_WEIGHTS: ClassVar[bool] = True

    bits: int

    def num_bytes(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """Return the norm, and sign and level of each number."""
        return _NORM_BYTES + math.ceil(size_of(shape) * (self.bits + 1) / 8)

    def encode(self, array: NDArray[Any], rng: np.random.Generator) -> bytes:
        """Round at random."""
        flat = array.reshape(-1)
        norm = _norm_of(flat)
        parts = [to_bytes(norm)]
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK].astype(np.float64)
            uniform = rng.random(block.size)  # also of an array of zeros, so that the numbers drawn depend on no value
            levels = np.zeros(block.size, np.int64)
            if norm:
                scaled = np.abs(block) / float(norm) * self._most
                levels = np.minimum(np.floor(scaled + uniform), self._most).astype(np.int64)
            planes = [block < 0, *((levels >> bit) & 1 for bit in reversed(range(self.bits)))]
            parts.append(np.packbits(np.concatenate(planes).astype(np.uint8)).tobytes())
        return b"".join(parts)

    def decode(self, content: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Multiply the levels by norm ÷ s."""
        size, width = size_of(shape), self.bits + 1
        norm = float(np.frombuffer(content, "<f4", 1)[0])
        packed = np.frombuffer(content, np.uint8, offset=_NORM_BYTES)
        decoded = np.empty(size, dtype)
        for start in range(0, size, _BLOCK):
            count = min(_BLOCK, size - start)
            place = start // 8 * width
            bits = np.unpackbits(packed[place : place + math.ceil(count * width / 8)], count=count * width)
            signs, *planes = bits.reshape(width, count)
            levels = np.zeros(count)
            for plane in planes:
                levels = levels * 2 + plane
            decoded[start : start + count] = in_range(np.where(signs, -levels, levels) * (norm / self._most), dtype)
        return decoded.reshape(shape)

    @property
    def _most(self) -> int:
        return (1 << self.bits) - 1


def _norm_of(flat: NDArray[Any]) -> np.float32:
    """Return the Euclidean norm; rounded up, because no number may exceed it."""
    largest = float(np.abs(flat).max())
    if not largest:
        return np.float32(0)
    # In units of the largest number, because the square of a small or large one is 0 or infinite.
    exact = largest * float(np.linalg.norm(flat.astype(np.float64) / largest))
    norm, most = as_float32(exact), np.finfo(np.float32).max
    return norm if float(norm) >= exact or norm == most else np.nextafter(norm, most)
