"""The client manager of a run whose clients are not always online, or are not chosen uniformly."""

from __future__ import annotations

import random

from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from sim.config.run_config import RunConfig
from sim.seeds import Purpose, generator
from sim.server.samplers import ClientIds, Sampler


class SampledClients(SimpleClientManager):
    """Clients that a strategy of Flower samples, as this run's sampler chooses them.

    It does so in the training phase of a round, between ``begin`` and ``end``; evaluation samples all clients
    uniformly, because it is a measurement and no part of the simulated federation.
    """

    def __init__(self, config: RunConfig, sampler: Sampler) -> None:
        super().__init__()
        self._config, self._sampler = config, sampler
        self._round = self._attempt = 0
        self._online: ClientIds | None = None

    def begin(self, server_round: int, attempt: int, online: ClientIds) -> None:
        """Let the clients that are online be sampled for a round.

        Args:
            attempt: how often this round was void.
        """
        self._round, self._attempt, self._online = server_round, attempt, online

    def end(self) -> None:
        """Let all clients be sampled again."""
        self._online = None

    def chosen_ids(self) -> list[int] | None:
        """Return the ids of the clients of a round for a strategy that draws among them itself; None outside of one."""
        if self._online is None:
            return None
        is_uniform = self._config.sampler == "uniform"
        return self._online.tolist() if is_uniform else self._chosen(self._config.num_asked_clients)

    def num_available(self) -> int:
        """Return how many clients can be sampled."""
        return super().num_available() if self._online is None else len(self._online)

    def _chosen(self, num_clients: int) -> list[int]:
        """Return the ids of the clients of a round: fewer than asked for if fewer are online."""
        assert self._online is not None
        rng = generator(self._config.seed, Purpose.SAMPLER, self._round, self._attempt)
        return list(self._sampler.sample(self._online, min(num_clients, len(self._online)), self._round, rng))

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        """Return clients, as ``ClientManager.sample`` does; it never waits."""
        if self._online is None or criterion is not None:
            return super().sample(num_clients, min_num_clients, criterion)
        if self._config.sampler == "uniform":  # as SimpleClientManager, which draws from the global generator
            names = list(self.clients) if len(self._online) == len(self.clients) else [str(c) for c in self._online]
            return [self.clients[name] for name in random.sample(names, min(num_clients, len(names)))]
        return [self.clients[str(client_id)] for client_id in self._chosen(num_clients)]
