"""Decides whether clients are trained one after another, or many in one computation, and how many."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.common import NDArrays
from torch import nn

from sim.algorithms.algorithm import GradientCorrection
from sim.client.runtime import ClientSpec, loss_of
from sim.client.torch_client import train_settings
from sim.config.run_config import RunConfig
from sim.data.batches import Batches, Resident
from sim.data.columns import Columns, leaves, mapped
from sim.data.load_dataset import Dataset, Examples
from sim.data.loaders import ExampleLoader, Loader, ResidentColumns
from sim.errors import ConfigError, one_line
from sim.training import models
from sim.training.device import pick_device
from sim.training.losses import LOSSES
from sim.training.vectorized import Member, Trainer, drawn

# What pays on a CPU: with two processes, rounds of logistic regression with 100 clients of 50 images of 28 × 28 took
# 0.27 s one after another, 0.11 s in groups of 25 and 0.09 s in groups of 50; those of Mlp became slower.
# scripts/bench.sh --only tiny compares them in turn. Two processes have a group each.
_VECTORIZED_ON_A_CPU = 25, 50  # clients in one computation, at least and at most, if there are as many
_MOST_WEIGHTS_ON_A_CPU = 50_000
_FEWEST_CLIENTS_ON_A_CPU = 50
_MEMORY_SHARE = 0.8  # of the free memory of a GPU; the rest is for what else the process does


def with_local_training(
    config: RunConfig, spec: ClientSpec, dataset: Dataset, net: nn.Module, weights: NDArrays
) -> RunConfig:
    """Return the config with ``local_training`` and ``vectorized_clients`` decided.

    Raises:
        ConfigError: ``vectorized`` was asked for, and this model or these functions cannot be trained so.
    """
    asked, device = config.local_training, pick_device(spec.device)
    num_weights = sum(array.size for array in weights)
    is_small = num_weights <= _MOST_WEIGHTS_ON_A_CPU and config.num_fit_clients >= _FEWEST_CLIENTS_ON_A_CPU
    # Which clients would be trained together in asynchronous rounds depends on where a run was resumed.
    may_pay = (device.type == "cuda" or is_small) and not config.is_asynchronous
    if asked == "sequential" or (asked == "auto" and not may_pay):
        return replace(config, local_training="sequential", vectorized_clients=None)
    reason = next(_reasons_against(config, spec, dataset), None)
    if reason is None:
        sample = _Sample(config, spec, dataset, net, device)
        reason = sample.reason_against(weights)
    if reason is not None:
        if asked == "vectorized":
            raise ConfigError(f"--local-training vectorized: {reason}; use sequential or auto")
        if device.type == "cuda":
            logging.getLogger("sim").info("clients are trained one after another: %s", reason)
        return replace(config, local_training="sequential", vectorized_clients=None)
    count = config.vectorized_clients or sample.clients_that_fit(weights)
    if device.type != "cuda" and asked == "auto":
        about = "clients are trained in groups of %d, because %s has %d weights only; see --local-training"
        logging.getLogger("sim").info(about, count, config.model, num_weights)
    return replace(config, local_training="vectorized", vectorized_clients=count)


def _reasons_against(config: RunConfig, spec: ClientSpec, dataset: Dataset) -> Iterator[str]:
    """Say what of the data, the loss and the work of clients cannot be done in one computation."""
    for flag, value in (("--train", config.train), ("--client", config.client)):
        if value is not None:
            yield f"{flag} {value} trains one client at a time"
    if not isinstance(dataset.train, Examples | Columns):
        yield f"--dataset {config.dataset} draws the examples of one client at a time"
    if config.feature_noise and not isinstance(dataset.train, Examples):
        yield f"--feature-noise {config.feature_noise} is drawn for one client at a time where the data are no images"
    if not isinstance(loss_of(spec, dataset), str):
        yield f"--loss {config.loss} gives the mean of a batch, not the loss of each example"
    if spec.compression.up is not None:
        yield f"--compress up={config.compress['up']} encodes what each client sends by itself"
    if spec.algorithm is not None:
        algorithm = spec.algorithm.made()
        if spec.algorithm.local_names:
            yield f"parameters stay with each client ({', '.join(spec.algorithm.local_names[:3])}, …)"
        if not (isinstance(algorithm, GradientCorrection) and algorithm.can_be_vectorized):
            yield f"clients of {spec.algorithm.name} do more than to train with a corrected gradient"


class _Sample:
    """A vectorized training of a few clients on one example, as a test of model and memory."""

    def __init__(
        self, config: RunConfig, spec: ClientSpec, dataset: Dataset, net: nn.Module, device: torch.device
    ) -> None:
        assert config.batch_size is not None, "only items have a batch_sampler that decides it"
        self._config = config
        self._batch_size: int = config.batch_size
        # Those of the run, because an optimizer's state and the precision decide how much memory a client needs.
        self._settings: dict[str, Any] = train_settings(config, 1, config.num_rounds)
        self._device = device
        self._net = net.to(device)
        self._channels_last = config.model in models.MODELS and isinstance(dataset.train, Examples)
        loss = loss_of(spec, dataset)
        assert isinstance(loss, str)
        self._loss = LOSSES[loss]
        self._split = _first_example(dataset.train, device)
        self._data_bytes = sum(map(_num_bytes, (dataset.train, dataset.test)))

    def reason_against(self, weights: NDArrays) -> str | None:
        """Say why this model cannot be vectorized; None if it can."""
        try:
            self._trainer().train(weights, self._members(2), **self._settings)
        except Exception as error:  # noqa: BLE001 - whatever vmap cannot do with this model
            reason = one_line(str(error), 200) or type(error).__name__
            return f"{self._config.model} cannot be stacked: {reason}"
        return None

    def clients_that_fit(self, weights: NDArrays) -> int:
        """Return how many clients fit into a process's share of the GPU, from the memory that two and four need.

        If the memory is the limit, that is a power of two, so that it does not change with a few MiB that are free.
        """
        clients = self._config.num_fit_clients
        if self._device.type != "cuda":
            least, most = _VECTORIZED_ON_A_CPU
            return min(clients, most, max(least, -(-clients // 2)))
        trainer = self._trainer()
        peaks = []
        for count in (2, 4):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            trainer.train(weights, self._members(count), **self._settings)
            peaks.append(torch.cuda.max_memory_allocated())
        each = max(1.0, (peaks[1] - peaks[0]) / 2)
        free, _ = torch.cuda.mem_get_info()
        share = self._config.gpus_of_a_client
        available = _MEMORY_SHARE * free * min(1.0, share or 1.0) - self._data_bytes  # each process holds all examples
        processes = max(1, int(1 / share)) if share else 1
        fit: int = 2 ** int(math.log2(max(1, (available - peaks[0]) / each + 2)))
        return min(fit, -(-clients // processes))

    def _trainer(self) -> Trainer:
        return Trainer(self._net, self._split, self._batch_size, channels_last=self._channels_last, loss=self._loss)

    def _members(self, count: int) -> list[Member]:
        return [drawn(self._loader(), 1, 1, 0, self._device) for _ in range(count)]

    def _loader(self) -> Loader:
        repeated = np.zeros(self._batch_size, np.int64)
        if isinstance(self._split, ResidentColumns):
            return ExampleLoader(self._split, repeated, self._batch_size, training=True, device=self._device)
        return Batches(
            self._split,
            repeated,
            self._batch_size,
            self._device,
            shuffle=True,
            channels_last=self._channels_last,
            augment=self._config.augment,
        )


def _first_example(examples: Any, device: torch.device) -> Resident | ResidentColumns:
    if isinstance(examples, Examples):
        return Resident.of(Examples(examples.images[:1], examples.labels[:1]), device)
    return ResidentColumns(Columns(mapped(examples.batch, lambda column: column[:1])), device)


def _num_bytes(examples: Any) -> int:
    """Return how large a split is on a device."""
    if isinstance(examples, Examples):
        return examples.images.nbytes + examples.labels.nbytes
    return sum(column.nbytes for column in leaves(examples.batch)) if isinstance(examples, Columns) else 0
