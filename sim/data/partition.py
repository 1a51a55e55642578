"""The partition: which examples each client holds.

It is stored in the cache as two arrays, so that a process opens two files even for thousands of clients: ``indices``
int64 [N] has the examples of client 0, then those of client 1, and so on; ``offsets`` int64 [num_clients + 1] has the
place in ``indices`` where each client begins. With ``--validation-share``, ``validation`` int64 [M] has the examples
that no client gets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.config.run_config import RunConfig
from sim.data import partitioners
from sim.data.cache import cached, save_array, unreadable
from sim.data.defaults import decided
from sim.data.load_dataset import Dataset, Labels
from sim.data.partitioners import Indices
from sim.errors import ConfigError, PartitionError
from sim.seeds import Purpose, generator


@dataclass(frozen=True)
class Partition:
    """The examples of every client, memory-mapped from the cache folder."""

    folder: Path | None
    indices: Indices
    offsets: Indices
    validation: Indices = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def unknown(cls, num_clients: int) -> Partition:
        """Return the partition of a program that partitions itself: nobody knows how many examples a client has."""
        return cls(None, np.zeros(0, np.int64), np.zeros(num_clients + 1, np.int64))

    @property
    def is_known(self) -> bool:
        """Return whether it says which examples each client holds."""
        return self.folder is not None

    @property
    def num_clients(self) -> int:
        """Return the number of clients."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Indices:
        """Return the number of examples of each client, int64 [num_clients]."""
        return np.diff(self.offsets)

    def of(self, client_id: int) -> Indices:
        """Return the indices of one client's examples, int64 [num_examples], in a shuffled order."""
        return self.indices[self.offsets[client_id] : self.offsets[client_id + 1]]

    def split(self, client_id: int, eval_share: float) -> tuple[Indices, Indices]:
        """Split the n examples of one client: the last ⌊n · eval_share⌋ are for evaluation, the others for training."""
        indices = self.of(client_id)
        num_train = num_training_examples(len(indices), eval_share)
        return indices[:num_train], indices[num_train:]

    def label_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Return the number of examples of each class at each client, int64 [num_clients, num_classes]."""
        holders = np.repeat(np.arange(self.num_clients), self.sizes)
        held = np.asarray(labels)[self.indices[: self.offsets[-1]]]
        counts = np.bincount(holders * num_classes + held, minlength=self.num_clients * num_classes)
        return counts.reshape(self.num_clients, num_classes)


def num_training_examples(size: int, eval_share: float) -> int:
    """Return how many of a client's examples are for training."""
    # 1e-9, because 0.29 · 100 is 28.999…; a share below 1 leaves an example for training all the same.
    return size - min(int(size * eval_share + 1e-9), max(0, size - 1))


def assign(dataset: Dataset, config: RunConfig) -> Partition:
    """Assign examples to ``config.num_clients`` clients; the same config and columns give the same partition.

    Some partitioners do not use all examples; the remaining examples belong to no client.

    Raises:
        ConfigError: ``--partitioner-args`` has an argument that the partitioner does not take, or nothing can be held
            out for a validation.
        PartitionError: a client would have fewer than ``min_partition_size`` examples, or the examples have no column
            that the partitioner needs.
    """
    if dataset.source.num_clients is not None:
        if config.validation_share:
            raise ConfigError(
                f"--validation-share {config.validation_share:g}: --dataset {config.dataset} gives the data of each "
                "client, so that there are no examples of all clients of which some could be held out; use "
                "--fraction-evaluate"
            )
        return Partition.unknown(config.num_clients)
    config, _ = decided(config, dataset)
    values = partitioners.column_of(config, dataset)
    held_out = validation_of(values, config)
    left = np.setdiff1d(np.arange(len(values)), held_out) if len(held_out) else None
    if left is not None:
        values = values[left]
    num_examples = len(values)
    needed = config.num_clients * config.min_partition_size
    if needed > num_examples:
        raise PartitionError(
            f"--num-clients {config.num_clients}: {num_examples} training examples are too few for "
            f"{config.min_partition_size} per client; at most {num_examples // config.min_partition_size} clients"
        )
    key = {
        "labels": hashlib.sha256(values.tobytes()).hexdigest(),
        "partitioner": config.partitioner,
        "num_clients": config.num_clients,
        "min_partition_size": config.min_partition_size,
        "seed": config.seed,
        "arguments": partitioners.arguments(config, values),
        "flwr-datasets": version("flwr-datasets"),
        **({} if left is None else {"validation_share": config.validation_share}),
    }

    def make(folder: Path) -> None:
        parts = partitioners.assign(values, config)
        if left is not None:
            parts = [left[part] for part in parts]
            save_array(folder / "validation.npy", held_out)
        save_array(folder / "indices.npy", np.concatenate(parts))
        save_array(folder / "offsets.npy", np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64))

    return open_cached(cached("partition", key, make))


def validation_of(values: NDArray[np.generic], config: RunConfig) -> Indices:
    """Return the examples that are held out for the validation, int64 [M] in ascending order.

    They are drawn from all examples alike, except that each class or natural client at which the partitioner looks
    keeps at least one example.

    Args:
        values: [N], the column at which the partitioner looks.

    Raises:
        ConfigError: there would be none.
    """
    share = config.validation_share
    if not share:
        return np.zeros(0, np.int64)
    order = generator(config.seed, Purpose.VALIDATION).permutation(len(values))
    if values.dtype.kind in "iu":
        first = np.unique(values[order], return_index=True)[1]
        order = np.delete(order, first)
    chosen = np.sort(order[: int(len(values) * share + 1e-9)])
    if not len(chosen):
        raise ConfigError(f"--validation-share {share:g}: holds out none of {len(values)} training examples")
    return chosen


@dataclass(frozen=True)
class Summary:
    """What each client holds, for tables and pictures.

    Attributes:
        sizes: number of examples of each client, int64 [num_clients].
        column: what the other values are about: ``class``, ``target``, or the name of a column; empty for nothing.
        counts: number of examples of each class at each client, int64 [num_clients, num_classes]; None if there are
            more than 100 classes or none.
        names: of the classes of ``counts``.
        quantiles: minimum, quartiles and maximum of a column of numbers at each client, float64 [num_clients, 5].
        distinct: number of different values of a column of many classes at each client, int64 [num_clients].
    """

    sizes: Indices
    column: str = ""
    counts: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    quantiles: NDArray[np.float64] | None = None
    distinct: Indices | None = None


_MOST_COUNTED_CLASSES = 100


def summary(dataset: Dataset, assigned: Partition, config: RunConfig) -> Summary:
    """Return what each client holds of the column by which examples were assigned, or else of the target."""
    sizes, labels = assigned.sizes, dataset.labels
    name = None if config.partitioner in ("natural", "grouped-natural") else config.partition_by
    if name is None and labels is not None and dataset.classes:
        column, classes, names = "class", labels, dataset.classes
    else:
        try:
            values = partitioners.column_for(config, dataset, name)
        except PartitionError:  # the target of an example is not one value
            return Summary(sizes)
        column, found = name or "target", partitioners.as_classes(values)
        is_measured = values.dtype.kind == "f" and (found is None or (name is None and dataset.is_regression))
        if config.partitioner == "continuous" and values.dtype.kind in "iu":
            is_measured = len(np.unique(values)) > _MOST_COUNTED_CLASSES
        if is_measured:
            parts = [values[assigned.of(client_id)] for client_id in range(assigned.num_clients)]
            return Summary(
                sizes, column, quantiles=np.array([np.quantile(part, (0, 0.25, 0.5, 0.75, 1)) for part in parts])
            )
        if found is None:
            return Summary(sizes)
        classes, names = found, tuple(str(value) for value in np.unique(values))
    if len(names) <= _MOST_COUNTED_CLASSES:
        return Summary(sizes, column, assigned.label_counts(classes, len(names)), names)
    distinct = [len(np.unique(classes[assigned.of(client_id)])) for client_id in range(assigned.num_clients)]
    return Summary(sizes, column, distinct=np.array(distinct))


def open_cached(folder: Path) -> Partition:
    """Memory-map a partition in the cache read-only.

    Raises:
        DataError: its files are damaged.
    """
    try:
        # A view as a plain array, because slices of numpy's memmap class are slow.
        indices, offsets = (
            np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in ("indices", "offsets")
        )
        path = folder / "validation.npy"
        held_out = {"validation": np.load(path, mmap_mode="r").view(np.ndarray)} if path.exists() else {}
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(f"the cached partition {folder}", error) from error
    return Partition(folder, indices, offsets, **held_out)
