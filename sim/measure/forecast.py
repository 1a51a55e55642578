"""Forecasts the duration of a run: clients are measured at the same time and assigned to actors as in a round."""

from __future__ import annotations

import heapq
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.server.client_proxy import ClientProxy
from flwr.serverapp.strategy import Strategy as MessageStrategy
from numpy.typing import NDArray

from sim.config.evaluation import EvaluationConfig
from sim.config.run_config import RunConfig
from sim.config.training_config import TrainingConfig
from sim.engine.interface import ClientResult
from sim.errors import ConfigError, EngineError, described
from sim.measure.capacity import Sizing
from sim.measure.measure_client import MeasurementTask, measure
from sim.processes import Child, written
from sim.run_folder.folder import Run
from sim.seeds import Purpose, generator, seeded
from sim.server.async_rules import rule_of
from sim.server.fit_ins_strategies import aggregate_fit
from sim.server.make_adapter import adapter_of
from sim.server.prepared_run import Prepared
from sim.server.results import PhaseResults
from sim.server.virtual_clients import VirtualClientProxy, virtual_clients

_SECONDS = 6.0  # of measuring as many clients at once as the run will
_DEFAULTS = RunConfig()
_ROUNDS = 20  # sampled to see how clients of unequal size occupy the actors


@dataclass(frozen=True)
class Forecast:
    """Seconds of the parts of a mean round, of start and end, and of the whole run.

    Attributes:
        test_seconds, validation_seconds: of one test of the global model; a mean round has ``1 / test_every`` of it.
        eval_seconds: of the clients' evaluation in a mean round.
        final_seconds: of the evaluation on all clients after the last round.
    """

    client_seconds: float
    fit_seconds: float
    aggregate_seconds: float
    test_seconds: float
    test_every: int
    validation_seconds: float
    eval_seconds: float
    checkpoint_seconds: float
    start_seconds: float
    final_seconds: float
    num_rounds: int
    num_fit_clients: int

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part of a mean round."""
        return {
            "clients": self.fit_seconds,
            "strategy": self.aggregate_seconds,
            "test": self.test_seconds / self.test_every,
            "validation": self.validation_seconds / self.test_every,
            "evaluation": self.eval_seconds,
            "checkpoint": self.checkpoint_seconds,
        }

    @property
    def round_seconds(self) -> float:
        """A mean round with its checkpoint."""
        return sum(self.parts.values())

    @property
    def updates_per_second(self) -> float:
        """Clients per second of training and aggregation."""
        return self.num_fit_clients / (self.fit_seconds + self.aggregate_seconds)

    @property
    def run_seconds(self) -> float:
        """From the command to its end."""
        before_round_1 = self.test_seconds + self.validation_seconds
        return self.start_seconds + before_round_1 + self.num_rounds * self.round_seconds + self.final_seconds


def forecast(sized: Sizing, config: RunConfig) -> Forecast:
    """Measure as many clients at once as the run will execute, and start and end one short run.

    Args:
        config: of the run to forecast, with ``num_cpus`` and ``num_gpus`` decided.

    Raises:
        EngineError: a client raised.
    """
    prepared, actors = sized.prepared, sized.capacity.num_actors
    if config.engine == "inline":
        actors = 1
    prepared = replace(prepared, config=config)
    measured = (
        [sized.alone] if actors == 1 else measure([MeasurementTask.of(prepared, n, _SECONDS) for n in range(actors)])
    )
    fits = [pair for one in measured for pair in one.fits]
    # Of a program that partitions itself, the clients that were measured stand for all.
    is_known = prepared.partition.is_known
    sizes = _train_sizes(prepared) if is_known else np.resize([pair[0] for pair in fits], config.num_clients)
    each = predicted(fits, sizes)
    num_clients = config.num_fit_clients
    if config.is_asynchronous:  # a version waits for no client, so that all actors are busy all the time
        num_clients = rule_of(config).num_arrivals
        fit_seconds = float(each.mean()) * num_clients / actors
    else:
        fit_seconds = mean_makespan(each, num_clients, actors, config.seed)
    test_seconds = float(np.mean([one.test_seconds for one in measured]))
    evaluate_seconds = float(np.mean([one.evaluate_seconds for one in measured]))

    def tested(slices: Sequence[tuple[int, int]]) -> float:
        """Return the seconds of a central test on slices, whose time grows with their examples."""
        per_example = test_seconds / _longest(prepared.test_slices)
        return per_example * _longest(slices) * math.ceil(len(slices) / actors) if slices else 0.0

    tests = tested(prepared.test_slices)
    return Forecast(
        client_seconds=float(each.mean()),
        fit_seconds=fit_seconds,
        aggregate_seconds=_aggregate_seconds(prepared, num_clients),
        test_seconds=tests,
        test_every=config.test_every,
        validation_seconds=tested(prepared.validation_slices),
        eval_seconds=evaluate_seconds * config.num_evaluate_clients / actors / config.evaluate_every,
        checkpoint_seconds=_write_seconds(prepared) / config.checkpoint_every if config.checkpoint_every else 0.0,
        start_seconds=max(0.0, _start_seconds(prepared, actors) - 2 * tests),
        final_seconds=evaluate_seconds * config.num_clients / actors if config.final_evaluate else 0.0,
        num_rounds=config.num_rounds,
        num_fit_clients=num_clients,
    )


def _longest(slices: Sequence[tuple[int, int]]) -> int:
    return max((last - first for first, last in slices), default=1)


def _train_sizes(prepared: Prepared) -> NDArray[np.int64]:
    sizes = prepared.partition.sizes
    share = prepared.torch_spec.eval_share
    kept: NDArray[np.int64] = (sizes * share + 1e-9).astype(np.int64)
    return sizes - kept


def predicted(fits: Sequence[tuple[int, float]], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the seconds of each client from its number of examples: a line through the measurements, never falling.

    Args:
        fits: (examples, seconds) of measured clients.
        sizes: examples of each client of the run.
    """
    examples, seconds = np.array([pair[0] for pair in fits], float), np.array([pair[1] for pair in fits], float)
    if len(set(examples)) > 1:
        slope, start = np.polyfit(examples, seconds, 1)
        if slope >= 0 and start >= 0:
            return np.asarray(start + slope * sizes, float)
        return np.asarray(sizes * (seconds.sum() / examples.sum()), float)
    return np.asarray(sizes * (seconds.mean() / examples[0]), float)


def mean_makespan(each: NDArray[np.float64], num_sampled: int, num_actors: int, seed: int) -> float:
    """Return the mean seconds until the last of some sampled clients is done, the longest assigned first.

    Args:
        each: seconds of each client.
    """
    draw = generator(seed, Purpose.MEASURING)
    found = []
    for _ in range(_ROUNDS):
        ends = [0.0] * num_actors
        for seconds in sorted(draw.choice(each, num_sampled, replace=False), reverse=True):
            heapq.heapreplace(ends, ends[0] + float(seconds))
        found.append(max(ends))
    return float(np.mean(found))


def _aggregate_seconds(prepared: Prepared, num_clients: int) -> float:
    """Time the strategy once on as many results as a round has."""
    weights, built = prepared.initial_weights, prepared.strategy
    assert built is not None, "a PyTorch program has a strategy"
    results = PhaseResults()
    for client_id in range(num_clients):
        each = None if built.averages else weights
        results.clients.append(ClientResult(client_id, num_examples=1, loss=1.0, metrics={"loss": 1.0}, weights=each))
    results.total.add(weights, 1)
    proxies: dict[int, ClientProxy] = {client_id: VirtualClientProxy(client_id) for client_id in range(num_clients)}
    aggregate: Callable[[], Any] = partial(aggregate_fit, built, 1, results, proxies)
    if isinstance(built.strategy, MessageStrategy):  # whose replies belong to messages
        adapter = adapter_of(prepared, built, virtual_clients(num_clients))
        adapter.set_weights(weights)
        adapter.configure("fit", 1, {})
        aggregate = partial(adapter.aggregate_fit, 1, results)
    with seeded(prepared.config.seed, Purpose.MEASURING):
        start = time.perf_counter()
        try:
            aggregate()
        except Exception as error:  # noqa: BLE001 - some strategies need a whole run around them
            logging.getLogger("sim").warning(
                "note: %s cannot be timed outside of a run (%s), its time is missing below",
                prepared.config.strategy,
                described(error),
            )
            return 0.0
        return time.perf_counter() - start


def _write_seconds(prepared: Prepared) -> float:
    """Time the writing and syncing of the weights where the run will write them."""
    folder = Path(prepared.config.results_dir).resolve()
    while not folder.is_dir():
        folder = folder.parent
    content = b"".join(array.tobytes() for array in prepared.initial_weights)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            return time.perf_counter() - start
    except OSError as error:
        raise ConfigError(f"--results-dir {folder}: cannot be written: {error.strerror}") from None


def _start_seconds(prepared: Prepared, num_actors: int) -> float:
    """Run one round in which each actor trains one client for a step, or for an epoch where a step cannot be asked for.

    The run folder is removed.

    Returns:
        The seconds of the whole command without those of the training.
    """
    config = prepared.config
    # Only what a client does takes part: no devices and no evaluation.
    added = {each.name for each in fields(EvaluationConfig)} - {each.name for each in fields(TrainingConfig)}
    changes: dict[str, Any] = {name: getattr(_DEFAULTS, name) for name in added}
    if prepared.dataset is not None:  # a Flower program's clients need what their strategy sends
        train = prepared.torch_spec.own_train()
        changes |= {
            "max_local_steps": 1 if train is None or train.takes_max_steps else None,
            "local_training": "sequential",
            "vectorized_clients": None,
            "strategy": "fedavg",
            "strategy_args": {},
            "server_strategy": "fedavg",
            "server_args": {},
            "local_parameters": None,
            "attack": None,
            "attack_share": _DEFAULTS.attack_share,
            "attack_args": {},
        }
    with tempfile.TemporaryDirectory() as folder:
        short = replace(
            config,
            **changes,
            fraction_fit=None,
            clients_per_round=min(num_actors, config.num_clients),
            client_dropout=0.0,
            num_rounds=1,
            local_epochs=1,
            lr_warmup=_DEFAULTS.lr_warmup,
            track=None,
            server_lr=None,
            dp=None,
            dp_args={},
            name="short",
            results_dir=folder,
        )
        child = Child(["run", "--config", str(written(Path(folder), "short", short.to_toml()))])
        try:
            if child.process.wait() != 0:
                raise EngineError(f"a short run failed: {child.error()}")
        finally:
            child.process.kill()
        return child.seconds - float(Run(Path(folder) / "short").rounds().fit_seconds.sum())
