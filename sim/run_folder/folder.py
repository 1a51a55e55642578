"""The run folder: the paths of its files, and how they are read."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.config.fields import check_type, parsed_toml
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.errors import ConfigError, RunFolderError
from sim.metrics import Target
from sim.run_folder.best_round import BestRound, metric_of_validation
from sim.run_folder.records import ClientRecord, MetricRecord, RecordType, RoundRecord, read_frame

if TYPE_CHECKING:
    import pandas as pd

# The columns of the last round that a notebook shows of a run.
_SHOWN = ("test_accuracy", "test_loss", "eval_accuracy", "eval_loss", "train_loss", "round_seconds")


class Run:
    """A run on disk, finished or in progress."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path
        self.name = path.name
        self.config_path = path / "config.toml"
        self.environment_path = path / "environment.json"
        self.rounds_path = path / "rounds.csv"
        self.clients_path = path / "clients.csv"
        self.metrics_path = path / "metrics.csv"
        self.evaluation_path = path / "evaluation.csv"
        self.accuracy_path = path / "accuracy.png"
        self.loss_path = path / "loss.png"
        self.metric_path = path / "metric.png"
        self.fairness_path = path / "fairness.png"
        self.timeline_path = path / "timeline.png"
        self.partition_path = path / "partition.png"
        self.model_path = path / "model.safetensors"
        self.best_path = path / "best.safetensors"
        self.log_path = path / "run.log"
        self.checkpoints_path = path / "checkpoints"
        self.client_states_path = path / "client_states"
        self.tensorboard_path = path / "tensorboard"
        self.trackers_path = path / "trackers.json"

    def config(self) -> dict[str, Any]:
        """Return the resolved config as it was written, by this or another version.

        Raises:
            RunFolderError: the file is missing, is not valid TOML, or a setting has another type.
        """
        try:
            config = parsed_toml(self.config_path)
        except OSError as error:
            raise RunFolderError(f"{self.path} is not a run: config.toml: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{self.path} is not a run: config.toml: {error}") from error
        if not config:
            raise RunFolderError(f"{self.path} is not a run: config.toml: is damaged: it has no settings")
        for name, value in config.items():
            check_type((RunConfig, CentralizedConfig), name, value, str(self.config_path))
        return config

    @property
    def is_central(self) -> bool:
        """Whether this is a centralised run, without clients; only its config has a number of epochs.

        Raises:
            RunFolderError: see ``config``.
        """
        return "epochs" in self.config()

    @property
    def num_rounds(self) -> int | None:
        """The number of rounds (or epochs) in the config; None if the config has none.

        Raises:
            RunFolderError: see ``config``.
        """
        found: int | None = self.config().get("epochs" if self.is_central else "num_rounds")
        return found

    def checkpoints(self) -> list[int]:
        """Return the rounds that have a checkpoint, in ascending order."""
        try:
            names = [path.name for path in self.checkpoints_path.iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 19)

    def last_checkpoint(self) -> int | None:
        """Return the last round that has a checkpoint; None if there is none."""
        return max(self.checkpoints(), default=None)

    def target(self) -> Target | None:
        """Return the target in the config; None if the run has none.

        Raises:
            RunFolderError: see ``config``.
        """
        try:
            return Target.of(self.config())
        except ConfigError as error:
            raise RunFolderError(f"{self.config_path}: {error}") from None

    def reached(self, target: Target | None) -> bool:
        """Return whether the central test of the last round reached ``target``; False if that is None.

        Raises:
            RunFolderError: see ``rounds`` and ``metrics``.
        """
        if target is None:
            return False
        rounds = self.rounds()
        if f"test_{target.name}" in ("test_accuracy", "test_loss"):
            return len(rounds) > 0 and target.is_reached_by(float(rounds[f"test_{target.name}"].iloc[-1]))
        frame = self.metrics()
        last = frame["round"] == (rounds["round"].max() if len(rounds) else -1)
        values = frame[last & (frame["phase"] == "test") & (frame["name"] == target.name)]["value"]
        return len(values) > 0 and target.is_reached_by(float(values.iloc[-1]))

    def is_done(self) -> bool:
        """Return whether the run is complete: it has all rounds, its target or no better one, and its model.

        Raises:
            RunFolderError: the config or the rounds cannot be read.
        """
        rounds = self.rounds()
        last = int(rounds["round"].max()) if len(rounds) else -1
        if not self.model_path.exists():
            return False
        return last >= (self.num_rounds or 0) or self.reached(self.target()) or self.stopped_early()

    def best(self, patience: int | None = None) -> BestRound | None:
        """Return the best round by the validation; None for a run without one.

        Args:
            patience: instead of that in the config.

        Raises:
            RunFolderError: the config or a table cannot be read.
        """
        config = self.config()
        if not config.get("validation_share"):
            return None
        rounds = self.rounds()
        validated = rounds[rounds["validation_seconds"].notna()]
        columns = {name: validated[f"validation_{name}"] for name in ("accuracy", "loss")}
        measured = [name for name, values in columns.items() if values.notna().any()]
        metric = metric_of_validation(config, ["accuracy"] if "accuracy" in measured else [])
        if metric.name == "accuracy" or (metric.name == "loss" and config.get("validation_metric")):
            values = columns[metric.name].tolist()
        else:
            frame = self.metrics()
            frame = frame[frame["phase"] == "validation"]
            metric = metric_of_validation(config, list(dict.fromkeys(frame["name"])))
            own = frame[frame["name"] == metric.name]
            values = validated["round"].map(dict(zip(own["round"], own["value"], strict=True))).tolist()
        best = BestRound(metric, patience or config.get("patience"))
        for number, value in zip(validated["round"].tolist(), values, strict=True):
            best.see(int(number), float(value))
        return best

    def stopped_early(self, patience: int | None = None) -> bool:
        """Return whether the run has ended because its validation was not better for as long as its patience.

        Args:
            patience: instead of that in the config.

        Raises:
            RunFolderError: see ``best``.
        """
        if patience is None and self.config().get("patience") is None:
            return False
        best = self.best(patience)
        return best is not None and best.is_over

    def rounds(self) -> pd.DataFrame:
        """Return ``rounds.csv`` with one row per round and the columns of ``RoundRecord``.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        return self._frame(self.rounds_path, RoundRecord)

    def clients(self) -> pd.DataFrame:
        """Return ``clients.csv`` with one row per round, phase and client, and the columns of ``ClientRecord``.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        return self._frame(self.clients_path, ClientRecord)

    def metrics(self) -> pd.DataFrame:
        """Return ``metrics.csv`` with one row per number that was measured, and the columns of ``MetricRecord``.

        Raises:
            RunFolderError: the file is missing, as in runs of earlier versions, or damaged.
        """
        return self._frame(self.metrics_path, MetricRecord)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of a run: where it is, its last round and its curves."""
        try:
            rounds = self.rounds()
            done = int(rounds["round"].max()) if len(rounds) else None
            total = f" of {self.num_rounds}" if self.num_rounds else ""
        except RunFolderError as error:
            return f"<p><b>{escape(self.name)}</b>: {escape(str(error))}</p>"
        state = "before its first round" if done is None else f"round {done}{total}"
        shown = rounds[["round", *(name for name in _SHOWN if rounds[name].notna().any())]].tail(1)
        pictures = [
            f'<img style="max-width: 49%" alt="{escape(path.stem)}" src="data:image/png;base64,'
            f'{b64encode(path.read_bytes()).decode()}">'
            for path in (self.accuracy_path, self.metric_path, self.loss_path)
            if path.is_file()
        ]
        head = f"<p><b>{escape(self.name)}</b>: {state}, in {escape(str(self.path))}</p>"
        return "\n".join([head, shown.to_html(index=False, border=0), *pictures])

    def _frame(self, path: Path, record_type: RecordType) -> pd.DataFrame:
        try:
            return read_frame(path, record_type)
        except FileNotFoundError:
            raise RunFolderError(f"{self.path} has no {path.name}") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path}: {error}") from error


def make_results_folder(path: Path) -> None:
    """Create the folder that contains run folders, if it does not exist.

    Raises:
        RunFolderError: it cannot be created, or the path is that of something else, such as a link to nothing.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is not a folder" if isinstance(error, FileExistsError) else f"cannot be written: {error.strerror}"
        raise RunFolderError(f"--results-dir {path}: {reason}") from None


def open_run(run: str, results_dir: str = RunConfig.results_dir) -> Run:
    """Return the run with this name in the results folder, or with this path.

    Raises:
        RunFolderError: there is no such run; the message lists the runs in the results folder.
    """
    if not run:
        raise RunFolderError("run '': must be the name of a run or the path of one")
    for path in (Path(results_dir) / run, Path(run)):
        if is_run(path):
            return Run(path.resolve())
        if _has_runs(path):
            raise RunFolderError(f"run {run}: {path} is a folder of runs; --results-dir {path} finds those in it")
    try:
        found = list_runs(results_dir)
    except RunFolderError:
        found = []
    names = ", ".join(known.name for known in found) or "none yet"
    raise RunFolderError(f"run {run}: neither a run in {results_dir} nor a path to one; existing runs: {names}")


def _has_runs(folder: Path) -> bool:
    try:
        return bool(list_runs(str(folder)))
    except (RunFolderError, ValueError):  # a name with NUL
        return False


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder, perhaps one of another user's that cannot be read."""
    try:
        return (path / "config.toml").is_file()
    except PermissionError:
        return True
    except (OSError, ValueError):  # a name of 300 letters, or one with NUL
        return False


def list_runs(results_dir: str) -> list[Run]:
    """Return the runs in the results folder, ordered by name.

    Raises:
        RunFolderError: the results folder does not exist or cannot be read.
    """
    root = Path(results_dir)
    try:
        folders = sorted(path for path in root.iterdir() if is_run(path))
    except OSError as error:
        raise RunFolderError(f"--results-dir {root}: {error.strerror}") from None
    return [Run(path) for path in folders]
