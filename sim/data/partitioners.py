"""Partitioners by name: each runs a partitioner of flwr-datasets on the examples in a seeded random order."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim import user_code
from sim.config.run_config import RunConfig
from sim.errors import PartitionError
from sim.seeds import Purpose, generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


Indices = NDArray[np.int64]


def inner_dirichlet(
    labels: Indices, partition_sizes: list[int], alpha: float, seed: int, shuffle: bool = True
) -> list[Indices]:
    """Assign examples to clients so that each client has class proportions of its own.

    In each step, a client is drawn from those that are not full, and the class of its next example is drawn from that
    client's Dirichlet distribution over the classes that still have examples (Acar et al. 2021, arXiv:2111.04263). The
    result is the same as that of ``InnerDirichletPartitioner`` of flwr-datasets, which is slower.

    Args:
        labels: int64 [N], the class of each example, 0 … K−1.
        partition_sizes: number of examples of each client; their sum is at most N.
        alpha: concentration of the Dirichlet distribution.
        seed: seed of all random numbers.
        shuffle: whether the examples of each client are shuffled.

    Returns:
        The indices in ``labels`` of each client's examples, int64.

    Raises:
        ValueError: no example is left of the classes in a client's distribution.
    """
    rng = np.random.default_rng(seed)
    num_classes = len(np.unique(labels))
    priors = rng.dirichlet(np.full(num_classes, float(alpha)), size=len(partition_sizes))
    indices_of_class = [np.flatnonzero(labels == label) for label in range(num_classes)]
    left_of_class = [len(indices) for indices in indices_of_class]
    left_at_client = list(partition_sizes)
    parts = [np.zeros(size, np.int64) for size in partition_sizes]
    not_full = list(range(len(partition_sizes)))
    remaining = sum(partition_sizes)
    while remaining:
        position = int(rng.integers(0, len(not_full)))
        client_id = not_full[position]
        if left_at_client[client_id] == 0:
            del not_full[position]
            continue
        left_at_client[client_id] -= 1
        while True:
            cumulative = priors[client_id].cumsum()
            if not cumulative[-1] > 0:
                raise ValueError(f"no example is left of the classes that client {client_id} needs")
            cumulative /= cumulative[-1]
            label = int(cumulative.searchsorted(rng.random(), side="right"))
            if left_of_class[label]:
                break
            priors[:, label] = 0
            with np.errstate(invalid="ignore"):
                priors /= priors.sum(axis=1, keepdims=True)
        left_of_class[label] -= 1
        parts[client_id][left_at_client[client_id]] = indices_of_class[label][left_of_class[label]]
        remaining -= 1
    if shuffle:
        for part in parts:
            rng.shuffle(part)
    return parts


Parts = list[NDArray[np.int64]]

_SEARCH_SECONDS = 10.0


@dataclass(frozen=True)
class Entry:
    """A partitioner.

    Attributes:
        class_name: name of the class in ``flwr_datasets.partitioner``.
        arguments: function (config, num_examples) → arguments of the constructor.
        faster: function (labels, **arguments) → indices of each client; it gives the same partition in less time.
    """

    class_name: str
    arguments: Callable[[RunConfig, int], dict[str, Any]]
    faster: Callable[..., Parts] | None = None


def _count(config: RunConfig, _: int) -> dict[str, Any]:
    return {"num_partitions": config.num_clients}


def _by_label(**defaults: Any) -> Callable[[RunConfig, int], dict[str, Any]]:
    def arguments(config: RunConfig, num_examples: int) -> dict[str, Any]:
        seed = int(generator(config.seed, Purpose.PARTITION, 1).integers(2**32))
        return {**_count(config, num_examples), "partition_by": "label", "seed": seed, **defaults}

    return arguments


def _dirichlet(config: RunConfig, num_examples: int) -> dict[str, Any]:
    own = {"alpha": config.alpha, "min_partition_size": config.min_partition_size}
    return _by_label(**own)(config, num_examples)


def _inner_dirichlet(config: RunConfig, num_examples: int) -> dict[str, Any]:
    smaller, larger_count = divmod(num_examples, config.num_clients)
    sizes = [smaller + (client_id < larger_count) for client_id in range(config.num_clients)]
    given = _by_label(alpha=config.alpha, partition_sizes=sizes)(config, num_examples)
    del given["num_partitions"]
    return given


PARTITIONERS = {
    "iid": Entry("IidPartitioner", _count),
    "dirichlet": Entry("DirichletPartitioner", _dirichlet),
    "inner-dirichlet": Entry("InnerDirichletPartitioner", _inner_dirichlet, inner_dirichlet),
    "shard": Entry("ShardPartitioner", _by_label(num_shards_per_partition=2)),
    "pathological": Entry("PathologicalPartitioner", _by_label(num_classes_per_partition=2)),
    "linear": Entry("LinearPartitioner", _count),
    "square": Entry("SquarePartitioner", _count),
    "exponential": Entry("ExponentialPartitioner", _count),
}


BY_LABEL = ("dirichlet", "inner-dirichlet", "shard", "pathological")


def arguments(config: RunConfig, num_examples: int) -> dict[str, Any]:
    """Return the constructor arguments of the configured partitioner.

    Raises:
        ConfigError: ``--partitioner-args`` has an argument that the partitioner does not take.
    """
    ours = PARTITIONERS[config.partitioner].arguments(config, num_examples)
    reserved = {"num_partitions", "partition_by", "seed", "alpha", "min_partition_size", "partition_sizes"}
    if config.partitioner_args:  # otherwise the library is not imported, which saves time if the partition is cached
        user_code.check_arguments(
            _class_of(config), config.partitioner_args, reserved, "--partitioner-args", config.partitioner
        )
    return {**ours, **config.partitioner_args}


def assign(labels: NDArray[np.int64], config: RunConfig) -> Parts:
    """Return the indices of each client's examples, int64.

    Args:
        labels: int64 [N], the class of each example.

    Raises:
        ConfigError: see ``arguments``.
        PartitionError: the partitioner fails, or it gives a client fewer than ``min_partition_size`` examples.
    """
    parts = _attempt(labels, config)
    if isinstance(parts, str):
        raise PartitionError(
            f"--partitioner {config.partitioner}: {parts}; {_working_alternatives(labels, config)} works"
        )
    return parts


def _class_of(config: RunConfig) -> Any:
    import flwr_datasets.partitioner

    return getattr(flwr_datasets.partitioner, PARTITIONERS[config.partitioner].class_name)


def _attempt(labels: NDArray[np.int64], config: RunConfig) -> Parts | str:
    """Run the partitioner; return the indices of each client's examples, or the reason why it failed.

    flwr-datasets cuts contiguous ranges (of all examples or of a class), so the order of the examples decides which
    client gets which of them. Therefore the order is first permuted with the seed.
    """
    order = generator(config.seed, Purpose.PARTITION).permutation(len(labels))
    given, faster = arguments(config, len(labels)), PARTITIONERS[config.partitioner].faster
    try:
        if faster is not None:
            del given["partition_by"]
            parts = [order[part] for part in faster(labels[order], **given)]
        else:
            parts = _load_parts(_class_of(config)(**given), labels[order], order)
    except (ValueError, TypeError, AssertionError, IndexError, KeyError, ZeroDivisionError) as error:
        return str(error).rstrip(".") or type(error).__name__
    smallest = min(len(part) for part in parts)
    if smallest < config.min_partition_size:
        return (
            f"one of {config.num_clients} clients has only {smallest} of {len(labels)} examples, fewer than "
            f"--min-partition-size {config.min_partition_size}"
        )
    return parts


def _load_parts(partitioner: Partitioner, labels: NDArray[np.int64], order: NDArray[np.int64]) -> Parts:
    import datasets

    # Reading 1,000 partitions takes 1 s from Arrow columns, but 7 s from numpy columns.
    table = datasets.Dataset.from_dict({"label": labels, "index": order}).with_format("arrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every attempt would warn; the error message says it once
        partitioner.dataset = table
        partitioner.load_partition(0)  # most classes compute the partition in the first call
        return [
            np.asarray(partitioner.load_partition(client_id)[:]["index"], np.int64)
            for client_id in range(partitioner.num_partitions)
        ]


def _working_alternatives(labels: NDArray[np.int64], config: RunConfig) -> str:
    """Return flags with which a partition is possible; they are found by trials within a limited time."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    all_clients = replace(config, clients_per_round=None, fraction_fit=1.0, fraction_evaluate=0.0)
    counts = [
        replace(all_clients, num_clients=config.num_clients >> step)
        for step in range(1, config.num_clients.bit_length())
    ]
    has_alpha = "alpha" in PARTITIONERS[config.partitioner].arguments(config, len(labels))
    alphas = [replace(config, alpha=config.alpha * 2**step) for step in range(1, 11 if has_alpha else 1)]
    count, alpha = (
        next((t for t in trials if time.monotonic() < deadline and not isinstance(_attempt(labels, t), str)), None)
        for trials in (counts, alphas)
    )
    ways = [f"--alpha {alpha.alpha:g}"] if alpha else []
    ways += [f"--num-clients {count.num_clients}"] if count else []
    return " or ".join([*ways, "--partitioner iid"])
