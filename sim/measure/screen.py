"""What ``sim size`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sim.config.run_config import RunConfig
from sim.measure.capacity import Sizing
from sim.measure.forecast import Forecast

_MIB = 2**20


def lines_of_limits(sized: Sizing) -> Iterator[str]:
    """What one client takes, and how many fit by each limit."""
    examples, seconds = np.mean(sized.alone.fits, axis=0)
    need = sized.need
    yield f"one client      {seconds:.3g} s for {examples:.0f} examples, {len(sized.alone.fits)} measured"
    yield f"CPUs            {need.busy_cpus:.2f} busy of {sized.machine.num_cpus}"
    yield (
        f"memory          {need.actor_bytes / _MIB:.0f} MiB an actor, {need.driver_bytes / _MIB:.0f} MiB the driver"
        + ("" if sized.machine.free_bytes is None else f", {sized.machine.free_bytes / _MIB:.0f} MiB free")
    )
    if sized.machine.gpus:
        free = ", ".join(f"{each / _MIB:.0f}" for each in sized.machine.gpus)
        yield f"GPU memory      {need.gpu_bytes / _MIB:.0f} MiB an actor with its context, {free} MiB free"
    limits = ", ".join(f"{name} {count}" for name, count in sized.capacity.limits.items())
    yield f"actors that fit {sized.capacity.num_actors} ({limits}); one more would lack {sized.capacity.limit}"


def decided(config: RunConfig, sized: Sizing) -> RunConfig:
    """Return the run that uses all that fits."""
    found = sized.capacity
    return replace(config, num_cpus=found.cpus_of_an_actor, num_gpus=found.gpus_of_an_actor)


def lines(forecast: Forecast, config: RunConfig) -> Iterator[str]:
    """What the run will take."""
    if config.engine == "ray":
        yield f"flags           --num-cpus {config.num_cpus:g} --num-gpus {config.gpus_of_a_client:g}"
    parts = {
        "clients": forecast.fit_seconds,
        "strategy": forecast.aggregate_seconds,
        "test": forecast.test_seconds,
        "evaluation": forecast.eval_seconds,
        "checkpoint": forecast.checkpoint_seconds,
    }
    shown = ", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items() if seconds >= 0.0005)
    yield f"throughput      {forecast.updates_per_second:.1f} client updates a second"
    yield f"a round         {forecast.round_seconds:.3g} s ({shown})"
    yield f"start and end   {forecast.start_seconds:.1f} s"
    seconds = forecast.run_seconds
    hours = f"{seconds / 3600:.2f} hours" if seconds >= 360 else f"{seconds:.0f} s"
    yield f"the whole run   {hours} for {forecast.num_rounds} rounds of {forecast.num_fit_clients} clients"
