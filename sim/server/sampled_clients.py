"""The client manager of a run whose clients are not always online, or are not chosen uniformly."""

from __future__ import annotations

import random

import numpy as np
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from sim.config.run_config import RunConfig
from sim.server.run_sampler import RunSampler
from sim.server.samplers import ClientIds


class SampledClients(SimpleClientManager):
    """Clients that a strategy of Flower samples, as this run's sampler chooses them.

    It does so in the training phase of a round, between ``begin`` and ``end``; evaluation samples all clients
    uniformly, because it is a measurement and no part of the simulated federation.
    """

    def __init__(self, config: RunConfig, sampler: RunSampler) -> None:
        super().__init__()
        self._config, self._sampler = config, sampler
        self._round = self._attempt = 0
        self._online: ClientIds | None = None
        self._chosen: list[int] | None = None  # for a strategy that draws among them

    def begin(self, server_round: int, attempt: int, online: ClientIds) -> None:
        """Let the clients that are online be sampled for a round.

        Args:
            attempt: how often this round was void.
        """
        self._round, self._attempt, self._online, self._chosen = server_round, attempt, online, None

    def end(self) -> None:
        """Let all clients be sampled again."""
        self._online = None

    def chosen_ids(self) -> list[int] | None:
        """Return the ids of the clients of a round for a strategy that draws among them itself; None outside of one."""
        if self._online is None or self._config.sampler == "uniform":
            return None if self._online is None else self._online.tolist()
        if self._chosen is None:  # a strategy asks more than once
            self._chosen = self._sampled(self._online, self._config.num_asked_clients)
        return self._chosen

    def num_available(self) -> int:
        """Return how many clients can be sampled."""
        return super().num_available() if self._online is None else len(self._online)

    def all(self) -> dict[str, ClientProxy]:
        """Return the clients that can be sampled, by name."""
        everyone: dict[str, ClientProxy] = super().all()
        return everyone if self._online is None else {str(c): everyone[str(c)] for c in self._online}

    def _sampled(self, candidates: ClientIds, num_clients: int) -> list[int]:
        """Return the ids of clients: fewer than asked for if there are fewer candidates."""
        count = min(num_clients, len(candidates))
        return self._sampler.sample(candidates, count, self._round, self._round, self._attempt) if count else []

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        """Return clients, as ``ClientManager.sample`` does; it never waits."""
        if self._online is None:
            return super().sample(num_clients, min_num_clients, criterion)
        there = self.all()
        names = [name for name, proxy in there.items() if criterion is None or criterion.select(proxy)]
        if self._config.sampler == "uniform":  # as SimpleClientManager, which draws from the global generator
            return [there[name] for name in random.sample(names, min(num_clients, len(names)))]
        return [there[str(c)] for c in self._sampled(np.array([int(name) for name in names], np.int64), num_clients)]
