"""What is left to the machine: how many clients one computation trains, from what model and memory allow."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from flwr.common import NDArrays

from sim.client.runtime import Workbench
from sim.config.run_config import RunConfig
from sim.errors import ConfigError
from sim.training.vectorized import Member, drawn

_ON_A_CPU = 16  # clients together where memory is no question
_MEMORY_SHARE = 0.8  # of the free memory of a GPU; the rest is for what else the process does


def resolve(config: RunConfig, bench: Workbench, weights: NDArrays) -> RunConfig:
    """Return the config with ``local_training`` and ``vectorized_clients`` decided.

    Raises:
        ConfigError: ``vectorized`` was asked for, and this model or program cannot be trained so.
    """
    asked = config.local_training
    if asked == "sequential" or (asked == "auto" and bench.device.type != "cuda"):
        return replace(config, local_training="sequential", vectorized_clients=None)
    reason = _reason_against(config, bench, weights)
    if reason is not None:
        if asked == "vectorized":
            raise ConfigError(f"--local-training vectorized: {reason}; use sequential or auto")
        logging.getLogger("sim").info("clients are trained one after another: %s", reason)
        return replace(config, local_training="sequential", vectorized_clients=None)
    count = config.vectorized_clients or _fitting(config, bench, weights)
    return replace(config, local_training="vectorized", vectorized_clients=count)


def _reason_against(config: RunConfig, bench: Workbench, weights: NDArrays) -> str | None:
    for flag, value in (("--train", config.train), ("--client", config.client)):
        if value is not None:
            return f"{flag} {value} trains one client at a time"
    try:
        bench.trainer(config.batch_size).train(weights, _two(config, bench, 2), lr=config.lr)
    except Exception as error:  # noqa: BLE001 - whatever vmap cannot do with this model
        return f"{config.model} cannot be stacked: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return None


def _two(config: RunConfig, bench: Workbench, count: int) -> list[Member]:
    loader = bench.training_batches(np.zeros(config.batch_size, np.int64), config.batch_size)
    return [drawn(loader, 1, 1, 0, bench.device) for _ in range(count)]


def _fitting(config: RunConfig, bench: Workbench, weights: NDArrays) -> int:
    """How many clients fit into this process's share of the GPU, from the memory that two and four need."""
    clients = config.num_fit_clients
    if bench.device.type != "cuda":
        return min(_ON_A_CPU, clients)
    trainer = bench.trainer(config.batch_size)
    peaks = []
    for count in (2, 4):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.train(weights, _two(config, bench, count), lr=config.lr)
        peaks.append(torch.cuda.max_memory_allocated())
    each = max(1.0, (peaks[1] - peaks[0]) / 2)
    free, _ = torch.cuda.mem_get_info()
    share = config.gpus_of_a_client
    available = _MEMORY_SHARE * free * min(1.0, share or 1.0)
    processes = max(1, int(1 / share)) if share else 1
    return int(max(1, min((available - peaks[0]) / each + 2, -(-clients // processes))))
