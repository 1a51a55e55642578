"""``--track mlflow``: a run of MLflow, at ``MLFLOW_TRACKING_URI`` or in ``mlflow/`` of the results folder."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import ConfigError, described
from sim.run_folder.folder import Run
from sim.run_folder.log import quiet
from sim.tracking.tracker import Tracker, keep_id, known_id, pictures_of, settings_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow sends usage statistics unless this is set before it is imported, and asks a server that is gone for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

_ADDRESS = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
_MOST_PARAMS = 100  # that MLflow takes at once
_MOST_CHARACTERS = 500  # of a parameter in older servers
_LOGGED_IN_EACH_ROUND = "seconds/round"
_OTHERS = re.compile(r"[^\w\-./ ]")  # what names of metrics cannot contain


class MlflowTracker(Tracker):
    """Metrics of each round, settings as parameters, pictures, tables and the model as artifacts."""

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._id = ""
        self._last_round = -1  # that an earlier process has logged

    def begin(self, run: Run, number: int) -> int:
        """Create a run of MLflow, or continue the one of an earlier process."""
        with _quiet(), _store(run) as client:
            self._client = client
            known = known_id(run, "mlflow")
            if known is not None and self._continues(known):
                return self._last_round
            name = os.environ.get(_EXPERIMENT) or run.path.parent.name
            created = client.create_run(
                _experiment(client, name, run), run_name=run.name, tags={"sim.folder": str(run.path)}
            )
            self._id = created.info.run_id
            keep_id(run, "mlflow", self._id)
            self._log_settings(run)
        return -1

    def _continues(self, known: str) -> bool:
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        try:
            self._client.update_run(known, status="RUNNING")
        except MlflowException:  # another store, or it was deleted there
            return False
        self._id = known
        logged = self._client.get_metric_history(known, _LOGGED_IN_EACH_ROUND)
        self._last_round = max((each.step for each in logged), default=-1)
        return True

    def _log_settings(self, run: Run) -> None:
        from mlflow.entities import Param

        assert self._client is not None
        found = settings_of(run).items()
        params = [Param(_OTHERS.sub("_", name), str(value)[:_MOST_CHARACTERS]) for name, value in found]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _MOST_PARAMS])

    def log(self, number: int, numbers: dict[str, float]) -> None:
        """Log the numbers of a round, unless it is one that an earlier process has logged."""
        from mlflow.entities import Metric

        assert self._client is not None
        if number <= self._last_round:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(_OTHERS.sub("_", name), value, now, number) for name, value in numbers.items()]
        with _quiet():
            self._client.log_batch(self._id, metrics=metrics)

    def end(self, run: Run, error: BaseException | None) -> None:
        """Log pictures, tables and the model, and say how the run ended."""
        assert self._client is not None
        with _quiet():
            self._log_files(pictures_of(run), "pictures")
            self._log_files([run.config_path, run.environment_path, run.rounds_path, run.metrics_path], "run")
            self._log_files([run.model_path], "model")
            interrupted = isinstance(error, KeyboardInterrupt)
            status = "FINISHED" if error is None else "KILLED" if interrupted else "FAILED"
            self._client.set_terminated(self._id, status)

    def _log_files(self, paths: Sequence[Path], folder: str) -> None:
        assert self._client is not None
        for path in paths:
            if path.exists():
                self._client.log_artifact(self._id, str(path), folder)


def check() -> None:
    """Check that the server of ``MLFLOW_TRACKING_URI`` answers.

    Raises:
        ConfigError: it does not.
    """
    address = os.environ.get(_ADDRESS)
    if not address:
        return
    with _quiet():
        from mlflow import MlflowClient

        try:
            MlflowClient().search_experiments(max_results=1)
        except Exception as error:  # noqa: BLE001 - whatever MLflow and the libraries below it raise
            raise ConfigError(f"--track mlflow: {_ADDRESS} {address}: {described(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    import mlflow  # noqa: F401 - it makes a handler of its own, which would come after what is below

    with quiet("mlflow", show=False), quiet("alembic", show=False):
        yield


@contextmanager
def _store(run: Run) -> Iterator[MlflowClient]:
    """Open the store; only one process at a time, because the first one creates the tables of a local store."""
    from mlflow import MlflowClient

    if os.environ.get(_ADDRESS):
        yield MlflowClient()
        return
    folder = run.path.parent / "mlflow"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def _experiment(client: MlflowClient, name: str, run: Run) -> str:
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        place = None if os.environ.get(_ADDRESS) else (run.path.parent / "mlflow" / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # another process was faster
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    return str(known.experiment_id)
