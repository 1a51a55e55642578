"""A run that was done or interrupted → its global model and each client's own model, evaluated on all clients."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.common import NDArrays, RecordDict, Scalar

from sim.algorithms.by_name import AlgorithmSpec
from sim.client.algorithm_client import FINE_TUNE_EPOCHS
from sim.client.torch_client import fit_settings
from sim.config.fields import MOST, flag_of
from sim.config.run_config import RunConfig
from sim.disk import check_is_file
from sim.engine.aggregation import cut
from sim.engine.interface import Chunk, ClientResult, Dispatcher, Task
from sim.errors import ConfigError, RunFolderError, WriteError
from sim.run_folder import environment
from sim.run_folder.checkpoint import restored
from sim.run_folder.client_states import StatesInFolder
from sim.run_folder.folder import Run
from sim.run_folder.weights_file import read_model
from sim.run_folder.writer import write_whole
from sim.server.async_rounds import states_after
from sim.server.executor import Executor
from sim.server.prepared_run import Prepared
from sim.server.results import numbers_of
from sim.server.rounds import RoundServer
from sim.server.traffic import Traffic
from sim.setup.resume import changed_config, fitting_checkpoint
from sim.setup.trained import check_weights

if TYPE_CHECKING:
    import pandas as pd

# Settings that change no figure.
_CHANGEABLE = (
    "num_cpus",
    "num_gpus",
    "engine",
    "ray_address",
    "niceness",
    "on_client_error",
    "max_retries",
    "client_timeout",
    "verbose",
)
_MODELS, _TUNED_MODELS = ("global", "own"), ("global_tuned", "own_tuned")
_KEYS = ("client_id", "num_examples", "num_rounds_trained")


def config_of(run: Run, changes: dict[str, Any], fine_tune_epochs: Any) -> RunConfig:
    """Return the config by which a run is evaluated: its own, with the changes.

    Raises:
        ConfigError: a value is wrong, or clients of this run cannot be evaluated.
        RunFolderError: the folder cannot be read.
    """
    if type(fine_tune_epochs) is not int or not 0 <= fine_tune_epochs <= MOST:
        raise ConfigError(
            f"--fine-tune-epochs {fine_tune_epochs}: must be a whole number, at least 0 and at most {MOST}"
        )
    if run.is_central:
        raise ConfigError(f"{run.path}: a centralised run has no clients that could be evaluated")
    config, _ = changed_config(run, changes, _CHANGEABLE, "sim evaluate", "an evaluated run")
    if config.has_own_data:
        program = "app" if config.app is not None else "client_fn"
        raise ConfigError(
            f"{run.path}: a run of {flag_of(program)} cannot be evaluated, because a Flower program keeps data and "
            "tests to itself"
        )
    if any("server" in part for part in environment.parts(run.environment_path)):
        raise ConfigError(f"{run.path}: a run over a network cannot be evaluated, because its clients have the data")
    if fine_tune_epochs and config.client is not None:
        raise ConfigError(
            f"--fine-tune-epochs {fine_tune_epochs}: the client of your own, {config.client}, decides how it trains"
        )
    return replace(config, target_accuracy=None, target_metric=None)


def check_output(path: Path) -> None:
    """Check, without writing, that a table can be written.

    Raises:
        ConfigError: it cannot.
    """
    try:
        problem = "is a folder" if path.is_dir() else None if path.parent.is_dir() else f"no folder {path.parent}"
        with suppress(FileNotFoundError):
            check_is_file(path)
    except OSError as error:  # a path of 6,000 letters
        problem = error.strerror
    if problem is None and not os.access(path.parent, os.W_OK | os.X_OK):
        problem = "no permission"
    if problem is not None:
        raise ConfigError(f"{path}: cannot be written: {problem}")


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on all clients.

    Attributes:
        weights: of the global model after round ``number``.
        states: client_id → what a client of the user's own left in its context.
        state_rounds: client_id → the round in which the client wrote its state.
        num_rounds_trained: client_id → number of rounds in which it trained; clients that never did are left out.
        fine_tune_epochs: 0 for no fine-tuning.
        notes: what the user should know, one line each.
    """

    prepared: Prepared
    number: int
    weights: NDArrays
    states: Mapping[int, RecordDict]
    state_rounds: Mapping[int, int]
    num_rounds_trained: Mapping[int, int]
    fine_tune_epochs: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, prepared: Prepared, fine_tune_epochs: int, *, allow_changed_code: bool) -> Evaluation:
        """Read what a run left.

        It is the model of a run that is done, otherwise the last checkpoint. Without checkpoints it is the model that
        the last whole round left, and the newest state of each client.

        Raises:
            RunFolderError: it or what clients kept is missing or damaged, or it does not fit what is prepared.
            ConfigError: the clients kept no examples.
        """
        dataset = prepared.dataset
        is_partitioned = dataset is not None and dataset.source.num_clients is not None  # with tests of the program's
        if not prepared.torch_spec.eval_share and not is_partitioned:
            raise ConfigError(
                f"{run.path}: its clients kept no examples for evaluation; that needs a run with --fraction-evaluate "
                "above 0, or with --final-evaluate"
            )
        rounds, notes = run.rounds(), []
        if not len(rounds):
            raise RunFolderError(f"{run.path}: no round is done, so that there is nothing to evaluate")
        number, done = int(rounds["round"].max()), run.is_done()
        states: dict[int, RecordDict] = {}
        state_rounds = None
        if run.last_checkpoint() is None:
            if not run.model_path.exists():
                raise RunFolderError(f"{run.path}: has neither model.safetensors nor a checkpoint to evaluate")
            weights = _weights_of_model(run, prepared)
            notes.append("without a checkpoint, nobody knows whether code and data are those of the run")
            kept = "without a checkpoint, clients are evaluated without what they kept in context.state"
            notes += [] if prepared.config.client is None else [kept]
        else:
            found = fitting_checkpoint(run, prepared, allow_changed_code=allow_changed_code)
            checkpoint = found.checkpoint
            if found.changed_code:
                notes.append(f"the model is evaluated with other code than that of the run: {found.changed_code}")
            if found.damage:
                notes.append(f"a checkpoint is damaged: {found.damage}")
            if found.elsewhere or found.unknown:
                reason = found.elsewhere or found.unknown
                notes.append(f"the last bits may differ from those of the run's own evaluation: {reason}")
            weights = _weights_of_model(run, prepared) if done else checkpoint.weights
            number = number if done else checkpoint.round
            if checkpoint.round == number:
                place = run.checkpoints_path / str(number)
                assert prepared.strategy is not None
                states = restored(checkpoint, prepared.strategy.kept, place)
                state_rounds = checkpoint.state_rounds
        if not done:
            notes.append(f"round {number} of {prepared.config.num_rounds} is evaluated, because the run is not done")
        num_rounds = _num_rounds_trained(run, number)
        if state_rounds is None:
            _check_own_models(run, prepared.torch_spec.algorithm, number, num_rounds)
            state_rounds = _newest_states(run, prepared, number)
        if prepared.config.client is None:  # clients train and test by an algorithm, at least by federated averaging
            spec = prepared.torch_spec
            algorithm = spec.algorithm or AlgorithmSpec(prepared.config.strategy, {}, ())
            prepared = replace(prepared, spec=replace(spec, algorithm=algorithm))
        return cls(prepared, number, weights, states, state_rounds, num_rounds, fine_tune_epochs, tuple(notes))

    @classmethod
    def of_last_round(cls, run: Run, prepared: Prepared, server: RoundServer) -> Evaluation:
        """Take what a round loop holds at its end, in the run that it has made."""
        executor, number = server.executor, server.last_round
        num_rounds = _num_rounds_trained(run, number)
        return cls(prepared, number, server.weights, executor.states, executor.state_rounds, num_rounds, 0, ())

    def execute(self, dispatcher: Dispatcher) -> pd.DataFrame:
        """Evaluate on all clients; return a table with a row for each.

        Raises:
            ClientError: a client raised, and ``on_client_error`` is stop.
        """
        import pandas as pd

        config = self.prepared.config
        traffic = Traffic(self.prepared)  # clients evaluate what they get, as in the run
        executor = Executor(dispatcher, on_client_error=config.on_client_error, traffic=traffic)
        executor.state_rounds = dict(self.state_rounds)
        settings: dict[str, Scalar] = {}
        if config.client is None:
            settings = {
                "server_round": self.number,
                **fit_settings(config, max(self.number, 1)),
                FINE_TUNE_EPOCHS: self.fine_tune_epochs,
            }
        sizes = self.prepared.partition.sizes
        tasks = [Task(c, settings, self.states.get(c), int(sizes[c])) for c in range(config.num_clients)]
        untrained = frozenset() if self.prepared.strategy is None else self.prepared.strategy.view.untrained
        chunks = [Chunk("evaluate", self.number, part, self.weights, False, untrained) for part in cut(tasks)]
        dispatcher.wait_until_ready()
        try:
            rows = [self._row(result) for result in executor.execute("evaluate", self.number, chunks).clients]
        finally:
            executor.log_summary()
        models = (*_MODELS, *(_TUNED_MODELS if self.fine_tune_epochs else ()))
        first = [*_KEYS, *(f"{model}_{name}" for model in models for name in ("loss", "accuracy"))]
        others = dict.fromkeys(name for row in rows for name in row if name not in first)
        frame = pd.DataFrame([{name: row.get(name) for name in (*first, *others)} for row in rows])
        kinds = {name: "Int64" if name in _KEYS else "float64" for name in frame.columns}
        return frame.astype(kinds)

    def _row(self, result: ClientResult) -> dict[str, Any]:
        row: dict[str, Any] = {
            "client_id": result.client_id,
            "num_examples": result.num_examples if result.error is None else None,
            "num_rounds_trained": self.num_rounds_trained.get(result.client_id, 0),
        }
        if result.error is not None or not result.num_examples:
            return row
        numbers = numbers_of(result.metrics)
        if self.prepared.torch_spec.algorithm is None:  # a client that knows of one model
            numbers |= {} if result.loss is None else {"loss": result.loss}
            numbers = {f"{model}_{name}": value for model in _MODELS for name, value in numbers.items()}
        return {**numbers, **row}


def _num_rounds_trained(run: Run, number: int) -> dict[int, int]:
    """Return in how many rounds up to ``number`` each client has trained; clients that never did are left out."""
    clients = run.clients()
    trained = clients[(clients["phase"] == "fit") & (clients["status"] == "ok") & (clients["round"] <= number)]
    counts = trained.groupby("client_id")["round"].nunique()
    return dict(zip(counts.index.tolist(), counts.tolist(), strict=True))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write the table of an evaluation; what could not be measured is an empty cell.

    Raises:
        WriteError: it cannot be written; an existing file is unchanged.
    """
    try:
        write_whole(path, frame.to_csv(index=False, lineterminator="\n").encode())
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error


def _check_own_models(run: Run, spec: AlgorithmSpec | None, number: int, trained: Mapping[int, int]) -> None:
    """Check that the folder of the clients' own models is there, without which all would have the global one.

    Raises:
        RunFolderError: it is not.
    """
    if spec is None or not trained or run.client_states_path.is_dir():
        return
    algorithm = spec.made()
    if algorithm.HAS_PERSONAL_MODEL or (spec.local_names and algorithm.is_personal(number)):
        raise RunFolderError(
            f"{run.path}: has no client_states/, which sim clean removes; without it, the clients' own models of "
            f"{spec.name} cannot be evaluated"
        )


def _newest_states(run: Run, prepared: Prepared, number: int) -> dict[int, int]:
    """Return for each client the number of the last state that it wrote up to round ``number``, and that is there."""
    last = states_after(prepared, number) if prepared.config.is_asynchronous else {}
    default = 0 if prepared.config.is_asynchronous else number
    found = {}
    for client_id, written in StatesInFolder(run.client_states_path).rounds().items():
        # A later round was interrupted, or the client was executed ahead.
        whole = [each for each in written if each <= last.get(client_id, default)]
        if whole:
            found[client_id] = whole[-1]
    return found


def _weights_of_model(run: Run, prepared: Prepared) -> NDArrays:
    """Read ``model.safetensors``.

    Raises:
        RunFolderError: it is damaged, or of another model.
    """
    names, weights = read_model(run.model_path)
    check_weights(run.model_path, weights, prepared.initial_weights, prepared.layout.names, names)
    return weights
