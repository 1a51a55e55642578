"""Federated-learning simulation: an ordinary PyTorch program on hundreds to thousands of virtual clients.

from sim import RunConfig, simulate
run = simulate(RunConfig(num_rounds=5))
run.rounds()  # pandas DataFrame, one row a round
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Both libraries report home unless told otherwise before they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

if TYPE_CHECKING:
    from sim.config.run_config import CentralizedConfig as CentralizedConfig
    from sim.config.run_config import RunConfig as RunConfig
    from sim.run_folder.folder import Run as Run
    from sim.simulation import resume as resume
    from sim.simulation import simulate as simulate

__all__ = ["CentralizedConfig", "Run", "RunConfig", "resume", "simulate"]

_HOMES = {
    "CentralizedConfig": "config.run_config",
    "Run": "run_folder.folder",
    "RunConfig": "config.run_config",
    "resume": "simulation",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `sim --help` and `sim plot` do not wait for torch, flwr and ray.
    if name in _HOMES:
        return getattr(import_module(f"sim.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sim' has no attribute '{name}'")
