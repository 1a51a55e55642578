"""Samplers of a user's own, each made to show one thing."""

import threading

import numpy as np


class First:
    """The clients with the smallest ids."""

    def sample(self, candidates, num_clients, server_round, rng):
        return candidates[:num_clients]


class Few(First):
    def sample(self, candidates, num_clients, server_round, rng):
        return candidates[: num_clients - 1]


class Twice(First):
    def sample(self, candidates, num_clients, server_round, rng):
        return [candidates[0]] * num_clients


class Unknown(First):
    def sample(self, candidates, num_clients, server_round, rng):
        return [-1] * num_clients


class Floats(First):
    def sample(self, candidates, num_clients, server_round, rng):
        return candidates[:num_clients].astype(float)


class Nothing(First):
    def sample(self, candidates, num_clients, server_round, rng):
        return None


class Exiting(First):
    def sample(self, candidates, num_clients, server_round, rng):
        raise SystemExit(0)


class Misnamed(First):
    def sample(self, candidates, num_clients):
        return candidates[:num_clients]


class Observing(First):
    def observe(self, server_round, reports):
        raise ArithmeticError("not today")


class Shuffling:
    """Draws from the global generator when it is made and when it chooses, and shuffles what it gets."""

    def __init__(self, num_clients):
        self.order = np.random.permutation(num_clients)  # noqa: NPY002

    def sample(self, candidates, num_clients, server_round, rng):
        np.random.shuffle(candidates)  # noqa: NPY002
        return (
            sorted(candidates, key=lambda c: self.order[c])[: num_clients // 2]
            + sorted(candidates, key=lambda c: -self.order[c])[: num_clients - num_clients // 2]
        )


class WithSlots:
    __slots__ = ("count",)

    def sample(self, candidates, num_clients, server_round, rng):
        return candidates[:num_clients]


class WithLock(First):
    def __init__(self):
        self.lock = threading.Lock()


class WithLockLater(First):
    def sample(self, candidates, num_clients, server_round, rng):
        self.lock = threading.Lock()
        return candidates[:num_clients]


class Counting(First):
    """Takes the next clients each time that it is asked; holds a function, a private number and a dict."""

    def __init__(self):
        self.key, self._count, self.rounds = abs, 0, {}

    def sample(self, candidates, num_clients, server_round, rng):
        self._count += 1
        self.rounds = {**self.rounds, server_round: self._count}
        return np.roll(candidates, -num_clients * (self._count - 1))[:num_clients]


class Raising(First):
    def sample(self, candidates, num_clients, server_round, rng):
        if server_round == 3:
            raise ArithmeticError("enough")
        return candidates[:num_clients]
