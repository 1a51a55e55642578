"""Random generators that user code makes for itself: their states, and how they are seeded for a client."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_KINDS = {
    "numpy": np.random.Generator,
    "numpy-legacy": np.random.RandomState,
    "python": random.Random,
    "torch": torch.Generator,
}
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def kind_of(thing: Any) -> str | None:
    """Return the kind of a generator; None for one of those that ``sim.seeds`` seeds for all code, and other things."""
    of_libraries = [getattr(method, "__self__", None) for method in (random.getstate, np.random.get_state)]
    is_known = any(thing is each for each in (*of_libraries, torch.default_generator))
    if is_known or isinstance(thing, random.SystemRandom):
        return None
    return next((kind for kind, made in _KINDS.items() if isinstance(thing, made)), None)


def state_of(made: Any) -> Any:
    """Return the state of a generator: numbers, texts and arrays."""
    match made:
        case np.random.Generator():
            return made.bit_generator.state
        case np.random.RandomState():
            return made.get_state(legacy=False)
        case random.Random():
            return made.getstate()
        case _:
            return made.get_state().numpy()


def put_state(made: Any, state: Any) -> None:
    """Set a generator to what ``state_of`` returned."""
    match made:
        case np.random.Generator():
            made.bit_generator.state = state
        case np.random.RandomState():
            made.set_state(state)
        case random.Random():
            made.setstate(state)
        case _:
            made.set_state(torch.from_numpy(np.array(state)))


def with_state(kind: str, state: Any) -> Any:
    """Return a new generator of a kind.

    Raises:
        ValueError: the state is none of such a generator.
    """
    made: Any = random.Random() if kind == "python" else torch.Generator()
    if kind in ("numpy", "numpy-legacy"):
        name = state["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise ValueError(f"{name} is no generator of numpy")
        made = _KINDS[kind](getattr(np.random, name)())
    put_state(made, state)
    return made


def reseed(made: Any, stream: np.random.SeedSequence) -> None:
    """Let a generator draw from a stream."""
    match made:
        case np.random.Generator():
            made.bit_generator.state = type(made.bit_generator)(stream).state
        case np.random.RandomState():
            try:
                made.seed(stream.generate_state(4))
            except TypeError:  # only MT19937, which nearly all have, can be seeded so
                kind = made.get_state(legacy=False)["bit_generator"]
                made.set_state(getattr(np.random, kind)(stream).state)
        case random.Random():
            made.seed(int.from_bytes(stream.generate_state(4).tobytes(), "little"))
        case _:
            made.manual_seed(int.from_bytes(stream.generate_state(2).tobytes(), "little"))
