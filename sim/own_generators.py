"""Random generators that user code makes for itself: their states, and how they are seeded for a client."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_KINDS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


def is_own(thing: Any) -> bool:
    """Return whether an object is a generator, and none of those that ``sim.seeds`` seeds for all code."""
    of_libraries = [getattr(method, "__self__", None) for method in (random.getstate, np.random.get_state)]
    is_known = any(thing is each for each in (*of_libraries, torch.default_generator))
    return isinstance(thing, _KINDS) and not isinstance(thing, random.SystemRandom) and not is_known


def state_of(made: Any) -> Any:
    """Return the state of a generator."""
    match made:
        case np.random.Generator():
            return made.bit_generator.state
        case np.random.RandomState():
            return made.get_state(legacy=False)
        case random.Random():
            return made.getstate()
        case _:
            return made.get_state()


def put_state(made: Any, state: Any) -> None:
    """Set a generator to what ``state_of`` returned."""
    match made:
        case np.random.Generator():
            made.bit_generator.state = state
        case random.Random():
            made.setstate(state)
        case _:
            made.set_state(state)


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
