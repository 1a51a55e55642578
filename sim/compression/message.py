"""What is sent of the arrays of a model, how, and what the other end makes of it.

A message has no header: its arrays come in the order of the model, each in a number of bytes that both ends know from
its shape and dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.compression.by_name import Compression
from sim.compression.codec import Codec, is_compressible

Arrays = list[NDArray[Any]]
RESIDUAL = "residual"  # in the state of a client: what its last encoding has lost


@dataclass(frozen=True)
class Message:
    """Which arrays are sent, and which of them may be encoded.

    Attributes:
        plain: positions of arrays that are sent as they are: those that nobody trains, such as running statistics.
        kept: positions of arrays that stay with each client and are not sent.
        tied: position of an array that is the same as an earlier one, which is sent once → position of the earlier one.
    """

    plain: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()
    tied: Mapping[int, int] = field(default_factory=dict)

    def num_bytes(self, arrays: Sequence[NDArray[Any]], codec: Codec | None) -> int:
        """Return how many bytes these arrays take; what an update would take that has their shapes and dtypes, too."""
        total = 0
        for position, array in enumerate(arrays):
            if self._is_sent(position):
                encoded = codec is not None and self._is_encoded(position, array)
                total += codec.num_bytes(array.shape, array.dtype) if codec is not None and encoded else array.nbytes
        return total

    def received(self, weights: Sequence[NDArray[Any]], codec: Codec, rng: np.random.Generator) -> Arrays:
        """Return what a client makes of the weights that the server sends encoded."""
        decoded: Arrays = []
        for position, array in enumerate(weights):
            if position in self.tied:
                decoded.append(decoded[self.tied[position]])
            elif self._is_sent(position) and self._is_encoded(position, array):
                decoded.append(codec.decode(codec.encode(array, rng), array.shape, array.dtype))
            else:
                decoded.append(array)
        return decoded

    def reconstructed(
        self,
        sent: Sequence[NDArray[Any]],
        received: Sequence[NDArray[Any]],
        compression: Compression,
        rng: np.random.Generator,
        *,
        residual: Sequence[NDArray[Any]] = (),
        values: Collection[int] = (),
    ) -> tuple[Arrays, int, Arrays]:
        """Return what the server makes of what a client sends.

        A client encodes the difference to what it received, to which the server adds what it sent. An array that the
        client did not receive in this shape is sent as it is, and so are integers.

        Args:
            sent: the weights that the client has trained.
            received: the weights from which it began.
            residual: what the client's last encoding has lost; only with error feedback.
            values: positions of arrays that are encoded themselves, because they are differences already.

        Returns:
            The arrays, the number of bytes that were sent, and what the encoding has lost: for each array its own, an
            empty one where nothing was encoded; an empty list without error feedback.

        Raises:
            ValueError: an update is too large for its dtype.
        """
        codec = compression.up
        arrays: Arrays = []
        lost: Arrays = []
        total = 0
        same_number = len(sent) == len(received)
        for position, array in enumerate(sent):
            nothing = np.zeros(0, np.float32)
            if not self._is_sent(position):
                arrays.append(arrays[self.tied[position]] if position in self.tied else array)
                lost.append(nothing)
                continue
            start = received[position] if same_number else None
            # Integers become float64 in the averages of Flower's strategies, but not in what clients send.
            is_update = start is not None and start.shape == array.shape and array.dtype.kind == "f"
            if codec is None or start is None or not is_update or not self._is_encoded(position, start):
                arrays.append(array)
                lost.append(nothing)
                total += array.nbytes
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                own = array.astype(start.dtype, copy=False)
                update = np.array(own) if position in values else own - start
                if position < len(residual) and residual[position].shape == update.shape:
                    update += residual[position]
                _check(update, position)
                content = codec.encode(update, rng)
                decoded = codec.decode(content, update.shape, update.dtype)
                total += len(content)
                lost.append(update - decoded)
                arrays.append(decoded if position in values else start + decoded)
                _check(arrays[-1], position)
        return arrays, total, lost if compression.error_feedback else []

    def _is_sent(self, position: int) -> bool:
        return position not in self.kept and position not in self.tied

    def _is_encoded(self, position: int, array: NDArray[Any]) -> bool:
        return position not in self.plain and is_compressible(array)


def _check(array: NDArray[Any], position: int) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"the update of array {position} is too large for {array.dtype.name}")


def expected_bytes(
    arrays: Sequence[NDArray[Any]], compression: Compression, message: Message | None = None
) -> tuple[int, int]:
    """Return how many bytes a client that trains gets and sends, before it has done anything.

    Args:
        arrays: what the server sends: the weights, and what an algorithm adds to them. Their values matter only as far
            as one is NaN or infinite.
    """
    message = message or Message()
    return message.num_bytes(arrays, compression.down), message.num_bytes(arrays, compression.up)
