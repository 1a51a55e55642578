"""What the data decide of the settings that were left open: the model, the partitioner and the number of clients."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar, cast

from sim.config.run_config import RunConfig, TrainingConfig
from sim.data import partitioners
from sim.data.columns import Columns, leaves
from sim.data.load_dataset import Dataset
from sim.data.partitioners import column_for
from sim.errors import ConfigError, PartitionError

C = TypeVar("C", bound=TrainingConfig)


def decided(config: C, dataset: Dataset) -> tuple[C, tuple[str, ...]]:
    """Return a config in which ``--model auto`` and ``--partitioner auto`` are decided, and what the user should know.

    A config in which nothing is open is returned as it is.

    Raises:
        ConfigError: no model fits the data, or a setting that was given fits another choice.
        PartitionError: the partitioner does not fit the data.
    """
    notes = []
    if config.model == "auto":
        model = _model_for(dataset)
        config = replace(config, model=model)
        if model != "Net":
            notes.append(f"--model {model}, because the inputs are {_inputs_in_words(dataset)}")
    if isinstance(config, RunConfig) and dataset.source.num_clients is None:
        made, more = _with_partitioner(config, dataset)
        return cast("C", made), (*notes, *more)
    return config, tuple(notes)


def _with_partitioner(config: RunConfig, dataset: Dataset) -> tuple[RunConfig, list[str]]:
    notes = []
    if config.partitioner == "auto":
        name, reason = _partitioner_for(config, dataset)
        if name != "dirichlet" and config.alpha != RunConfig.alpha:
            raise ConfigError(
                f"--alpha {config.alpha:g}: belongs to --partitioner dirichlet or inner-dirichlet, but {reason}, so "
                f"that --partitioner auto takes {name}"
            )
        config = replace(config, partitioner=name)
        if name != "dirichlet":
            notes.append(f"--partitioner {name}, because {reason}")
    config, note = _with_clients(config, dataset)
    return config, [*notes, *([note] if note else [])]


def _model_for(dataset: Dataset) -> str:
    if dataset.vocab_size is not None:
        return "CharLstm"
    if dataset.image_shape is not None:
        return "Net"
    if _is_table(dataset):
        return "Mlp"
    raise ConfigError(
        "--model: give your own as package.module:name; none of the built-in ones takes inputs that are neither images "
        "[C, H, W], nor numbers [F], nor the tokens of a data set by name"
    )


def _is_table(dataset: Dataset) -> bool:
    """Return whether an input is a vector of numbers."""
    train, shape = dataset.train, dataset.input_shape
    if shape is None or len(shape) != 1:
        return False
    return not isinstance(train, Columns) or next(leaves(train.batch)).dtype.kind == "f"


def _inputs_in_words(dataset: Dataset) -> str:
    if dataset.vocab_size is not None:
        return f"sequences of {dataset.vocab_size} different tokens"
    return f"tables of {(dataset.input_shape or (0,))[0]} numbers"


def _partitioner_for(config: RunConfig, dataset: Dataset) -> tuple[str, str]:
    """Return the partitioner that suits the data, and why."""
    if config.partition_by is not None and config.partition_by != dataset.clients:
        values = column_for(config, dataset, config.partition_by)
        if values.dtype.kind == "f" and partitioners.as_classes(values) is None:
            return "continuous", f"{config.partition_by} is a column of numbers"
        return "dirichlet", f"{config.partition_by} is a column of classes"
    if dataset.clients is not None:
        return "natural", f"the data say to which {dataset.clients} an example belongs"
    if dataset.labels is not None:
        return "dirichlet", "the data have classes"
    return "iid", "the data have neither classes nor natural clients"


def _with_clients(config: RunConfig, dataset: Dataset) -> tuple[RunConfig, str | None]:
    """Return the config with the number of clients that the partitioner decides itself, and what is to be said of it.

    Raises:
        PartitionError: another number of clients was asked for, and it is not possible.
    """
    counted = partitioners.count_clients(config, dataset)
    if counted is None or counted.most == config.num_clients:
        return config, None
    if config.num_clients == RunConfig.num_clients:
        if config.clients_per_round is not None and config.clients_per_round > counted.most:
            asked = f"--clients-per-round {config.clients_per_round}"
            raise PartitionError(f"{asked}: must be at most {counted.most}, because {counted.reason}")
        # The fraction of the clients was not given if it is the default one, of which few clients have no whole part.
        fraction = None if config.fraction_fit == 0.2 else config.fraction_fit
        made = replace(config, num_clients=counted.most, fraction_fit=fraction)
        return made, f"--num-clients {counted.most}, because {counted.reason}"
    if config.num_clients > counted.most or not counted.fewer:
        raise PartitionError(
            f"--num-clients {config.num_clients}: {counted.reason}; "
            + (f"at most {counted.most}, " if counted.fewer else f"{counted.most} is the only one, ")
            + "or another --partitioner"
        )
    first = f"the first {config.num_clients} of {counted.most} clients"
    return config, f"{first}, in the order of {counted.order}, take part"
