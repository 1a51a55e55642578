"""Config → all that a run needs, loaded, dealt, built and checked; nothing is written outside the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.common import NDArrays, Scalar

from sim.client.runtime import Program, get_weights, workbench
from sim.config.run_config import RunConfig
from sim.config.training_config import TrainingConfig
from sim.data import examples, partition
from sim.data.examples import Dataset
from sim.data.partition import Partition
from sim.engine.central_test import CentralTest
from sim.errors import ConfigError
from sim.server import strategy
from sim.setup import dry_run, resolution
from sim.training import models


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, checked; nothing was written outside the cache. What ``config`` left open is decided."""

    config: RunConfig
    dataset: Dataset
    partition: Partition
    program: Program
    initial_weights: NDArrays
    central_test: CentralTest
    chosen: strategy.Chosen
    buffers: frozenset[int]


def prepare(config: RunConfig, *, alone: bool = False) -> Prepared:
    """Load, deal, build and check everything that the config names.

    Args:
        alone: no other client shares the GPU, so ``--device auto`` takes it without ``--num-gpus``.

    Raises:
        UsageError: something does not work.
    """
    dataset = examples.load(config)
    dealt = partition.deal(dataset.train.labels, config)
    program = make_program(config, dataset, dealt, alone=alone)
    initial_weights = fresh_weights(program)
    if alone:  # one client a process
        config = replace(config, local_training="sequential", vectorized_clients=None)
    else:
        config = resolution.resolve(config, workbench(program), initial_weights)
    program = replace(program, together=config.vectorized_clients or 1)
    central_test = CentralTest(program)
    chosen = strategy.build(config, initial_weights, central_test)
    dry_run.rehearse(workbench(program), initial_weights, fit_config(config, 1), chosen.strategy)
    buffers = models.buffer_indices(workbench(program).net)
    if buffers and config.dp:
        raise ConfigError(
            f"--dp {config.dp}: its noise would make the running variances of {config.model} negative; use a model "
            "with GroupNorm instead of BatchNorm"
        )
    return Prepared(config, dataset, dealt, program, initial_weights, central_test, chosen, buffers)


def make_program(config: RunConfig, dataset: Dataset, dealt: Partition, *, alone: bool) -> Program:
    """Say what a process needs to make any client of a run."""
    parts = program_parts(config, dataset)
    if config.device == "auto" and not config.num_gpus and not alone:
        parts["device"] = "cpu"  # in every engine: Ray shows no GPU to a client that has no share of one
    eval_share = config.eval_share if config.fraction_evaluate else 0.0
    return Program(**parts, partition_folder=dealt.folder, client=config.client, eval_share=eval_share)


def program_parts(config: TrainingConfig, dataset: Dataset) -> dict[str, Any]:
    """The parts of a ``Program`` that federated and centralised training share."""
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


def fresh_weights(program: Program) -> NDArrays:
    """Build the model anew in this process and return its weights; they follow from the seed."""
    workbench.cache_clear()
    return get_weights(workbench(program).net)


def train_knobs(config: TrainingConfig, number: int, count: int) -> dict[str, Scalar]:
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
        **train_knobs(config, server_round, config.num_rounds),
    }


def check_device(config: TrainingConfig) -> None:
    """Check that the asked device is there.

    Raises:
        ConfigError: it is not.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU; choose auto or cpu")
