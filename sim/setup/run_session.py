"""The folder of a run while it is under way: opened, filled round by round, left whole however the run ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.common import NDArrays

from sim.config.choices import ALGORITHMS
from sim.config.fields import flag_of
from sim.config.run_config import RunConfig, TrainingConfig
from sim.data.load_dataset import Dataset
from sim.data.partition import summary
from sim.errors import BrokenProcessError, RunError, RunFolderError, SimError, StateError, WriteError, described
from sim.interrupts import raise_if_interrupted, uninterrupted
from sim.processes import return_free_memory
from sim.run_folder import environment, plots, timeline
from sim.run_folder import log as run_log
from sim.run_folder.callbacks import Callback, Callbacks, OnRecord
from sim.run_folder.checkpoint import Checkpoint, CheckpointWriter
from sim.run_folder.client_states import StatesInFolder, ValidStates
from sim.run_folder.figure import Figure
from sim.run_folder.folder import Run
from sim.run_folder.measurements import metric_of
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord
from sim.run_folder.weights_file import content_of, round_of
from sim.run_folder.writer import RunWriter
from sim.server.async_rules import PARAMETERS, rule_of
from sim.server.attacks import attackers_of
from sim.server.prepared_run import Prepared
from sim.server.rounds import FinishedRound
from sim.server.strategy import assumed, note_on_number_of_clients, notes_on_krum
from sim.setup.resume import code_of, what_must_fit
from sim.tracking.by_name import check_trackers, trackers_of

_ROUNDS_PER_TRIM = 50


class Session:
    """One run under way: its config, its folder, and the weights of its last whole round."""

    def __init__(
        self, prepared: Prepared, on_record: OnRecord | None, callbacks: Sequence[Callback], *, resumable: bool
    ) -> None:
        """Claim the folder. See ``open_session``, which also releases it."""
        config = prepared.config
        check_trackers(config.track)
        self.prepared = prepared
        self._on_record = on_record
        self._every = config.checkpoint_every if resumable else 0
        self._fits = what_must_fit(prepared) if self._every else {}
        self._code = code_of(prepared.spec, config) if self._every else {}
        self._unwritten: Checkpoint | None = None  # of the last whole round
        if self._every and prepared.strategy is not None:
            _check_that_it_can_be_kept(prepared, self._fits)
        point = prepared.resume_point
        if point is None:
            self._weights = prepared.initial_weights
            self._writer = RunWriter.create(config.results_dir, config.name, config.to_toml(), clients=True)
        else:
            self._weights = point.checkpoint.weights
            self._code = {**point.checkpoint.code, **self._code}
            self._writer = RunWriter.reopen(point.run, point.checkpoint.tables)
            if config.final_evaluate:
                self.run.evaluation_path.unlink(missing_ok=True)  # of a round that is no longer the last
            self._writer.write(self.run.config_path, config.to_toml().encode())
        self._trackers = Callbacks(trackers_of(config.track), self.run)
        self._callbacks = Callbacks(callbacks, self.run)
        self._checkpoints = CheckpointWriter(self.run, config.keep_checkpoints)
        self._best_round = round_of(self.run.best_path) if point is not None else None
        if self._best_round is not None and point is not None and self._best_round > point.checkpoint.round:
            self._best_round = None  # it is made again, and the file is written anew in the next round
        self._states: ValidStates | None = None
        if prepared.spec.keeps_state and resumable:  # over a network, clients keep it
            self.run.client_states_path.mkdir(exist_ok=True)
            begun, number = ({}, 0) if point is None else (point.checkpoint.state_rounds, point.checkpoint.round)
            self._states = ValidStates(StatesInFolder(self.run.client_states_path), begun, number)

    @property
    def run(self) -> Run:
        """The run's folder."""
        return self._writer.run

    def adopt(self, prepared: Prepared) -> None:
        """Take another config before the first round, when only the clients could say what was left open."""
        self.prepared, self._weights = prepared, prepared.initial_weights
        self._writer.write(self.run.config_path, prepared.config.to_toml().encode())
        self._draw_partition()

    def begin(self, prepared: Prepared, state: Any) -> None:
        """Take what an app gives to its strategy, before the first round.

        Args:
            state: of the strategy, for checkpoints.
        """
        point = prepared.resume_point
        self.prepared = prepared
        self._weights = prepared.initial_weights if point is None else point.checkpoint.weights
        self._writer.write(self.run.config_path, prepared.config.to_toml().encode())
        if self._every:
            try:
                Checkpoint.of(0, prepared.initial_weights, state, {}, self._fits)
            except StateError as error:
                self.keep_no_checkpoints()
                logging.getLogger("sim").warning(
                    "note: this run cannot be resumed, because its strategy holds %s, which no checkpoint can keep",
                    error,
                )

    def keep_no_checkpoints(self) -> None:
        """Record the rounds that follow without checkpoints."""
        self._every = 0

    def on_own_round(
        self, record: RoundRecord | None, clients: list[ClientRecord], metrics: list[MetricRecord]
    ) -> None:
        """Record what an app does by itself; nobody else knows its weights, so that no checkpoint is made.

        Args:
            record: None for more clients of the round before.
        """
        if record is None:
            with uninterrupted():
                self._writer.append(None, clients, metrics)
            return
        every, self._every = self._every, 0
        self.on_round(FinishedRound(record, clients, self._weights, None, {}, metrics))
        self._every = every

    def before_round(self, number: int) -> None:
        """Say that a round begins.

        Raises:
            RunError: a callback raised.
        """
        self._trackers.before_round(number)
        self._callbacks.before_round(number)

    def on_round(self, finished: FinishedRound) -> None:
        """Record a round; a Ctrl-C during that takes effect after it.

        Raises:
            WriteError: the folder can no longer be written.
            RunError: the strategy holds what a checkpoint cannot keep, or a callback raised.
        """
        record = finished.record
        with uninterrupted():  # the tables and the weights stay at the same round
            start = time.perf_counter()
            checkpoint = self._checkpoint(finished) if self._every else None
            due = checkpoint is not None and (
                record.round % self._every == 0 or record.round == self.prepared.config.num_rounds
            )
            if checkpoint is not None:
                if due:
                    self._begin(checkpoint)
                record = replace(record, checkpoint_seconds=time.perf_counter() - start)
            if finished.best is not None and finished.best[0] != self._best_round:
                number, weights = finished.best
                self._writer.write(self.run.best_path, content_of(self.prepared.layout.names, weights, number))
                self._best_round = number
            self._writer.append(record, finished.clients, finished.metrics, sync=due)
            self._weights = finished.weights
            if self._states is not None:
                self._states.renew(finished.state_rounds, record.round)
            if checkpoint is not None:
                checkpoint.tables = self._writer.marks()
                self._unwritten = checkpoint
                if due:
                    self._commit()
            if self._states is not None:
                self._states.prune(min(self.run.checkpoints(), default=record.round))
            self._trackers.after_round(record, finished.clients, finished.metrics)
        raise_if_interrupted()
        if record.round % _ROUNDS_PER_TRIM == 0:
            return_free_memory()
        if self._on_record is not None:
            self._on_record(record)
        self._callbacks.after_round(record, finished.clients, finished.metrics)

    def _checkpoint(self, finished: FinishedRound) -> Checkpoint | None:
        """Return the checkpoint of a round; None if something cannot be kept that was not there at the start."""
        number, variables, reasons = finished.record.round, {}, []
        try:
            variables = {} if finished.variables is None else finished.variables.changed()
        except StateError as error:
            reasons.append(f"its server's code has changed {error}, which no checkpoint can keep")
        try:
            checkpoint = Checkpoint.of(
                number, finished.weights, finished.strategy, finished.client_states, self._fits, variables
            )
            checkpoint.state_rounds = finished.state_rounds
        except StateError as error:
            flag, what = _holder(self.prepared.config, error)
            who = flag if flag.startswith("--sampler") else "the strategy"
            reason = f"{who} now holds {what}, which no checkpoint can keep"
            if self.prepared.server_app is None:
                raise RunError(f"round {number}: {reason}") from error
            reasons.insert(0, reason)
        if not reasons:
            return checkpoint
        is_first = self._unwritten is None and not self.run.checkpoints()
        self.keep_no_checkpoints()  # a program runs as it is, even if it cannot be resumed
        logging.getLogger("sim").warning(
            "note: this run cannot be resumed%s, because %s",
            "" if is_first else f" after round {number - 1}",
            ", and ".join(reasons),
        )
        return None

    def _begin(self, checkpoint: Checkpoint) -> None:
        new = code_of(self.prepared.spec, self.prepared.config)  # a module may be imported at any time
        self._code = checkpoint.code = {**new, **self._code}
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
        dataset, assigned = self.prepared.dataset, self.prepared.partition
        if dataset is None or not assigned.is_known:
            return
        config = self.prepared.config
        _draw(self._writer, self.run.partition_path, lambda: plots.summary_figure(summary(dataset, assigned, config)))

    def open(self, surroundings: dict[str, Any]) -> None:
        """Write what is known before the first round."""
        if self.prepared.resume_point is not None:
            earlier = environment.parts(self.run.environment_path)  # what the earlier rounds were made with is kept
            point = self.prepared.resume_point.checkpoint.round
            surroundings = {**surroundings, "resumed_after_round": point, "earlier": earlier}
        if self.prepared.config.attack is not None:
            surroundings = {**surroundings, "attackers": attackers_of(self.prepared.config)}
        write_environment(self._writer, surroundings)
        self._draw_partition()

    def abandon(self) -> None:
        """Close the folder as it is."""
        self._writer.close()

    def close(self) -> None:
        """Write checkpoint, pictures and weights of the last whole round.

        Raises:
            WriteError: one of them, or a table, can no longer be written; what can be written is there.
        """
        try:
            self._writer.sync()
            if self._unwritten is not None:
                self._begin(self._unwritten)
                self._commit()
        except WriteError:
            with suppress(SimError, OSError):  # the first error is the one to report
                self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        finish(self._writer, self.prepared.config, self.prepared.layout.names, self._weights)

    def release(self, error: BaseException | None) -> None:
        """Say that the run has ended, and let other processes write to the folder.

        Raises:
            RunError: a callback raised, and ``error`` is None.
        """
        try:
            with run_log.notes():
                self._trackers.at_end(error)
                self._callbacks.at_end(error)
        finally:
            self._writer.release()


@contextmanager
def open_session(
    prepared: Prepared,
    on_record: OnRecord | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    resumable: bool = False,
    **surroundings: Any,
) -> Iterator[Session]:
    """Open the run folder for what is inside; however that ends, the folder holds all whole rounds.

    Args:
        on_record: called with the record of each round after it is on disk.
        callbacks: told of each round and of the end.
        resumable: all that a run needs to be resumed is in this process, so that checkpoints can be written.
        surroundings: more entries of ``environment.json``.

    Raises:
        RunFolderError: the folder exists or cannot be written.
        WriteError: it can no longer be written.
        StateError: the strategy holds what a checkpoint cannot keep.
    """
    session = Session(prepared, on_record, callbacks, resumable=resumable)
    try:
        with _left_whole(session, surroundings):
            yield session
    except BaseException as error:
        session.release(error)
        raise
    session.release(None)


@contextmanager
def _left_whole(session: Session, surroundings: dict[str, Any]) -> Iterator[None]:
    prepared = session.prepared
    try:
        session.open(surroundings)
        with run_log.captured(session.run.log_path, show=prepared.config.verbose):
            run_log.say(_notes(prepared))
            yield
    except WriteError:
        with suppress(SimError, OSError):  # the first error is the one to report
            session.close()
        raise
    except BrokenProcessError:
        session.abandon()
        raise
    except BaseException:
        try:
            session.close()
        except Exception as error:  # noqa: BLE001 - the first error is the one to report
            logging.getLogger("sim").warning("the run's last files could not be written: %s", described(error))
        raise
    session.close()


def _check_that_it_can_be_kept(prepared: Prepared, fits: dict[str, Any]) -> None:
    """Make a checkpoint in memory, so that what cannot be kept is reported before anything is written.

    Raises:
        StateError: the strategy holds such a thing.
    """
    try:
        assert prepared.strategy is not None
        Checkpoint.of(0, prepared.initial_weights, prepared.strategy.kept, {}, fits)
    except StateError as error:
        flag, what = _holder(prepared.config, error)
        raise StateError(
            f"{flag}: holds {what}, which a checkpoint cannot keep (numbers, texts, arrays, lists, dicts, Parameters "
            "and strategies it can); --checkpoint-every 0 runs without"
        ) from None


def _holder(config: RunConfig, error: StateError) -> tuple[str, str]:
    """Return the flag of the strategy or of the sampler, and what it holds that cannot be kept."""
    name = str(error)
    held = name.removeprefix("clock.sampler.")
    return (f"--strategy {config.strategy}", name) if held == name else (f"--sampler {config.sampler}", held)


def _notes(prepared: Prepared) -> Iterator[str]:
    if prepared.resume_point is not None:
        yield from prepared.resume_point.notes
    config = prepared.config
    yield from config.program_notes
    yield from prepared.notes
    if config.is_asynchronous and config.vectorized_clients is not None:
        yield (
            "a resumed run may differ in the last bits, because it trains other clients together in --local-training "
            "vectorized"
        )
    if config.attack is not None:
        yield from _notes_of_attack(config)
    if prepared.dataset is not None:
        yield from _notes_of_data(prepared, prepared.dataset)
    if config.client_fn is not None and not config.fraction_evaluate and ":" not in config.strategy:
        yield "no client evaluates the model, because --fraction-evaluate is 0; with 1, each does so in each round"
    yield from _notes_without_effect(config)
    if (note := note_on_number_of_clients(config, prepared.objects.strategy)) is not None:
        yield note
    kept = getattr(getattr(prepared.spec, "algorithm", None), "local_names", ())
    shares_statistics = any(name.endswith("running_var") and name not in kept for name in prepared.layout.names)
    if shares_statistics and not config.has_own_data:
        yield (
            f"{config.model} keeps running statistics (BatchNorm), which suffer when clients have few classes; "
            "GroupNorm is the usual choice (Hsieh et al. 2020)"
        )
    yield from environment.untested()


def _notes_without_effect(config: RunConfig) -> Iterator[str]:
    for name in ("client_timeout", "max_retries", "num_cpus"):
        value = getattr(config, name)
        if config.engine == "inline" and value != getattr(RunConfig, name):
            yield f"{flag_of(name)} {value:g} has no effect on --engine inline, which is one process"
    if config.keep_checkpoints != RunConfig.keep_checkpoints and not config.checkpoint_every:
        yield f"--keep-checkpoints {config.keep_checkpoints} has no effect, because --checkpoint-every is 0"
    if config.client_fn is not None and config.test_every != RunConfig.test_every and ":" not in config.strategy:
        yield f"--test-every {config.test_every} has no effect, because there is no central test"
    if config.stragglers and config.straggler_policy == "keep" and config.local_epochs == 1:
        yield f"--stragglers {config.stragglers:g} has no effect, because one epoch cannot be shortened"
    if config.sample_seed is not None and config.sampler == "round-robin":
        yield f"--sample-seed {config.sample_seed} has no effect, because --sampler round-robin draws nothing at random"
    yield from notes_on_krum(config)
    yield from _notes_of_virtual_time(config)
    first = config.first_lr_step
    if first is not None and first >= config.num_rounds:
        yield (
            f"--lr-schedule step has no effect, because its first step is after round {first} of {config.num_rounds}"
        )


def _notes_of_virtual_time(config: RunConfig) -> Iterator[str]:
    """Yield the settings in whose place another one has its effect."""
    if config.devices is not None and config.availability is not None and config.devices.count(":") == 2:
        file = config.devices.rpartition(":")[2]
        yield f"--devices: the availability file {file} has no effect beside --availability {config.availability}"
    if not config.is_asynchronous:
        return
    for name, default in (("fraction_fit", 0.2), ("clients_per_round", 1)):  # which nobody may have given
        value = getattr(config, name)
        if config.concurrency is not None and value not in (None, default):
            yield f"{flag_of(name)} {value:g} has no effect beside --concurrency {config.concurrency}"
    staleness = rule_of(config).staleness
    for name in ("a", "b"):
        if name in config.strategy_args and name not in PARAMETERS[staleness]:
            yield f"--strategy-args {name}={config.strategy_args[name]} has no effect with staleness={staleness}"


def _notes_of_attack(config: RunConfig) -> Iterator[str]:
    counts = f"{config.num_attackers} of {config.num_clients}"
    yield f"--attack {config.attack}: {counts} clients are attackers, which environment.json lists"
    arguments = " ".join(f"{name}={value}" for name, value in assumed(config).items())
    if arguments:
        server = "server" if config.strategy in ALGORITHMS else ""
        flag, name = (f"--{server}-strategy", config.server_strategy) if server else ("--strategy", config.strategy)
        yield (
            f"{flag} {name} expects {config.attack_share:g} of a round's clients to be attackers: {arguments}; "
            f"--{server or 'strategy'}-args overrides that"
        )


def _notes_of_data(prepared: Prepared, dataset: Dataset) -> Iterator[str]:
    config = prepared.config
    yield from dataset.notes
    loader = getattr(dataset.train, "loader", None)
    if loader is not None and loader.drop_last and prepared.partition.is_known and config.batch_size is not None:
        few = int((prepared.partition.sizes < config.batch_size).sum())
        if few:
            yield (
                f"{few} of {config.num_clients} clients have fewer examples than a batch of {config.batch_size} and "
                "take no step, because the program's loader has drop_last=True"
            )
    num_examples, num_held_out = len(dataset.train), len(prepared.partition.validation)
    if num_held_out:
        yield f"{num_held_out} of {num_examples} training examples are held out for the validation, and go to no client"
    left_over = num_examples - num_held_out - len(prepared.partition.indices)
    if left_over and prepared.partition.is_known:
        yield f"{config.partitioner} leaves {left_over} of {num_examples} examples to no client"


def write_environment(writer: RunWriter, surroundings: dict[str, Any] | None = None) -> None:
    """Write ``environment.json``."""
    text = json.dumps({**environment.describe(), **(surroundings or {})}, indent=2) + "\n"
    writer.write(writer.run.environment_path, text.encode())


def finish(writer: RunWriter, config: TrainingConfig, weight_names: Sequence[str], weights: NDArrays) -> None:
    """Write the pictures and the weights of the last whole round, however the run ended.

    The weights come last, because a run that has them is taken to be whole.

    Raises:
        WriteError: the folder can no longer be written.
    """
    writer.close()
    run, config_toml = writer.run, config.to_toml().encode()
    with run_log.notes():
        if not (run.config_path.is_file() and run.config_path.read_bytes() == config_toml):
            writer.write(run.config_path, config_toml)
            run_log.say([f"{run.config_path.name} was removed or changed during the run, and is written again"])
        _draw_all(writer)
    if weights:  # not of an app that keeps them to itself
        writer.write(run.model_path, content_of(weight_names, weights))


def _draw_all(writer: RunWriter) -> None:
    """Draw what a run has measured; there is no picture without a curve."""
    run = writer.run
    try:
        metric = metric_of(run) or plots.ACCURACY
        curves = plots.curves_of([run], [metric])
        measures_clients, has_virtual_time = plots.measures_clients(curves, metric), timeline.has_virtual_time(run)
    except RunFolderError as error:  # a client of the user's has removed or changed a file
        run_log.say([f"the pictures of the run could not be drawn: {error}"])
        return
    if measures_clients:
        _draw(writer, run.fairness_path, lambda: plots.fairness_figure(curves, metric))
    first = run.accuracy_path if metric.name == "accuracy" else run.metric_path
    _draw(writer, first, lambda: plots.curves_figure(curves, [metric.name]))
    _draw(writer, run.loss_path, lambda: plots.curves_figure(curves, ["loss"]))
    if has_virtual_time:
        _draw(writer, run.timeline_path, lambda: timeline.timeline_figure(run))


def _draw(writer: RunWriter, path: Path, figure: Callable[[], Figure]) -> None:
    """Draw a picture; a run is not lost for one that cannot be drawn, because ``sim plot`` draws it later."""
    try:
        writer.write(path, plots.render(figure(), "png"))
    except plots.NothingMeasuredError:
        return
    except Exception as error:  # noqa: BLE001 - whatever matplotlib does with numbers that a run can have
        reason = str(error) if isinstance(error, SimError) else described(error)
        run_log.say([f"the picture {path.name} could not be drawn: {reason}"])
