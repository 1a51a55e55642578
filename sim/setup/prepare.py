"""Config → all that a run needs, loaded, dealt, built and checked; nothing is written outside the cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common import NDArrays, Scalar

from sim.client.runtime import ClientRuntime, ClientSpec, get_weights, workbench
from sim.config.run_config import RunConfig, TrainingConfig
from sim.data import examples, partition
from sim.data.examples import Dataset
from sim.data.partition import Partition
from sim.engine.central_test import CentralTest
from sim.errors import ConfigError
from sim.server import strategy
from sim.setup import dry_run
from sim.training import models
from sim.training.vectorized import Member, drawn

_ON_A_CPU = 16  # clients together where memory is no question
_MEMORY_SHARE = 0.8  # of the free memory of a GPU; the rest is for what else the process does


def resolve(config: RunConfig, bench: ClientRuntime, weights: NDArrays) -> RunConfig:
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


def _reason_against(config: RunConfig, bench: ClientRuntime, weights: NDArrays) -> str | None:
    for flag, value in (("--train", config.train), ("--client", config.client)):
        if value is not None:
            return f"{flag} {value} trains one client at a time"
    try:
        bench.trainer(config.batch_size).train(weights, _two(config, bench, 2), lr=config.lr)
    except Exception as error:  # noqa: BLE001 - whatever vmap cannot do with this model
        return f"{config.model} cannot be stacked: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return None


def _two(config: RunConfig, bench: ClientRuntime, count: int) -> list[Member]:
    loader = bench.training_batches(np.zeros(config.batch_size, np.int64), config.batch_size)
    return [drawn(loader, 1, 1, 0, bench.device) for _ in range(count)]


def _fitting(config: RunConfig, bench: ClientRuntime, weights: NDArrays) -> int:
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


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, checked; nothing was written outside the cache. What ``config`` left open is decided."""

    config: RunConfig
    dataset: Dataset
    partition: Partition
    program: ClientSpec
    initial_weights: NDArrays
    central_test: CentralTest
    chosen: strategy.BuiltStrategy
    buffers: frozenset[int]


def prepare(config: RunConfig, *, alone: bool = False) -> Prepared:
    """Load, deal, build and check everything that the config names.

    Args:
        alone: no other client shares the GPU, so ``--device auto`` takes it without ``--num-gpus``.

    Raises:
        UsageError: something does not work.
    """
    dataset = examples.load(config)
    dealt = partition.assign(dataset.train.labels, config)
    program = make_program(config, dataset, dealt, alone=alone)
    initial_weights = fresh_weights(program)
    if alone:  # one client a process
        config = replace(config, local_training="sequential", vectorized_clients=None)
    else:
        config = resolve(config, workbench(program), initial_weights)
    program = replace(program, vectorized_clients=config.vectorized_clients or 1)
    central_test = CentralTest(program)
    chosen = strategy.build(config, initial_weights, central_test)
    dry_run.check_user_code(workbench(program), initial_weights, fit_config(config, 1), chosen.strategy)
    buffers = models.buffer_indices(workbench(program).net)
    if buffers and config.dp:
        raise ConfigError(
            f"--dp {config.dp}: its noise would make the running variances of {config.model} negative; use a model "
            "with GroupNorm instead of BatchNorm"
        )
    return Prepared(config, dataset, dealt, program, initial_weights, central_test, chosen, buffers)


def make_program(config: RunConfig, dataset: Dataset, dealt: Partition, *, alone: bool) -> ClientSpec:
    """Say what a process needs to make any client of a run."""
    parts = program_parts(config, dataset)
    if config.device == "auto" and not config.num_gpus and not alone:
        parts["device"] = "cpu"  # in every engine: Ray shows no GPU to a client that has no share of one
    eval_share = config.eval_share if config.fraction_evaluate else 0.0
    return ClientSpec(**parts, partition_folder=dealt.folder, client=config.client, eval_share=eval_share)


def program_parts(config: TrainingConfig, dataset: Dataset) -> dict[str, Any]:
    """The parts of a ``ClientSpec`` that federated and centralised training share."""
    return {
        "data_folder": dataset.folder,
        "model": config.model,
        "train": config.train,
        "test": config.test,
        "device": config.device,
        "torch_threads": config.torch_threads,
        "import_folder": Path.cwd(),
        "batch_size": config.batch_size,
        "augment": config.augment,
        "seed": config.seed,
    }


def fresh_weights(program: ClientSpec) -> NDArrays:
    """Build the model anew in this process and return its weights; they follow from the seed."""
    workbench.cache_clear()
    return get_weights(workbench(program).net)


def train_settings(config: TrainingConfig, number: int, count: int) -> dict[str, Scalar]:
    """The keyword arguments of ``train`` in round (or epoch) ``number`` of 1…``count``."""
    return {
        "lr": config.lr_in(number, count),
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "optimizer": config.optimizer,
        "precision": config.precision,
    }


def fit_config(config: RunConfig, server_round: int) -> dict[str, Scalar]:
    """What ``FitIns.config`` carries to each client in a round."""
    return {
        "local_epochs": config.local_epochs,
        "batch_size": config.batch_size,
        "max_steps": config.max_local_steps or 0,
        **train_settings(config, server_round, config.num_rounds),
    }


def check_device(config: TrainingConfig) -> None:
    """Check that the asked device is there.

    Raises:
        ConfigError: it is not.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU; choose auto or cpu")
