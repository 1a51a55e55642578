"""Simulates federated learning: an ordinary PyTorch program on hundreds to thousands of virtual clients.

from sim import RunConfig, simulate
run = simulate(RunConfig(num_rounds=5))
run.rounds()  # pandas DataFrame, one row per round
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Both libraries send usage statistics unless this is set before they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Each Python process orders sets of texts in its own way unless it is told this when it starts; a vocabulary made by
# list(set(words)) would be another one in each process. ``sim.__main__`` starts the command line so.
os.environ.setdefault("PYTHONHASHSEED", "0")

if TYPE_CHECKING:
    from sim.centralized import train_centralized as train_centralized
    from sim.client.torch_client import CifarClient as CifarClient
    from sim.client.torch_client import TorchClient as TorchClient
    from sim.config.run_config import AppConfig as AppConfig
    from sim.config.run_config import CentralizedConfig as CentralizedConfig
    from sim.config.run_config import RunConfig as RunConfig
    from sim.errors import ClientError as ClientError
    from sim.errors import ConfigError as ConfigError
    from sim.errors import DataError as DataError
    from sim.errors import EngineError as EngineError
    from sim.errors import PartitionError as PartitionError
    from sim.errors import PluginError as PluginError
    from sim.errors import RefusedError as RefusedError
    from sim.errors import RunError as RunError
    from sim.errors import RunFolderError as RunFolderError
    from sim.errors import SimError as SimError
    from sim.errors import StateError as StateError
    from sim.errors import UsageError as UsageError
    from sim.errors import WriteError as WriteError
    from sim.flower_programs import run_app as run_app
    from sim.flower_programs import run_simulation as run_simulation
    from sim.flower_programs import start_simulation as start_simulation
    from sim.run_folder.callbacks import Callback as Callback
    from sim.run_folder.folder import Run as Run
    from sim.run_folder.folder import list_runs as list_runs
    from sim.run_folder.folder import open_run as open_run
    from sim.run_folder.panels import grid_figure as grid_figure
    from sim.run_folder.plot_style import Look as Look
    from sim.run_folder.plots import curves_figure as curves_figure
    from sim.run_folder.plots import curves_of as curves_of
    from sim.run_folder.plots import fairness_figure as fairness_figure
    from sim.run_folder.plots import partition_figure as partition_figure
    from sim.run_folder.records import ClientRecord as ClientRecord
    from sim.run_folder.records import MetricRecord as MetricRecord
    from sim.run_folder.records import RoundRecord as RoundRecord
    from sim.run_folder.timeline import timeline_figure as timeline_figure
    from sim.simulation import evaluate as evaluate
    from sim.simulation import resume as resume
    from sim.simulation import simulate as simulate

_MODULES = {
    "centralized": ["train_centralized"],
    "client.torch_client": ["CifarClient", "TorchClient"],
    "config.run_config": ["AppConfig", "CentralizedConfig", "RunConfig"],
    "errors": [
        "ClientError",
        "ConfigError",
        "DataError",
        "EngineError",
        "PartitionError",
        "PluginError",
        "RefusedError",
        "RunError",
        "RunFolderError",
        "SimError",
        "StateError",
        "UsageError",
        "WriteError",
    ],
    "flower_programs": ["run_app", "run_simulation", "start_simulation"],
    "run_folder.callbacks": ["Callback"],
    "run_folder.folder": ["Run", "list_runs", "open_run"],
    "run_folder.plot_style": ["Look"],
    "run_folder.panels": ["grid_figure"],
    "run_folder.plots": ["curves_figure", "curves_of", "fairness_figure", "partition_figure"],
    "run_folder.records": ["ClientRecord", "MetricRecord", "RoundRecord"],
    "run_folder.timeline": ["timeline_figure"],
    "simulation": ["evaluate", "resume", "simulate"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_HOMES]  # noqa: PLE0604 - each is a text


def __getattr__(name: str) -> Any:
    # Lazy, so that `sim --help` and `sim plot` do not wait for torch, flwr and ray.
    if name in _HOMES:
        return getattr(import_module(f"sim.{_HOMES[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("sim")
    raise AttributeError(f"module 'sim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
