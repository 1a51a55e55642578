"""The run folder while a run goes on: opened, filled by the round loop, left whole however the run ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.common import NDArrays
from flwr.server import SimpleClientManager
from flwr.server.client_manager import ClientManager

from sim.client.runtime import ClientRuntime, workbench
from sim.engine.contract import OpenDispatcher
from sim.errors import RunError, SimError, StateError, WriteError
from sim.interrupts import uninterrupted
from sim.run_folder import environment, log, plots
from sim.run_folder.checkpoint import Checkpoint, CheckpointWriter
from sim.run_folder.folder import Run
from sim.run_folder.records import ClientRecord, RoundRecord
from sim.run_folder.writer import RunWriter
from sim.server.rounds import RoundServer, Start
from sim.setup.prepare import Prepared, fit_config
from sim.setup.resume import Resumed, what_must_fit

OnRecord = Callable[[RoundRecord], None]


class Session:
    """One run under way: its config, its folder, and the weights of its last whole round."""

    def __init__(
        self, prepared: Prepared, on_record: OnRecord | None, resumed: Resumed | None, *, resumable: bool
    ) -> None:
        self.config = config = prepared.config
        self.prepared = prepared
        self.weights = prepared.initial_weights if resumed is None else resumed.checkpoint.weights
        self._on_record = on_record
        self._resumed = resumed
        self._server: RoundServer | None = None
        self._every = config.checkpoint_every if resumable else 0
        self._fits = what_must_fit(prepared) if self._every else {}
        self._unwritten: Checkpoint | None = None  # of the last whole round
        if self._every:
            _try_to_keep(prepared, self._fits)
        if resumed is None:
            self._writer = RunWriter.create(config.results_dir, config.name, config.to_toml(), clients=True)
        else:
            self._writer = RunWriter.reopen(resumed.run, resumed.checkpoint.tables)
            self._writer.write(self.run.config_path, config.to_toml().encode())
        self._checkpoints = CheckpointWriter(self.run)

    @property
    def run(self) -> Run:
        """The run's folder."""
        return self._writer.run

    def adopt(self, prepared: Prepared) -> None:
        """Take another config before the first round, when only the clients could tell what was left open."""
        self.config, self.prepared, self.weights = prepared.config, prepared, prepared.initial_weights
        self._writer.write(self.run.config_path, self.config.to_toml().encode())
        self._draw_partition()

    def server(self, open_dispatcher: OpenDispatcher, client_manager: ClientManager | None = None) -> RoundServer:
        """Make the round loop that fills this folder."""
        prepared, config = self.prepared, self.config
        resumed = self._resumed
        self._server = RoundServer(
            client_manager=client_manager or SimpleClientManager(),
            strategy=prepared.chosen.strategy,
            averages=prepared.chosen.averages,
            buffers=prepared.buffers if prepared.chosen.adaptive else (),
            initial_weights=prepared.initial_weights,
            open_dispatcher=open_dispatcher,
            central_test=prepared.central_test,
            fit_config=partial(fit_config, config),
            on_round=self._on_round,
            on_client_error=config.on_client_error,
            seed=config.seed,
            chunk_size=config.vectorized_clients,
            sizes=prepared.partition.sizes,
            target_accuracy=config.target_accuracy,
            start=None if resumed is None else Start(resumed.checkpoint.round + 1, self.weights, resumed.states),
        )
        return self._server

    def _on_round(self, record: RoundRecord, clients: list[ClientRecord], weights: NDArrays) -> None:
        with uninterrupted():  # the tables and the weights stay at the same round
            checkpoint = self._checkpoint(record.round, weights)
            due = checkpoint is not None and (record.round % self._every == 0 or record.round == self.config.num_rounds)
            if checkpoint is not None and due:
                start = time.perf_counter()
                self._begin(checkpoint)
                record = replace(record, checkpoint_seconds=time.perf_counter() - start)
            self._writer.append(record, clients)
            self.weights = weights
            if checkpoint is not None:
                checkpoint.tables = self._writer.marks()
                self._unwritten = checkpoint
                if due:
                    self._commit()
        if self._on_record is not None:
            self._on_record(record)

    def _checkpoint(self, server_round: int, weights: NDArrays) -> Checkpoint | None:
        if not self._every or self._server is None:
            return None
        strategy = self.prepared.chosen.strategy
        try:
            return Checkpoint.of(server_round, weights, strategy, self._server.states, self._fits)
        except StateError as error:  # it was not there at the start
            name = str(error).removeprefix("strategy.")
            raise RunError(
                f"round {server_round}: the strategy now holds {name}, which no checkpoint can keep"
            ) from error

    def _begin(self, checkpoint: Checkpoint) -> None:
        try:
            self._checkpoints.begin(checkpoint)
        except OSError as error:
            raise WriteError(f"{self.run.checkpoints_path}: cannot be written: {error.strerror}") from error

    def _commit(self) -> None:
        """Make the checkpoint that was begun valid."""
        assert self._unwritten is not None
        try:
            self._checkpoints.commit(self._unwritten)
        except OSError as error:
            raise WriteError(f"{self.run.checkpoints_path}: cannot be written: {error.strerror}") from error
        self._unwritten = None

    def _draw_partition(self) -> None:
        dataset, dealt = self.prepared.dataset, self.prepared.partition
        counts = dealt.label_counts(dataset.train.labels, len(dataset.classes))
        figure = plots.partition_figure(counts, dataset.classes)
        self._writer.write(self.run.partition_path, plots.render(figure, "png"))

    def open(self, surroundings: dict[str, Any]) -> None:
        """Write what is known before the first round."""
        if self._resumed is not None:
            surroundings = {**surroundings, "resumed_after_round": self._resumed.checkpoint.round}
        write_environment(self._writer, surroundings)
        self._draw_partition()

    def say_what_failed(self) -> None:
        """Log the failures of the run, grouped."""
        for line in self._server.failures.summary() if self._server is not None else []:
            logging.getLogger("sim").warning("%s", line)

    def close(self) -> None:
        """Write checkpoint, pictures and weights of the last whole round."""
        try:
            if self._unwritten is not None:
                self._begin(self._unwritten)
                self._commit()
            finish(self._writer, workbench(self.prepared.program), self.weights)
        finally:
            self._writer.release()


@contextmanager
def recorded(
    prepared: Prepared,
    on_record: OnRecord | None = None,
    resumed: Resumed | None = None,
    *,
    resumable: bool = False,
    **surroundings: Any,
) -> Iterator[Session]:
    """Open the run folder for what is inside; whatever ends that, the folder holds all whole rounds.

    Args:
        on_record: called with the record of each round after it is on disk.
        resumed: the run that is gone on with, instead of a new folder.
        resumable: all that a run needs to go on is in this process, so that checkpoints can be written.
        surroundings: more entries of ``environment.json``.

    Raises:
        RunFolderError: it exists or cannot be written.
        WriteError: it can no longer be written.
        StateError: the strategy holds what a checkpoint cannot keep.
    """
    session = Session(prepared, on_record, resumed, resumable=resumable)
    try:
        session.open(surroundings)
        with log.captured(session.run.log_path, show=session.config.verbose):
            for note in _notes(prepared):
                logging.getLogger("sim").warning("note: %s", note)
            try:
                yield session
            finally:
                session.say_what_failed()
    except WriteError:
        with suppress(SimError, OSError):  # what ended the run is the news
            session.close()
        raise
    except BaseException:
        session.close()
        raise
    session.close()


def _try_to_keep(prepared: Prepared, fits: dict[str, Any]) -> None:
    """Make a checkpoint in memory, so that what cannot be kept is said before anything is written.

    Raises:
        StateError: the strategy holds such a thing.
    """
    try:
        Checkpoint.of(0, prepared.initial_weights, prepared.chosen.strategy, {}, fits)
    except StateError as error:
        name = str(error).removeprefix("strategy.")
        raise StateError(
            f"--strategy {prepared.config.strategy}: holds {name}, which a checkpoint cannot keep (numbers, texts, "
            "arrays, lists, dicts, Parameters and strategies it can); --checkpoint-every 0 runs without"
        ) from None


def _notes(prepared: Prepared) -> Iterator[str]:
    config = prepared.config
    num_examples = len(prepared.dataset.train)
    left_over = num_examples - len(prepared.partition.indices)
    if left_over:
        yield f"{config.partitioner} leaves {left_over} of {num_examples} examples to no client"
    if config.client_timeout is not None and config.engine == "inline":
        yield f"--client-timeout {config.client_timeout:g} has no effect on --engine inline, which is one process"
    if prepared.buffers:
        yield (
            f"{config.model} keeps running statistics (BatchNorm), which clients with few classes spoil for each "
            "other; GroupNorm is the usual choice (Hsieh et al. 2020)"
        )


def write_environment(writer: RunWriter, surroundings: dict[str, Any] | None = None) -> None:
    """Write ``environment.json``."""
    text = json.dumps({**environment.describe(), **(surroundings or {})}, indent=2) + "\n"
    writer.write(writer.run.environment_path, text.encode())


def finish(writer: RunWriter, bench: ClientRuntime, weights: NDArrays) -> None:
    """Write the pictures and the weights of the last whole round, however the run ended."""
    from safetensors.numpy import save

    writer.close()
    run = writer.run
    curves = plots.curves_of([run])
    if plots.measures_clients(curves):
        writer.write(run.fairness_path, plots.render(plots.fairness_figure(curves), "png"))
    for quantity, path in (("accuracy", run.accuracy_path), ("loss", run.loss_path)):
        writer.write(path, plots.render(plots.curves_figure(curves, [quantity]), "png"))
    names = list(bench.net.state_dict())
    # safetensors sorts by dtype and name, so the order of the state_dict is kept beside the arrays.
    content = save(dict(zip(names, weights, strict=True)), metadata={"state_dict": json.dumps(names)})
    writer.write(run.model_path, content)
