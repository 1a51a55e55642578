"""The results that a function of the user's keeps with ``functools.cache`` or ``lru_cache``.

A network that is made so when it is first needed would begin with the random numbers of whichever client needs it
first in a process, and would then be trained by the others; so would small arrays and tensors, such as noise. Results
of other kinds, such as a data set, stay.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from typing import Any

from sim.user_objects import is_array, is_constant, is_state

FUNCTION_WITH_CACHE: type = type(functools.cache(int))


class FunctionCache:
    """A function with a cache, which a client leaves empty if it has found it so."""

    def __init__(self, function: Any) -> None:
        self._function = function

    @property
    def size(self) -> int:
        """The number of results."""
        return int(self._function.cache_info().currsize)

    def has_state(self) -> bool:
        """Return whether it has results that clients may change."""
        return self.size > 0 and any(map(_may_change, _results(self._function)))

    def clear(self) -> None:
        """Forget the results."""
        self._function.cache_clear()


def _results(function: Any) -> Iterator[Any]:
    """Return what a cache refers to: its results, among other things that are never put back."""
    for held in gc.get_referents(function):
        if held is function.__dict__:
            continue
        yield from held.values() if type(held) is dict else (held,)


def _may_change(held: Any) -> bool:
    if type(held) is tuple:
        return any(map(_may_change, held))
    return is_array(held) or (is_state(held) and not is_constant(held))  # a constant may be what a data set is named by
