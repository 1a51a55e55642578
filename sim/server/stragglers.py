"""Stragglers: clients of a round that have time for a part of the local epochs only (Li et al. 2020, section 5.2)."""

from __future__ import annotations

from dataclasses import replace

from flwr.common import FitIns
from flwr.server.client_proxy import ClientProxy

from sim.config.run_config import RunConfig
from sim.seeds import Purpose, generator

Instructions = list[tuple[ClientProxy, FitIns]]


def with_stragglers(instructions: Instructions, config: RunConfig, server_round: int) -> Instructions:
    """Return the instructions of a round in which ``config.stragglers`` of the clients are slow.

    Which clients these are follows from the seed and the round, so that both policies have the same ones. With the
    policy ``keep``, each trains for 1 … ``local_epochs`` epochs, uniformly drawn from its own stream; with ``drop``,
    it does not take part. The client that is fastest always takes part.
    """
    if not config.stragglers:
        return instructions
    ordered = sorted(instructions, key=lambda pair: int(pair[0].cid))
    num_slow = min(round(len(ordered) * config.stragglers), len(ordered) - (config.straggler_policy == "drop"))
    order = generator(config.seed, Purpose.STRAGGLERS, server_round).permutation(len(ordered))
    slow = {int(ordered[position][0].cid) for position in order[:num_slow]}
    if config.straggler_policy == "drop":
        return [(proxy, ins) for proxy, ins in instructions if int(proxy.cid) not in slow]
    return [
        (proxy, _shortened(ins, config, server_round, int(proxy.cid)) if int(proxy.cid) in slow else ins)
        for proxy, ins in instructions
    ]


def _shortened(ins: FitIns, config: RunConfig, server_round: int, client_id: int) -> FitIns:
    rng = generator(config.seed, Purpose.STRAGGLER_EPOCHS, server_round, client_id)
    epochs = int(rng.integers(1, int(ins.config["local_epochs"]) + 1))
    return replace(ins, config={**ins.config, "local_epochs": epochs})
