"""Random bits of the operating system, for which code asks that gives no seed, come from a stream of ``sim.seeds``.

``np.random.default_rng()``, ``random.Random()``, ``random.seed()`` and ``torch.seed()`` would give other numbers in
each process and in each run. Inside a stream they follow from it; outside they are as their libraries make them.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections import Counter
from types import FrameType
from typing import Any

import numpy as np

from sim import private_names

_KEY = 2**31  # in the spawn key of a stream, before the place and the number of the question
_BETWEEN = ("random", "torch.random", __name__)  # modules between the code that asks and the operating system
_installed: list[str] = []


class Entropy:
    """What the operating system is replaced by."""

    def __init__(self, stream: np.random.SeedSequence) -> None:
        self._stream = stream
        self.process = os.getpid()
        self._num_questions = Counter[int]()

    def of_worker(self, seed: int) -> Entropy:
        """Return that of a worker process of a DataLoader; the seeds of workers follow from the client's stream."""
        spawn_key = *self._stream.spawn_key, _KEY, seed
        return Entropy(np.random.SeedSequence(self._stream.entropy, spawn_key=spawn_key))

    def bits(self, count: int) -> int:
        """Return a number from 0 to 2**count − 1, another one at each call.

        It depends on the line that asks and on how often it has asked. Libraries that are imported meanwhile, which
        happens once in a process, ask in lines of their own.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in _BETWEEN:
            frame = frame.f_back
        asking = f"{frame.f_globals.get('__name__')}:{frame.f_lineno}" if frame is not None else ""
        place = zlib.crc32(asking.encode())
        self._num_questions[place] += 1
        spawn_key = *self._stream.spawn_key, _KEY, place, self._num_questions[place]
        words = np.random.SeedSequence(self._stream.entropy, spawn_key=spawn_key).generate_state(-(-count // 32))
        return int.from_bytes(words.tobytes(), "little") >> (32 * len(words) - count)


_present: list[Entropy | None] = [None]


def present() -> Entropy | None:
    """Return what is in the place of the operating system; None where it is asked itself, as in other forks."""
    entropy = _present[0]
    if entropy is not None and entropy.process != os.getpid():
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        if worker is None:
            return None
        entropy = _present[0] = entropy.of_worker(worker.seed)
    return entropy


def use(entropy: Entropy | None) -> None:
    """Let libraries take their random bits from ``entropy``; None for the operating system."""
    if not _installed:
        _install()
    _present[0] = entropy


def _install() -> None:
    import torch

    _installed.append("yes")
    private_names.ask_for_entropy_of_numpy(lambda ask, count: ask(count) if (e := present()) is None else e.bits(count))
    seed_of_python, seed_of_torch = random.Random.seed, torch.seed

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        entropy = present()
        seed_of_python(self, entropy.bits(128) if a is None and entropy is not None else a, version)

    def seed_torch() -> int:
        entropy = present()
        return seed_of_torch() if entropy is None else torch.manual_seed(entropy.bits(63)).initial_seed()

    shared: Any = random.seed.__self__  # type: ignore[attr-defined]  # the generator of the module's functions
    random.Random.seed = seed  # type: ignore[method-assign]
    random.seed = shared.seed
    torch.seed = torch.random.seed = seed_torch
