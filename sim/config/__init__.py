"""The settings of a run: how they are declared, checked, read and written."""

from sim.config.run_config import CentralizedConfig, RunConfig

__all__ = ["CentralizedConfig", "RunConfig"]
