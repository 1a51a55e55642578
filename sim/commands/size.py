"""The command ``sim size``: measure one client and forecast a run."""

from __future__ import annotations

import argparse

from sim.config.flags import config_from
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, RunError


def size(arguments: argparse.Namespace) -> None:
    """``sim size``: measure one client and forecast a run."""
    config = config_from(RunConfig, arguments)
    if config.ray_address is not None:
        raise ConfigError(f"--ray-address {config.ray_address}: sim size can only measure this machine")
    from sim.measure.capacity import size
    from sim.measure.forecast import forecast
    from sim.measure.screen import capacity_lines, forecast_lines, with_capacity
    from sim.run_folder import log

    with log.notes(), log.quiet("flwr", show=config.verbose):
        sized = size(config)
        for line in capacity_lines(sized):
            print(line, flush=True)
        if not sized.capacity.num_actors:
            raise RunError(f"no client fits on this machine: not enough {sized.capacity.limit}")
        chosen = with_capacity(config, sized)
        for line in forecast_lines(forecast(sized, chosen), chosen):
            print(line)
