"""Name + arguments → what one of flwr-datasets' partitioners deals, over examples in a seeded order."""

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
    """Return which examples each client gets.

    Each example in turn goes to a client drawn from those that are not full; its class is drawn from that client's
    own Dirichlet distribution over the classes that are not used up (Acar et al. 2021, arXiv:2111.04263).

    Args:
        labels: int64 [N], the class of each example, 0 … K−1.
        partition_sizes: how many examples each client gets; their sum is at most N.
        alpha: concentration of the Dirichlet distribution.

    Raises:
        ValueError: a client wants classes of which none is left.
    """
    rng = np.random.default_rng(seed)
    num_classes = len(np.unique(labels))
    priors = rng.dirichlet(np.full(num_classes, float(alpha)), size=len(partition_sizes))
    of_class = [np.flatnonzero(labels == label) for label in range(num_classes)]
    left_of_class = [len(indices) for indices in of_class]
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
                raise ValueError(f"client {client_id} wants classes of which no example is left")
            cumulative /= cumulative[-1]
            label = int(cumulative.searchsorted(rng.random(), side="right"))
            if left_of_class[label]:
                break
            priors[:, label] = 0
            with np.errstate(invalid="ignore"):
                priors /= priors.sum(axis=1, keepdims=True)
        left_of_class[label] -= 1
        parts[client_id][left_at_client[client_id]] = of_class[label][left_of_class[label]]
        remaining -= 1
    if shuffle:
        for part in parts:
            rng.shuffle(part)
    return parts


Parts = list[NDArray[np.int64]]

_TRYING_SECONDS = 10.0


@dataclass(frozen=True)
class Entry:
    """A class of ``flwr_datasets.partitioner``, and what it is made with: ``arguments(config, num_examples)``.

    Attributes:
        same: the same partition as the class deals, faster: (labels, **arguments) → indices of each client.
    """

    class_name: str
    arguments: Callable[[RunConfig, int], dict[str, Any]]
    same: Callable[..., Parts] | None = None


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


def arguments(config: RunConfig, num_examples: int) -> dict[str, Any]:
    """Return what the configured partitioner is made with.

    Raises:
        ConfigError: ``--partitioner-args`` has one that it does not take.
    """
    ours = PARTITIONERS[config.partitioner].arguments(config, num_examples)
    reserved = {"num_partitions", "partition_by", "seed", "alpha", "min_partition_size", "partition_sizes"}
    if config.partitioner_args:  # otherwise the library need not be imported where the partition is in the cache
        user_code.check_arguments(
            _class_of(config), config.partitioner_args, reserved, "--partitioner-args", config.partitioner
        )
    return {**ours, **config.partitioner_args}


def assign(labels: NDArray[np.int64], config: RunConfig) -> Parts:
    """Return the indices of each client's examples.

    Raises:
        PartitionError: the partitioner cannot give every client ``min_partition_size`` examples.
    """
    parts = _attempt(labels, config)
    if isinstance(parts, str):
        raise PartitionError(f"--partitioner {config.partitioner}: {parts}; {_what_works(labels, config)} works")
    return parts


def _class_of(config: RunConfig) -> Any:
    import flwr_datasets.partitioner

    return getattr(flwr_datasets.partitioner, PARTITIONERS[config.partitioner].class_name)


def _attempt(labels: NDArray[np.int64], config: RunConfig) -> Parts | str:
    """Run the partitioner on a table of (label, index); return the parts, or why it cannot be.

    flwr-datasets cuts contiguous ranges (of all examples or of a class), so the order of the table decides who
    gets what; it is permuted by the seed first.
    """
    order = generator(config.seed, Purpose.PARTITION).permutation(len(labels))
    given, same = arguments(config, len(labels)), PARTITIONERS[config.partitioner].same
    try:
        if same is not None:
            del given["partition_by"]
            parts = [order[part] for part in same(labels[order], **given)]
        else:
            parts = _ask(_class_of(config)(**given), labels[order], order)
    except (ValueError, TypeError, AssertionError, IndexError, KeyError, ZeroDivisionError) as error:
        return str(error).rstrip(".") or type(error).__name__
    smallest = min(len(part) for part in parts)
    if smallest < config.min_partition_size:
        return (
            f"leaves one of {config.num_clients} clients with {smallest} of {len(labels)} examples, fewer than "
            f"--min-partition-size {config.min_partition_size}"
        )
    return parts


def _ask(partitioner: Partitioner, labels: NDArray[np.int64], order: NDArray[np.int64]) -> Parts:
    import datasets

    # Arrow columns: reading 1,000 partitions takes 1 s, as numpy columns 7 s.
    table = datasets.Dataset.from_dict({"label": labels, "index": order}).with_format("arrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each attempt; the error says it once
        partitioner.dataset = table
        partitioner.load_partition(0)  # most deal when they are first asked
        return [
            np.asarray(partitioner.load_partition(client_id)[:]["index"], np.int64)
            for client_id in range(partitioner.num_partitions)
        ]


def _what_works(labels: NDArray[np.int64], config: RunConfig) -> str:
    """Say which alpha, or which number of clients, the same partitioner meets: found by trying, for a while."""
    deadline = time.monotonic() + _TRYING_SECONDS
    everyone = replace(config, clients_per_round=None, fraction_fit=1.0, fraction_evaluate=0.0)
    counts = [
        replace(everyone, num_clients=config.num_clients >> step) for step in range(1, config.num_clients.bit_length())
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
