"""Random numbers of many clients at once: (key, client_id, index) → two numbers, each computed without the others.

A generator of numpy gives one client's numbers one after another, and to make it takes longer than to draw from it. A
counter-based generator has no state: number ``index`` of a client is a function of its place alone, so that numbers of
100,000 clients are one computation on arrays, and it does not matter in which order anybody asks.

Source: Philox4x32-10 of Salmon, Moraes, Dror, Shaw 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC), with the
constants of the paper. All operations are on integers, so that one client alone gets the same bits as among others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.seeds import Purpose, sequence

Words = Any  # one word as int, or uint64 [n]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 8192  # clients, whose arrays fit into the cache of a CPU


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Return the 4 random words of a counter; all words have 32 bits, those in arrays as uint64."""
    a, b, c, d = counter
    k, m = key
    for _ in range(_ROUNDS):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> 32) ^ b ^ k, q & _MASK, (p >> 32) ^ d ^ m, p & _MASK
        k, m = (k + _WEYL[0]) & _MASK, (m + _WEYL[1]) & _MASK
    return a, b, c, d


def key_of(seed: int, purpose: Purpose) -> tuple[int, int]:
    """Return the key of a purpose's numbers, which is drawn from the streams of ``sim.seeds``."""
    low, high = sequence(seed, purpose).generate_state(2).tolist()
    return low, high


def uniforms(
    key: tuple[int, int], client_ids: NDArray[np.int64], index: int | NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two numbers from 0 to below 1 for each client, float64 [n] each.

    Args:
        client_ids: int64 [n].
        index: which of the clients' numbers, from 0; one for all clients, or int64 [n].
    """
    first, second = np.empty(len(client_ids)), np.empty(len(client_ids))
    indices = np.broadcast_to(np.asarray(index), client_ids.shape)
    for start in range(0, len(client_ids), _CHUNK):
        part = slice(start, start + _CHUNK)
        clients, places = client_ids[part].astype(np.uint64), indices[part].astype(np.uint64)
        a, b, c, d = philox((clients & _MASK, clients >> 32, places & _MASK, places >> 32), key)
        first[part], second[part] = _fraction(a, b), _fraction(c, d)
    return first, second


def uniforms_of_one(key: tuple[int, int], client_id: int, index: int) -> tuple[float, float]:
    """Return the same two numbers of one client, which is faster than by an array of one."""
    a, b, c, d = philox((client_id & _MASK, client_id >> 32, index & _MASK, index >> 32), key)
    return _fraction(a, b), _fraction(c, d)


def _fraction(high: Any, low: Any) -> Any:
    """Return the number with 53 random bits, those of numpy's legacy ``random_sample`` (Matsumoto, Nishimura 1998)."""
    return ((high >> 5) * 67108864 + (low >> 6)) / 9007199254740992.0


def normals(
    key: tuple[int, int], client_ids: NDArray[np.int64], index: int | NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two independent numbers of the standard normal distribution for each client (Box, Muller 1958)."""
    u, v = uniforms(key, client_ids, index)
    radius = np.sqrt(-2.0 * np.log1p(-u))
    return radius * np.cos(2.0 * np.pi * v), radius * np.sin(2.0 * np.pi * v)
