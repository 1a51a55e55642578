"""``--track`` → the trackers of a run."""

from __future__ import annotations

from importlib.util import find_spec

from sim.config.choices import trackers
from sim.errors import ConfigError
from sim.run_folder.callbacks import Callback
from sim.tracking.tracker import Tracker, Tracking

_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}  # module → what pip installs


def check_trackers(track: str | None) -> None:
    """Check that each tracker can be used, before anything is started.

    Raises:
        ConfigError: its library is missing, its server does not answer, or nobody is logged in.
    """
    for name in trackers(track):
        library = name.partition(":")[0]
        if find_spec(library) is None:
            raise ConfigError(
                f"--track {name}: needs the package {library}; pip install {_PACKAGES[library]} (the extra {library} "
                "of sim)"
            )
    for name in trackers(track):
        if name == "mlflow":
            from sim.tracking import mlflow

            mlflow.check()
        elif name == "wandb":
            from sim.tracking import wandb

            wandb.check()


def trackers_of(track: str | None) -> list[Callback]:
    """Return what tells the trackers of a run."""
    return [Tracking(name, _made(name)) for name in trackers(track)]


def _made(name: str) -> Tracker:
    if name == "tensorboard":
        from sim.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker()
    if name == "mlflow":
        from sim.tracking.mlflow import MlflowTracker

        return MlflowTracker()
    from sim.tracking.wandb import WandbTracker

    return WandbTracker(offline=name == "wandb:offline")
