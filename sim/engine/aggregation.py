"""Sums of clients' weights, in the one grouping that every engine uses.

A float sum depends on its grouping, so there is one grouping for all engines: the round's clients in client
order are cut into chunks by their number alone; each chunk is summed in order in the process that trained it;
the chunks' sums are folded in order as they arrive. Memory does not grow with the number of clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.common import NDArray, NDArrays

from sim.errors import RunError


class NonFiniteError(ValueError):
    """A client returned NaN or infinite weights."""


class MismatchError(ValueError):
    """Clients returned arrays of different shapes."""


def check_finite(weights: NDArrays, sent: NDArrays, names: Sequence[str] = ()) -> None:
    """Check that every weight is a finite number, except where the one that was sent is not (a mask of −∞, say).

    Args:
        sent: what the weights were made from; an array of another shape says nothing about a weight.
        names: of the arrays, for the message.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    for number, array in enumerate(weights):
        if _all_finite(array):
            continue
        wrong = ~np.isfinite(array)
        if number < len(sent) and sent[number].shape == array.shape:
            wrong &= ~((array == sent[number]) | (np.isnan(array) & np.isnan(sent[number])))
        if wrong.any():
            kind = "NaN" if np.isnan(array[wrong]).any() else "infinite"
            name = names[number] if number < len(names) else f"array {number}"
            raise NonFiniteError(f"{name} holds {kind} weights")


def _all_finite(array: NDArray) -> bool:
    if array.dtype.kind not in "fc":
        return True
    with np.errstate(all="ignore"):
        # One pass without a copy: the sum is finite unless a number is not, or it is too large to be sure.
        return bool(np.isfinite(np.add.reduce(array, axis=None))) or bool(np.isfinite(array).all())


T = TypeVar("T")

_CHUNKS_A_ROUND = 16  # enough to keep 16 actors busy …
_CLIENTS_A_CHUNK = 16  # … and no client waits behind more than 15 others
_MOST_EXACT = 2**53  # from here on, float64 leaves out whole numbers
_BLOCK = 65_536  # numbers that are scaled at once, so that they stay in the processor's cache


def cut(tasks: Sequence[T], size: int | None = None) -> list[Sequence[T]]:
    """Cut a round's tasks into chunks of ``size``; of one that depends on the number of tasks alone for None."""
    size = size or min(_CLIENTS_A_CHUNK, max(1, len(tasks) // _CHUNKS_A_ROUND))
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


@dataclass
class WeightedSum:
    """Σ nᵢ·wᵢ over clients, nᵢ their numbers of examples (McMahan et al. 2017, algorithm 1).

    Floating-point arrays are summed in their own precision, integer and boolean buffers (BatchNorm's counters) in
    float64; ``mean`` gives every array back in the dtype of the first client. Of integers, the distances from those
    of the first client are summed, because float64 does not hold the last digits of large ones.

    Attributes:
        exact: positions of arrays that are summed in float64. The mean of equal float32 numbers is then that number,
            so that what no client changes stays as it is.
        num_extras: how many arrays at the end are no weights: their mean counts each client alike.
        num_clients: how many clients were added.
        origins: the integer arrays of the first client as int64, by their positions.
    """

    num_examples: float = 0
    sums: NDArrays = field(default_factory=list)
    dtypes: list[np.dtype[np.generic]] = field(default_factory=list)
    exact: frozenset[int] = frozenset()
    num_extras: int = 0
    num_clients: int = 0
    origins: dict[int, NDArray] = field(default_factory=dict)

    def add(self, weights: NDArrays, num_examples: float) -> None:
        """Add one client's weights; the arrays are not kept."""
        first_extra = len(weights) - self.num_extras
        factors = [num_examples if position < first_extra else 1 for position in range(len(weights))]
        if self.sums:
            self._check_shapes(weights)
            for total, array, factor in zip(self.sums, self._distances(weights), factors, strict=True):
                _add_scaled(total, array, factor)
        else:
            self.dtypes = [w.dtype for w in weights]
            self.origins = {i: w.astype(np.int64) for i, w in enumerate(weights) if w.dtype.kind in "iu"}
            weights = self._distances(weights)
            sum_dtypes = [_sum_dtype(w, exact=position in self.exact) for position, w in enumerate(weights)]
            self.sums = [
                np.multiply(w, factor, out=np.empty(w.shape, dtype), dtype=dtype)
                for w, dtype, factor in zip(weights, sum_dtypes, factors, strict=True)
            ]
        self.num_examples += num_examples
        self.num_clients += 1

    def fold(self, other: WeightedSum) -> None:
        """Add the sum of another chunk, which comes after this one."""
        if not other.sums and not other.num_examples:
            return
        if self.sums:
            self._check_shapes(other.sums)
            _add_in_place(self.sums, other.sums)
            for position in self.origins.keys() | other.origins.keys():
                moved = other.origins.get(position, 0) - self.origins.get(position, 0)
                np.add(self.sums[position], moved * other._divisor(position), out=self.sums[position])
        else:
            self.sums, self.dtypes = [array.copy() for array in other.sums], other.dtypes
            self.num_extras, self.origins = other.num_extras, other.origins
        self.num_examples += other.num_examples
        self.num_clients += other.num_clients

    def _check_shapes(self, weights: NDArrays) -> None:
        if same_shapes(weights, self.sums):
            return
        if len(weights) != len(self.sums):
            returned, others = f"{len(weights)} arrays", str(len(self.sums))
        else:
            pairs = [(np.shape(array), total.shape) for array, total in zip(weights, self.sums, strict=True)]
            number, (shape, of_others) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            returned, others = f"an array {number} of the shape {shape}", f"one of the shape {of_others}"
        raise MismatchError(f"returned {returned}, clients before it {others}: there is no mean of them")

    def mean(self, *, whole_numbers: bool = True) -> NDArrays:
        """Return Σ nᵢ·wᵢ / Σ nᵢ; there must be at least one client.

        Args:
            whole_numbers: the mean of integers is rounded to one; otherwise it is a float64, as in Flower.
        """
        kept = [dtype if whole_numbers or dtype.kind not in "biu" else np.dtype(np.float64) for dtype in self.dtypes]
        return [self._mean(position, dtype) for position, dtype in enumerate(kept)]

    def _mean(self, position: int, dtype: np.dtype[np.generic]) -> NDArray:
        array, divisor = self.sums[position], self._divisor(position)
        if position in self.origins:
            origin = self.origins[position]
            whole = origin * float(divisor)
            if np.abs(whole).max(initial=0) >= _MOST_EXACT:
                return np.asarray(origin + np.rint(array / divisor).astype(np.int64)).astype(dtype)
            array = np.asarray(whole + array)
        return cast(np.divide(array, divisor, dtype=array.dtype), dtype)

    def _divisor(self, position: int) -> float:
        return self.num_examples if position < len(self.sums) - self.num_extras else self.num_clients

    def _distances(self, weights: NDArrays) -> NDArrays:
        """Return arrays with the distances from their origins in the place of integers."""
        return [
            np.asarray((w.astype(np.int64) if w.dtype.kind in "iu" else w) - self.origins[i])
            if i in self.origins
            else w
            for i, w in enumerate(weights)
        ]


def cast(array: NDArray, dtype: np.dtype[np.generic]) -> NDArray:
    """Return ``array`` as ``dtype``, rounded where that is an integer or boolean type."""
    if dtype.kind in "biu" and array.dtype.kind == "f":
        array = np.rint(array)
    return np.asarray(array, dtype)


def fitted(weights: NDArrays, like: NDArrays, server_round: int) -> NDArrays:
    """Return what a strategy made in the dtypes of ``like``.

    Raises:
        RunError: other shapes.
    """
    shapes, wanted = [w.shape for w in weights], [w.shape for w in like]
    if shapes != wanted:
        raise RunError(f"round {server_round}: the strategy returned arrays of shapes {shapes}, the model has {wanted}")
    return in_dtypes_of(like, weights)


def same_shapes(some: NDArrays, others: NDArrays) -> bool:
    """Return whether two lists have as many arrays, of the same shapes."""
    return [np.shape(array) for array in some] == [np.shape(array) for array in others]


def in_dtypes_of(like: NDArrays, weights: NDArrays) -> NDArrays:
    """Return ``weights`` in the dtypes of ``like``; no copies where they are the same."""
    return [cast(array, kept.dtype) for array, kept in zip(weights, like, strict=True)]


def in_float_dtypes_of(like: NDArrays, weights: NDArrays) -> NDArrays:
    """Return ``weights`` with floats in the dtypes of ``like``; what was an integer and became a float stays one.

    The arrays of a Flower program may count something, and a strategy or a client makes fractions of them.
    """
    return [
        cast(array, kept.dtype) if array.dtype.kind == kept.dtype.kind == "f" else array
        for array, kept in zip(weights, like, strict=True)
    ]


def _sum_dtype(weights: NDArray, *, exact: bool) -> np.dtype[np.generic]:
    return np.promote_types(weights.dtype, np.float32 if weights.dtype.kind == "f" and not exact else np.float64)


def _add_scaled(total: NDArray, array: NDArray, factor: float) -> None:
    """``total += factor · array``, without a copy of the size of either; ``total`` lies in C order."""
    flat, addend = total.reshape(-1), array.reshape(-1)
    scratch = np.empty(min(_BLOCK, flat.size), flat.dtype)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        scaled = scratch[: part.size]
        np.multiply(addend[start : start + _BLOCK], factor, out=scaled, dtype=flat.dtype)
        np.add(part, scaled, out=part)


def _add_in_place(sums: NDArrays, addends: NDArrays) -> None:
    for total, addend in zip(sums, addends, strict=True):
        np.add(total, addend, out=total)
