"""The only source of random numbers: (seed, purpose, round, client_id) → an independent stream.

Streams come from numpy's SeedSequence, whose spawn keys give statistically independent states (O'Neill 2015,
"Developing a seed_seq Alternative"). Nothing here depends on the order of the calls, so a client draws the same
numbers regardless of the process and the time in which it is executed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np

from sim import entropy


class Purpose(IntEnum):
    """The purpose of random numbers. Its value is part of the stream's key, so a value must never be reused."""

    PARTITION = 1
    INITIAL_WEIGHTS = 2
    STRATEGY = 3
    FIT = 4
    EVALUATE = 5
    TEST = 6
    CENTRALIZED = 7
    DROPOUT = 8
    MEASURING = 9
    DATA = 10
    STRAGGLERS = 11
    STRAGGLER_EPOCHS = 12
    QUERY = 13
    SERVER_APP = 14
    ATTACKERS = 15
    ATTACK = 16
    FINE_TUNE = 17
    DEVICE = 18
    AVAILABILITY = 19
    SAMPLER = 20
    COMPRESS_UP = 28
    COMPRESS_DOWN = 29
    CLIENT_DROPOUT = 30
    VALIDATION = 31


def sequence(
    seed: int, purpose: Purpose, server_round: int = 0, client_id: int = 0, repeat: int = 0
) -> np.random.SeedSequence:
    """Return the seed sequence of one stream; all numbers are integers ≥ 0.

    Args:
        repeat: how often the client has drawn from this stream before, which asynchronous rounds allow.
    """
    key = int(purpose), server_round, client_id
    return np.random.SeedSequence(entropy=seed, spawn_key=(*key, repeat) if repeat else key)


def generator(
    seed: int, purpose: Purpose, server_round: int = 0, client_id: int = 0, repeat: int = 0
) -> np.random.Generator:
    """Return a numpy generator for one stream."""
    return np.random.default_rng(sequence(seed, purpose, server_round, client_id, repeat))


@contextmanager
def seeded(
    seed: int, purpose: Purpose, server_round: int = 0, client_id: int = 0, repeat: int = 0
) -> Iterator[np.random.SeedSequence]:
    """Seed the global ``random``, ``numpy`` and ``torch`` generators inside the block, and restore them after it.

    Code without access to the streams (Flower's strategies, dropout, a user's ``train``) draws from the global
    generators. They are restored, so that such code does not change the numbers that later code draws.
    """
    with restored():
        yield reseed(seed, purpose, server_round, client_id, repeat)


def reseed(
    seed: int, purpose: Purpose, server_round: int = 0, client_id: int = 0, repeat: int = 0
) -> np.random.SeedSequence:
    """Seed the global ``random``, ``numpy`` and ``torch`` generators for one stream, and return it.

    Generators that code makes without a seed follow from the stream, too, until the global ones are restored.
    """
    import torch

    stream = sequence(seed, purpose, server_round, client_id, repeat)
    entropy.use(entropy.Entropy(stream))
    words = stream.generate_state(8)
    random.seed(int.from_bytes(words[:4].tobytes(), "little"))
    np.random.seed(words[4:6])  # noqa: NPY002
    seed_of_torch = int.from_bytes(words[6:8].tobytes(), "little")
    # torch.manual_seed would also record the call, with its stack trace, for a GPU that may be initialized later.
    torch.default_generator.manual_seed(seed_of_torch)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed_of_torch)
    return stream


@contextmanager
def restored() -> Iterator[None]:
    """Restore the global generators after the block."""
    put_back = saved()
    try:
        yield
    finally:
        put_back()


def saved() -> Callable[[], None]:
    """Return a function that sets the global generators back to their present states."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    source = entropy.present()

    def put_back() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        entropy.use(source)

    return put_back
