"""The output of ``sim size``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sim.config.run_config import RunConfig
from sim.measure.capacity import Sizing
from sim.measure.forecast import Forecast

_MIB = 2**20


def capacity_lines(sized: Sizing) -> Iterator[str]:
    """Yield lines about what one client needs and how many actors fit on this machine, in total and by each limit."""
    examples, seconds = np.mean(sized.alone.fits, axis=0)
    need = sized.need
    count = len(sized.alone.fits)
    measured = f"mean of {count} measurement{'s' * (count > 1)}"
    yield f"one client      {seconds:.3g} s for {examples:.0f} examples ({measured})"
    yield f"CPUs            {need.busy_cpus:.2f} of {sized.machine.num_cpus} in use by one client"
    yield (
        f"memory          {need.actor_bytes / _MIB:.0f} MiB per actor, "
        f"{need.driver_bytes / _MIB:.0f} MiB for the driver"
        + ("" if sized.machine.free_bytes is None else f", {sized.machine.free_bytes / _MIB:.0f} MiB free")
    )
    if sized.machine.gpus:
        free = ", ".join(f"{each / _MIB:.0f}" for each in sized.machine.gpus)
        yield f"GPU memory      {need.gpu_bytes / _MIB:.0f} MiB per actor including its CUDA context, {free} MiB free"
    limits = ", ".join(f"{name} {count}" for name, count in sized.capacity.limits.items())
    yield f"actors that fit {sized.capacity.num_actors} ({limits}); limited by {sized.capacity.limit}"


def with_capacity(config: RunConfig, sized: Sizing) -> RunConfig:
    """Return the config with ``num_cpus`` and ``num_gpus`` set so that the number of actors that fit is started."""
    found = sized.capacity
    return replace(config, num_cpus=found.cpus_per_actor, num_gpus=found.gpus_per_actor)


def forecast_lines(forecast: Forecast, config: RunConfig) -> Iterator[str]:
    """Yield lines about the flags to use, the throughput and the time that the run will take."""
    if config.engine == "ray":
        yield f"flags           --num-cpus {config.num_cpus:g} --num-gpus {config.gpus_of_a_client:g}"
    shown = ", ".join(f"{name} {seconds:.3g}" for name, seconds in forecast.parts.items() if seconds >= 0.0005)
    yield f"throughput      {forecast.updates_per_second:.1f} client updates per second"
    yield f"one round       {forecast.round_seconds:.3g} s" + (f" ({shown})" if shown else "")
    yield f"start and end   {forecast.start_seconds:.1f} s"
    if forecast.final_seconds:
        yield f"final clients   {forecast.final_seconds:.3g} s to evaluate all of them after the last round"
    seconds = forecast.run_seconds
    hours = f"{seconds / 3600:.2f} hours" if seconds >= 360 else f"{seconds:.0f} s"
    count = forecast.num_fit_clients
    yield f"the whole run   {hours} for {forecast.num_rounds} rounds of {count} client{'s' * (count != 1)}"
