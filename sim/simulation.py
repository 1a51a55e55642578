"""Config in, finished run folder out: checks everything, then opens the engine and writes what it gives."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.common import NDArrays, Scalar
from flwr.server import Server

from sim import data, environment, models, partition, plots, rehearsal, runlog, strategy
from sim.client import Program, Workbench, get_weights, make_client_fn, set_weights, workbench
from sim.config import RunConfig, TrainingConfig
from sim.data import Dataset
from sim.engine import inline
from sim.engine.contract import OpenDispatcher
from sim.errors import ConfigError
from sim.interrupts import uninterrupted
from sim.partition import Partition
from sim.records import ClientRecord, RoundRecord
from sim.rounds import RoundServer
from sim.rundir import Run, RunWriter
from sim.seeds import Purpose, seeded

OnRecord = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, checked; nothing was written outside the cache."""

    dataset: Dataset
    partition: Partition
    program: Program
    initial_weights: NDArrays
    chosen: strategy.Chosen
    buffers: frozenset[int]


def simulate(
    config: RunConfig, *, ray_init_args: dict[str, Any] | None = None, on_record: OnRecord | None = None
) -> Run:
    """Run a federation of virtual clients on this machine and return its run folder.

    Args:
        ray_init_args: for ``ray.init``, e.g. ``{"num_cpus": 4, "num_gpus": 1}``; they win over what is found.
        on_record: called with the record of each round after it is on disk.

    Raises:
        UsageError: the config, the data or the user's modules do not work; nothing was written.
        RunError: the run stopped; the rounds that were done are on disk.
    """
    arguments = {"num_cpus": environment.available_cpus(), **(ray_init_args or {})}
    _check_resources(config, arguments)
    prepared = prepare(config)
    writer = RunWriter(config.results_dir, config.name, config.to_toml(), clients=True)
    run = writer.run
    last = {"weights": prepared.initial_weights}

    def on_round(record: RoundRecord, clients: list[ClientRecord], weights: NDArrays) -> None:
        with uninterrupted():  # the tables and the weights stay at the same round
            writer.append(record, clients)
            last["weights"] = weights
        if on_record is not None:
            on_record(record)

    def make_server(open_dispatcher: OpenDispatcher) -> Server:
        return RoundServer(
            strategy=prepared.chosen.strategy,
            averages=prepared.chosen.averages,
            buffers=prepared.buffers if prepared.chosen.adaptive else (),
            initial_weights=prepared.initial_weights,
            open_dispatcher=open_dispatcher,
            central_test=partial(_central_test, prepared.program, config.seed),
            fit_config=partial(_fit_config, config),
            on_round=on_round,
            on_client_error=config.on_client_error,
            seed=config.seed,
        )

    client_fn = make_client_fn(prepared.program)
    try:
        write_environment(writer)
        counts = prepared.partition.label_counts(prepared.dataset.train.labels, len(prepared.dataset.classes))
        figure = plots.partition_figure(counts, prepared.dataset.classes)
        writer.write(run.partition_path, plots.render(figure, "png"))
        with runlog.captured(run.log_path, show=config.verbose):
            left_over = len(prepared.dataset.train) - len(prepared.partition.indices)
            if left_over:
                logging.getLogger("sim").warning(
                    "note: %s leaves %d of %d examples to no client",
                    config.partitioner,
                    left_over,
                    len(prepared.dataset.train),
                )
            if prepared.buffers:
                logging.getLogger("sim").warning(
                    "note: %s keeps running statistics (BatchNorm), which clients with few classes spoil for each "
                    "other; GroupNorm is the usual choice (Hsieh et al. 2020)",
                    config.model,
                )
            if config.engine == "inline":
                inline.run(make_server, client_fn, config.num_clients, config.num_rounds, config.seed)
            else:
                from sim.engine import ray

                ray.run(
                    make_server,
                    client_fn,
                    config.num_clients,
                    config.num_rounds,
                    config.seed,
                    client_resources={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
                    ray_init_args=arguments,
                    log=run.log_path,
                )
    finally:
        finish(writer, workbench(prepared.program), last["weights"])
    return run


def prepare(config: RunConfig) -> Prepared:
    """Load, deal, build and check everything that the config names.

    Raises:
        UsageError: something does not work.
    """
    dataset = data.load(config)
    dealt = partition.deal(dataset.train.labels, config)
    parts = program_parts(config, dataset)
    if config.device == "auto" and not config.num_gpus:
        parts["device"] = "cpu"  # in every engine: Ray shows no GPU to a client that has no share of one
    program = Program(
        **parts,
        partition_folder=dealt.folder,
        client=config.client,
        eval_share=config.eval_share if config.fraction_evaluate else 0.0,
    )
    initial_weights = fresh_weights(program)
    chosen = strategy.build(config, initial_weights, partial(_central_test, program, config.seed))
    rehearsal.rehearse(workbench(program), initial_weights, _fit_config(config, 1), chosen.strategy)
    buffers = models.buffer_indices(workbench(program).net)
    if buffers and config.dp:
        raise ConfigError(
            f"--dp {config.dp}: its noise would make the running variances of {config.model} negative; use a model "
            "with GroupNorm instead of BatchNorm"
        )
    return Prepared(dataset, dealt, program, initial_weights, chosen, buffers)


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


def write_environment(writer: RunWriter) -> None:
    """Write ``environment.json``."""
    text = json.dumps(environment.describe(), indent=2) + "\n"
    writer.write(writer.run.environment_path, text.encode())


def finish(writer: RunWriter, bench: Workbench, weights: NDArrays) -> None:
    """Write the pictures and the weights of the last whole round, however the run ended."""
    from safetensors.numpy import save

    writer.close()
    run = writer.run
    curves = plots.curves_of([run])
    for quantity, path in (("accuracy", run.accuracy_path), ("loss", run.loss_path)):
        writer.write(path, plots.render(plots.curves_figure(curves, [quantity]), "png"))
    names = list(bench.net.state_dict())
    # safetensors sorts by dtype and name, so the order of the state_dict is kept beside the arrays.
    content = save(dict(zip(names, weights, strict=True)), metadata={"state_dict": json.dumps(names)})
    writer.write(run.model_path, content)


def train_knobs(config: TrainingConfig, number: int, count: int) -> dict[str, Scalar]:
    """The keyword arguments of ``train`` in round (or epoch) ``number`` of 1…``count``."""
    return {
        "lr": config.lr_in(number, count),
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "optimizer": config.optimizer,
        "precision": config.precision,
    }


def _fit_config(config: RunConfig, server_round: int) -> dict[str, Scalar]:
    """What ``FitIns.config`` carries to each client in a round."""
    return {
        "local_epochs": config.local_epochs,
        "batch_size": config.batch_size,
        "max_steps": config.max_local_steps or 0,
        **train_knobs(config, server_round, config.num_rounds),
    }


def _central_test(
    program: Program, seed: int, server_round: int, weights: NDArrays, _: dict[str, Scalar]
) -> tuple[float, dict[str, Scalar]]:
    bench = workbench(program)
    set_weights(bench.net, weights)
    with seeded(seed, Purpose.TEST, server_round):
        loss, accuracy = bench.central_test()
    return loss, {"accuracy": accuracy}


def _check_resources(config: RunConfig, ray_init_args: dict[str, Any]) -> None:
    """Check that this machine has what one client asks for.

    Raises:
        ConfigError: it has not.
    """
    num_gpus = ray_init_args.get("num_gpus", torch.cuda.device_count())
    if config.num_gpus > num_gpus:
        raise ConfigError(f"--num-gpus {config.num_gpus:g}: this machine has {num_gpus:g} GPUs; at most {num_gpus:g}")
    check_device(config)
    if config.engine == "ray":
        num_cpus = ray_init_args["num_cpus"]
        if config.num_cpus > num_cpus:
            raise ConfigError(f"--num-cpus {config.num_cpus:g}: this machine has {num_cpus:g}; at most {num_cpus:g}")
        if config.device == "cuda" and not config.num_gpus:
            raise ConfigError("--device cuda: with --engine ray, clients see a GPU when --num-gpus is above 0")


def check_device(config: TrainingConfig) -> None:
    """Check that the asked device is there.

    Raises:
        ConfigError: it is not.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU; choose auto or cpu")
