"""Partitioners by name: each runs a partitioner of flwr-datasets on the examples in a seeded random order."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim import user_code
from sim.config.fields import parse_number
from sim.config.run_config import RunConfig
from sim.data.columns import class_labels
from sim.data.load_dataset import Dataset, Examples
from sim.errors import ConfigError, PartitionError, described
from sim.seeds import Purpose, generator, seeded

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


Indices = NDArray[np.int64]
Parts = list[Indices]  # the examples of each client
Values = NDArray[Any]


def inner_dirichlet(
    labels: Indices, partition_sizes: list[int], alpha: float, seed: int, shuffle: bool = True
) -> Parts:
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


_SEARCH_SECONDS = 10.0
_MOST_DRAWS = 1000


def quantity(values: Values, num_partitions: int, alpha: float, seed: int, min_partition_size: int) -> Parts:
    """Give each client a share of all examples that is drawn from a Dirichlet distribution over the clients.

    This is the quantity skew q ~ Dir_N(β) of Li et al. (2022, arXiv:2102.02079, section 4.3), computed as their program
    does it (Xtra-Computing/NIID-Bench, utils.py, ``iid-diff-quantity``): the shares are drawn anew until the smallest
    is large enough, and the cumulative sizes are rounded down. flwr-datasets has no such partitioner.

    Args:
        values: [N]; only their number matters, as they are in a random order.

    Raises:
        ValueError: no draw gave each client ``min_partition_size`` examples.
    """
    rng = np.random.default_rng(seed)
    for _ in range(_MOST_DRAWS):
        shares = rng.dirichlet(np.full(num_partitions, alpha))
        edges = (np.cumsum(shares)[:-1] * len(values)).astype(np.int64)
        if np.diff(edges, prepend=0, append=len(values)).min() >= min_partition_size:
            return np.split(np.arange(len(values)), edges)
    raise ValueError(
        f"none of {_MOST_DRAWS} draws gives each of {num_partitions} clients --min-partition-size "
        f"{min_partition_size} of {len(values)} examples"
    )


def iid(values: Values, num_partitions: int) -> Parts:
    """Cut the examples, which are in a random order, into equal parts; the first ones have one more where it is needed.

    The result is the same as that of ``IidPartitioner`` of flwr-datasets, which takes a millisecond per client.
    """
    return np.array_split(np.arange(len(values)), num_partitions)


def natural(labels: Indices, num_partitions: int) -> Parts:
    """Return the examples of the first ids, in the order of the ids.

    With as many clients as ids, the result is the same as that of ``NaturalIdPartitioner`` of flwr-datasets, which
    shows a progress bar.
    """
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(num_partitions + 1))
    return [order[first:last] for first, last in pairwise(edges)]


def size_to_id(
    num_partitions: int, power: float = 1.0, function: str = "", shares: Sequence[float] | None = None
) -> Partitioner:
    """Make clients whose numbers of examples grow with client_id + 1 to a power, or as a function of the user's says.

    Args:
        function: ``package.module:name`` of a function, float64 [num_partitions] of 1, 2 … → the shares of the clients.
        shares: what it has returned.
    """
    from flwr_datasets.partitioner import IdToSizeFncPartitioner

    assert not function or shares is not None
    return IdToSizeFncPartitioner(num_partitions, lambda ids: ids**power if shares is None else np.array(shares))


def size(partition_sizes: str) -> Partitioner:
    """Make clients with given numbers of examples, which a text says, separated by commas."""
    from flwr_datasets.partitioner import SizePartitioner

    return SizePartitioner(_sizes(partition_sizes))


def distribution(
    num_partitions: int,
    num_classes: int,
    partition_by: str,
    seed: int,
    num_unique_labels_per_partition: int = 2,
    preassigned_num_samples_per_label: int = 5,
    sigma: float = 2.0,
    shuffle: bool = True,
) -> Partitioner:
    """Make clients with a few classes each, of which they have numbers of examples from a log-normal distribution.

    This is how Li et al. (2020) distribute MNIST.

    Args:
        sigma: deviation of the logarithm of the numbers.
    """
    from flwr_datasets.partitioner import DistributionPartitioner

    shares = np.random.default_rng(seed).lognormal(0.0, sigma, num_partitions * num_unique_labels_per_partition)
    if len(shares) % num_classes:
        raise ValueError(f"the number of clients must be a multiple of the number of classes, {num_classes}")
    return DistributionPartitioner(
        shares.reshape(num_classes, -1),
        num_partitions,
        num_unique_labels_per_partition,
        partition_by,
        preassigned_num_samples_per_label,
        shuffle=shuffle,
        seed=seed,
    )


@dataclass(frozen=True)
class Entry:
    """A partitioner.

    Attributes:
        maker: name of the class in ``flwr_datasets.partitioner``, or a function that makes the partitioner; where no
            such class exists, the function ``faster``, whose arguments are those that a user may give.
        arguments: function (config, values) → arguments of the constructor; ``values`` are the column.
        faster: function (values, **arguments) → indices of each client; it gives the same partition in less time.
        column: what ``values`` are: ``classes``, ``ids``, ``numbers``, or empty if it looks at no column.
    """

    maker: str | Callable[..., Partitioner | Parts]
    arguments: Callable[[RunConfig, Values], dict[str, Any]]
    faster: Callable[..., Parts] | None = None
    column: str = ""


def _count(config: RunConfig, _: Values) -> dict[str, Any]:
    return {"num_partitions": config.num_clients}


def _no_count(config: RunConfig, _: Values) -> dict[str, Any]:
    return {}


def _by_label(**defaults: Any) -> Callable[[RunConfig, Values], dict[str, Any]]:
    def arguments(config: RunConfig, values: Values) -> dict[str, Any]:
        seed = int(generator(config.seed, Purpose.PARTITION, 1).integers(2**32))
        return {**_count(config, values), "partition_by": "label", "seed": seed, **defaults}

    return arguments


def _dirichlet(config: RunConfig, values: Values) -> dict[str, Any]:
    own = {"alpha": config.alpha, "min_partition_size": config.min_partition_size}
    return _by_label(**own)(config, values)


def _quantity(config: RunConfig, values: Values) -> dict[str, Any]:
    given = _dirichlet(config, values)
    del given["partition_by"]
    return given


def _inner_dirichlet(config: RunConfig, values: Values) -> dict[str, Any]:
    smaller, larger_count = divmod(len(values), config.num_clients)
    sizes = [smaller + (client_id < larger_count) for client_id in range(config.num_clients)]
    given = _by_label(alpha=config.alpha, partition_sizes=sizes)(config, values)
    del given["num_partitions"]
    return given


def _distribution(config: RunConfig, values: Values) -> dict[str, Any]:
    return _by_label(num_classes=len(np.unique(values)))(config, values)


def _size_to_id(config: RunConfig, values: Values) -> dict[str, Any]:
    """Return the shares that a function of the user's gives, too: they are part of the key in the cache.

    Raises:
        PartitionError: the function raises, or it gives something else.
        PluginError: there is no such function.
    """
    given, name = _count(config, values), config.partitioner_args.get("function")
    if not name:
        return given
    place = f"--partitioner-args function={name}"
    own = user_code.load(name, "--partitioner-args function")
    try:
        with seeded(config.seed, Purpose.PARTITION, 2):
            shares = np.asarray(own(np.arange(1.0, config.num_clients + 1)), np.float64)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PartitionError(f"{place}: raised {described(error)}") from error
    if shares.shape != (config.num_clients,):
        raise PartitionError(
            f"{place}: gives the shape {shares.shape}; one number for each of {config.num_clients} clients is expected"
        )
    return {**given, "shares": shares.tolist()}


# A new one also goes into ``sim.config.choices``, whose names the command line knows without these imports.
PARTITIONERS = {
    "iid": Entry("IidPartitioner", _count, iid),
    "dirichlet": Entry("DirichletPartitioner", _dirichlet, column="classes"),
    "inner-dirichlet": Entry("InnerDirichletPartitioner", _inner_dirichlet, inner_dirichlet, column="classes"),
    "shard": Entry("ShardPartitioner", _by_label(num_shards_per_partition=2), column="classes"),
    "pathological": Entry("PathologicalPartitioner", _by_label(num_classes_per_partition=2), column="classes"),
    "linear": Entry("LinearPartitioner", _count),
    "square": Entry("SquarePartitioner", _count),
    "exponential": Entry("ExponentialPartitioner", _count),
    "natural": Entry("NaturalIdPartitioner", _count, natural, column="ids"),
    "grouped-natural": Entry("GroupedNaturalIdPartitioner", lambda *_: {"partition_by": "label"}, column="ids"),
    "continuous": Entry("ContinuousPartitioner", _by_label(strictness=0.5), column="numbers"),
    "distribution": Entry(distribution, _distribution, column="classes"),
    "size": Entry(size, _no_count),
    "size-to-id": Entry(size_to_id, _size_to_id),
    "quantity": Entry(quantity, _quantity, quantity),
}
_RESERVED = {
    "values",
    "num_partitions",
    "partition_by",
    "seed",
    "alpha",
    "min_partition_size",
    "num_classes",
    "shares",
}


def as_classes(values: Values) -> Indices | None:
    """Return a column of whole numbers or texts as int64 [N] in 0 … K−1, in the order of its values; else None."""
    if values.ndim != 1 or (values.dtype.kind == "f" and class_labels(values) is None):
        return None
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def column_for(config: RunConfig, dataset: Dataset, name: str | None) -> Values:
    """Return a column of the training examples, [N]; the target if ``name`` is None.

    Raises:
        PartitionError: there is no such column.
    """
    if name is None:
        labels = dataset.labels
        found = labels if labels is not None else dataset.train.column("label")
    else:
        found = dataset.train.column(name)
    if found is not None and found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found is None or found.ndim != 1:
        shown = "the targets are" if name is None else f"--partition-by {name}: is"
        columns = ", ".join(getattr(dataset.train, "others", {}))
        known = f"; the columns are {columns}" if columns else ""
        raise PartitionError(f"{shown} no column with one value for each example of --dataset {config.dataset}{known}")
    return found


_FITS = {
    "classes": "the class of each example",
    "ids": "a column that says to which client an example belongs",
    "numbers": "a number for each example",
}


def column_of(config: RunConfig, dataset: Dataset) -> Values:
    """Return the column at which the configured partitioner looks; zeros if it looks at none.

    Classes and ids are int64 in 0 … K−1.

    Raises:
        PartitionError: the data have no such column; the message says what fits.
    """
    kind, name = PARTITIONERS[config.partitioner].column, config.partition_by
    if not kind:
        labels = dataset.labels if isinstance(dataset.train, Examples) else None
        return np.zeros(len(dataset.train), np.int64) if labels is None else labels
    place = f"--partitioner {config.partitioner}: needs {_FITS[kind]}"
    if kind == "ids":
        name = name or dataset.clients
        if name is None:
            raise PartitionError(
                f"{place}, which --partition-by names; --dataset {config.dataset} has no natural clients"
            )
    values: Values | None
    try:
        values = column_for(config, dataset, name)
    except PartitionError as error:
        if name is not None:
            raise
        raise PartitionError(f"{place}, but {error}; {_without_column(dataset)}") from None
    if kind == "numbers":
        values = _as_numbers(values)
    elif kind == "classes" and name is None and dataset.labels is None:
        values = None
    else:
        values = as_classes(values)
    if values is None:
        column = "the target" if name is None else f"--partition-by {name}"
        what = f"{column} is a column of {'texts' if kind == 'numbers' else 'numbers that are no classes'}"
        fits = "" if kind == "numbers" else "continuous, "
        raise PartitionError(f"{place}, but {what}; {_without_column(dataset, fits)}")
    return values


def _as_numbers(values: Values) -> NDArray[np.float64] | None:
    """Return a column of numbers, or of texts such as 007 that are numbers, too, as float64 [N]; else None."""
    if values.dtype.kind not in "biufU":
        return None
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        return None
    return None if values.dtype.kind == "U" and not np.isfinite(numbers).all() else numbers


def _without_column(dataset: Dataset, others: str = "") -> str:
    others += "natural, " if dataset.clients is not None else ""
    return f"--partitioner {others}iid, linear, square or exponential fits, or --partition-by with another column"


@dataclass(frozen=True)
class Counted:
    """The number of clients that a partitioner decides itself.

    Attributes:
        most: that number.
        reason: why, for messages.
        fewer: whether the first of them can be taken alone.
        order: the column in whose order the clients are.
    """

    most: int
    reason: str
    fewer: bool = False
    order: str = ""


def count_clients(config: RunConfig, dataset: Dataset) -> Counted | None:
    """Return the number of clients that the configured partitioner decides itself; None if any number is possible.

    Raises:
        ConfigError: an argument that it needs is missing or not valid.
        PartitionError: the data have no such column.
    """
    given = config.partitioner_args
    if config.partitioner == "size":
        _check_arguments(config)
        if "partition_sizes" not in given:
            raise ConfigError("--partitioner size: needs --partitioner-args partition_sizes=100,200,300")
        sizes = _sizes(given["partition_sizes"])
        return Counted(len(sizes), f"--partitioner-args partition_sizes has {len(sizes)} sizes")
    if config.partitioner not in ("natural", "grouped-natural"):
        return None
    column = config.partition_by or dataset.clients
    count = len(np.unique(column_of(config, dataset)))
    words = f"{column} has {count} different values"
    if config.partitioner == "natural":
        return Counted(count, words, fewer=True, order=str(column))
    _check_arguments(config)
    group_size = given.get("group_size")
    if type(group_size) is not int or group_size < 1:
        raise ConfigError("--partitioner grouped-natural: needs --partitioner-args group_size=N, at least 1")
    groups = count // group_size
    if given.get("mode", "allow-smaller") == "allow-smaller":
        groups = -(-count // group_size)
    return Counted(max(1, groups), f"{words}, which are in groups of {group_size}")


def _sizes(text: Any) -> list[int]:
    """Return numbers that are separated by commas.

    Raises:
        ConfigError: they are none.
    """
    sizes = [parse_number(int, word.strip()) for word in str(text).split(",")]
    if not all(size and size > 0 for size in sizes):
        raise ConfigError(
            f"--partitioner-args partition_sizes={text}: must be numbers of examples above 0, separated by commas"
        )
    return sizes


def _check_arguments(config: RunConfig) -> None:
    reserved = _RESERVED | ({"partition_sizes"} if config.partitioner == "inner-dirichlet" else set())
    if config.partitioner_args:  # otherwise the library is not imported, which saves time if the partition is cached
        user_code.check_arguments(
            _maker_of(config), config.partitioner_args, reserved, "--partitioner-args", config.partitioner
        )


def arguments(config: RunConfig, values: Values) -> dict[str, Any]:
    """Return the constructor arguments of the configured partitioner.

    Raises:
        ConfigError: ``--partitioner-args`` has an argument that the partitioner does not take.
    """
    _check_arguments(config)
    return {**PARTITIONERS[config.partitioner].arguments(config, values), **config.partitioner_args}


def assign(values: Values, config: RunConfig) -> Parts:
    """Return the indices of each client's examples, int64.

    Args:
        values: [N], the column at which the partitioner looks, see ``column_of``.

    Raises:
        ConfigError: see ``arguments``.
        PartitionError: the partitioner fails, or it gives a client fewer than ``min_partition_size`` examples.
    """
    parts = _attempt(values, config)
    if isinstance(parts, str):
        alternatives = _working_alternatives(values, config)
        raise PartitionError(f"--partitioner {config.partitioner}: {parts}; {alternatives} works")
    return parts


def _maker_of(config: RunConfig) -> Any:
    import flwr_datasets.partitioner

    maker = PARTITIONERS[config.partitioner].maker
    return getattr(flwr_datasets.partitioner, maker) if isinstance(maker, str) else maker


def _attempt(values: Values, config: RunConfig) -> Parts | str:
    """Run the partitioner; return the indices of each client's examples, or the reason why it failed.

    flwr-datasets cuts contiguous ranges (of all examples or of a class), so the order of the examples decides which
    client gets which of them. Therefore the order is first permuted with the seed.
    """
    order = generator(config.seed, Purpose.PARTITION).permutation(len(values))
    faster = PARTITIONERS[config.partitioner].faster
    try:
        given = arguments(config, values)
        if faster is not None:
            given.pop("partition_by", None)
            parts = [order[part] for part in faster(values[order], **given)]
        else:
            parts = _load_parts(_maker_of(config)(**given), values[order], order)
    except (ValueError, TypeError, AssertionError, IndexError, KeyError, ZeroDivisionError, PartitionError) as error:
        return str(error).rstrip(".") or type(error).__name__
    shared = np.count_nonzero(np.bincount(np.concatenate(parts)) > 1)
    if shared:
        return f"{shared} of {len(values)} examples would belong to several clients"
    smallest = min(len(part) for part in parts)
    if smallest < config.min_partition_size:
        return (
            f"one of {config.num_clients} clients has only {smallest} of {len(values)} examples, fewer than "
            f"--min-partition-size {config.min_partition_size}"
        )
    return parts


def _load_parts(partitioner: Partitioner, values: Values, order: NDArray[np.int64]) -> Parts:
    import datasets

    # Reading 1,000 partitions takes 1 s from Arrow columns, but 7 s from numpy columns.
    table = datasets.Dataset.from_dict({"label": values, "index": order}).with_format("arrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every attempt would warn; the error message says it once
        partitioner.dataset = table
        partitioner.load_partition(0)  # most classes compute the partition in the first call
        return [
            np.asarray(partitioner.load_partition(client_id)[:]["index"], np.int64)
            for client_id in range(partitioner.num_partitions)
        ]


def _working_alternatives(values: Values, config: RunConfig) -> str:
    """Return flags with which a partition is possible; they are found by trials within a limited time."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    # All other settings are left out: they are checked with the flags that the user takes.
    names = ("partitioner", "partition_by", "partitioner_args", "alpha", "num_clients", "min_partition_size", "seed")
    alone = RunConfig(**{name: getattr(config, name) for name in names}, fraction_fit=1.0)
    counts = (
        []
        if config.partitioner in ("natural", "grouped-natural", "size")
        else [
            replace(alone, num_clients=config.num_clients >> step) for step in range(1, config.num_clients.bit_length())
        ]
    )
    has_alpha = "alpha" in PARTITIONERS[config.partitioner].arguments(config, values)
    larger = [config.alpha * 2.0**step for step in range(1, 11 if has_alpha else 1)]
    alphas = [replace(alone, alpha=alpha) for alpha in larger if math.isfinite(alpha)]
    count, alpha = (
        next((t for t in trials if time.monotonic() < deadline and not isinstance(_attempt(values, t), str)), None)
        for trials in (counts, alphas)
    )
    ways = [f"--alpha {alpha.alpha:g}"] if alpha else []
    ways += [f"--num-clients {count.num_clients}"] if count else []
    return " or ".join([*ways, "--partitioner iid"])
