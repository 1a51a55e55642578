"""Labels → which examples each client holds, through flwr-datasets' partitioners.

Stored in the cache as two arrays, so that a process with a thousand clients maps one file: ``indices``
int64 [N], the examples of client 0, then those of client 1, …; ``offsets`` int64 [num_clients + 1].
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.config import RunConfig
from sim.data import Labels, cached
from sim.errors import DataError, PartitionError
from sim.seeds import Purpose, generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """The examples of every client, mapped from the cache folder."""

    folder: Path
    indices: Indices
    offsets: Indices

    @property
    def num_clients(self) -> int:
        """How many clients share the examples."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Indices:
        """Examples of each client, int64 [num_clients]."""
        return np.diff(self.offsets)

    def of(self, client_id: int) -> Indices:
        """Indices of one client's examples, in the client's own shuffled order."""
        return self.indices[self.offsets[client_id] : self.offsets[client_id + 1]]

    def split(self, client_id: int, eval_share: float) -> tuple[Indices, Indices]:
        """Cut one client's examples into those for training and the last ⌊n · eval_share⌋ for evaluation."""
        indices = self.of(client_id)
        kept = int(len(indices) * eval_share + 1e-9)
        return indices[: len(indices) - kept], indices[len(indices) - kept :]

    def label_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Examples of each class at each client, int64 [num_clients, num_classes]."""
        return np.stack([np.bincount(labels[self.of(c)], minlength=num_classes) for c in range(self.num_clients)])


def deal(labels: Labels, config: RunConfig) -> Partition:
    """Deal examples to ``config.num_clients`` clients; the same config and labels give the same partition.

    Raises:
        PartitionError: not every client can get ``min_partition_size`` examples.
    """
    needed = config.num_clients * config.min_partition_size
    if needed > len(labels):
        raise PartitionError(
            f"--num-clients {config.num_clients}: {len(labels)} training examples cannot give each "
            f"{config.min_partition_size}; at most {len(labels) // config.min_partition_size} clients"
        )
    arguments = {"alpha": config.alpha} if config.partitioner == "dirichlet" else {}
    key = {
        "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        "partitioner": config.partitioner,
        "num_clients": config.num_clients,
        "min_partition_size": config.min_partition_size,
        "seed": config.seed,
        **arguments,
    }

    def make(folder: Path) -> None:
        parts = _read_parts(labels, config)
        np.save(folder / "indices.npy", np.concatenate(parts))
        np.save(folder / "offsets.npy", np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64))

    return open_cached(cached("partition", key, make))


def open_cached(folder: Path) -> Partition:
    """Map a partition of the cache read-only.

    Raises:
        DataError: its files are damaged.
    """
    try:
        indices, offsets = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("indices", "offsets"))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the cached partition {folder} is damaged ({error}); delete that folder") from error
    return Partition(folder, indices, offsets)


def _partitioner(labels: Labels, config: RunConfig) -> Partitioner:
    """Make the partitioner over a table of (label, index) in a seeded order.

    flwr-datasets cuts contiguous ranges (of all examples or of a class), so the order decides who gets what.
    """
    import datasets

    order = generator(config.seed, Purpose.PARTITION).permutation(len(labels))
    partitioner = _PARTITIONERS[config.partitioner](config)
    # Arrow columns: reading 1,000 partitions takes 1 s, as numpy columns 7 s.
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels[order], "index": order}).with_format("arrow")
    return partitioner


def _read_parts(labels: Labels, config: RunConfig) -> list[Indices]:
    partitioner = _partitioner(labels, config)
    if not _succeeds(partitioner):
        raise PartitionError(_what_works(labels, config))
    parts = [
        np.asarray(partitioner.load_partition(client_id)[:]["index"], np.int64)
        for client_id in range(config.num_clients)
    ]
    smallest = min(len(part) for part in parts)
    if smallest < config.min_partition_size:
        raise PartitionError(
            f"--min-partition-size {config.min_partition_size}: {config.partitioner} leaves a client with "
            f"{smallest} of {len(labels)} examples; at most {smallest} works"
        )
    return parts


def _succeeds(partitioner: Partitioner) -> bool:
    """Whether the partitioner meets its own minimum; it samples when the first partition is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each attempt; the error says it once
        try:
            partitioner.load_partition(0)
        except ValueError as error:
            if "number of attempts" in str(error):
                return False
            raise
    return True


def _iid(config: RunConfig) -> Partitioner:
    from flwr_datasets.partitioner import IidPartitioner

    return IidPartitioner(num_partitions=config.num_clients)


def _dirichlet(config: RunConfig) -> Partitioner:
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        alpha=config.alpha,
        min_partition_size=config.min_partition_size,
        seed=int(generator(config.seed, Purpose.PARTITION, 1).integers(2**32)),
    )


_PARTITIONERS: dict[str, Callable[[RunConfig], Partitioner]] = {"iid": _iid, "dirichlet": _dirichlet}


def _what_works(labels: Labels, config: RunConfig) -> str:
    """Say which alpha, or which number of clients, the same sampling meets: found by trying."""
    alphas = [replace(config, alpha=config.alpha * 2**step) for step in range(1, 11)]
    everyone = replace(config, clients_per_round=None, fraction_fit=1.0, fraction_evaluate=0.0)
    counts = [
        replace(everyone, num_clients=config.num_clients >> step)
        for step in range(1, config.num_clients.bit_length())
    ]
    alpha, count = (
        next((c for c in trials if _succeeds(_partitioner(labels, c))), None) for trials in (alphas, counts)
    )
    ways = [f"--alpha {alpha.alpha:g}"] if alpha else []
    ways += [f"--num-clients {count.num_clients}"] if count else []
    return (
        f"--alpha {config.alpha:g}: in 11 attempts dirichlet left one of {config.num_clients} clients with "
        f"fewer than {config.min_partition_size} of {len(labels)} examples; "
        f"{' or '.join([*ways, '--partitioner iid'])} works"
    )
