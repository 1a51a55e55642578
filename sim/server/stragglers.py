"""Stragglers: clients of a round that have time for a part of the local epochs only (Li et al. 2020, section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.config.run_config import RunConfig
from sim.seeds import Purpose, generator

Settings = dict[str, Any]


def with_stragglers(
    chosen: Sequence[tuple[int, Settings]], config: RunConfig, server_round: int
) -> list[Settings | None]:
    """Return the settings of each client of a round in which ``config.stragglers`` of the clients are slow.

    Which clients these are follows from the seed and the round, so that both policies have the same ones. With the
    policy ``keep``, each trains for 1 … ``local_epochs`` epochs, uniformly drawn from its own stream; with ``drop``,
    it does not take part. The client that is fastest always takes part.

    Args:
        chosen: (client_id, settings) of each client.

    Returns:
        In the same order; None for a client that does not take part.
    """
    if not config.stragglers:
        return [settings for _, settings in chosen]
    ordered = sorted(client_id for client_id, _ in chosen)
    num_slow = min(round(len(ordered) * config.stragglers), len(ordered) - (config.straggler_policy == "drop"))
    order = generator(config.seed, Purpose.STRAGGLERS, server_round).permutation(len(ordered))
    slow = {ordered[position] for position in order[:num_slow]}
    if config.straggler_policy == "drop":
        return [None if client_id in slow else settings for client_id, settings in chosen]
    return [_shortened(c, settings, config, server_round) if c in slow else settings for c, settings in chosen]


def _shortened(client_id: int, settings: Mapping[str, Any], config: RunConfig, server_round: int) -> Settings:
    rng = generator(config.seed, Purpose.STRAGGLER_EPOCHS, server_round, client_id)
    return {**settings, "local_epochs": int(rng.integers(1, int(settings["local_epochs"]) + 1))}
