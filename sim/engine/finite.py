"""Weights that are not numbers are a failure of the client that sent them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.common import NDArray, NDArrays


class NonFiniteError(ValueError):
    """A client returned NaN or infinite weights."""


def check_finite(weights: NDArrays, names: Sequence[str] = ()) -> None:
    """Check that every weight is a finite number.

    Args:
        names: of the arrays, for the message.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    for number, array in enumerate(weights):
        if not _all_finite(array):
            kind = "NaN" if np.isnan(array).any() else "infinite"
            name = names[number] if number < len(names) else f"array {number}"
            raise NonFiniteError(f"{name} holds {kind} weights")


def _all_finite(array: NDArray) -> bool:
    if array.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        # One pass without a copy: the sum is finite unless a number is not, or it is too large to be sure.
        return bool(np.isfinite(np.add.reduce(array, axis=None))) or bool(np.isfinite(array).all())
