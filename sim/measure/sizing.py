"""One client, measured → what an actor needs on this machine, and how many of them fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch

from sim.config.run_config import RunConfig
from sim.errors import ConfigError
from sim.measure import memory
from sim.measure.capacity import Capacity, Machine, Need, capacity
from sim.measure.client import Measurement, Order, measure
from sim.run_folder import environment
from sim.setup.prepare import Prepared, prepare

_SECONDS = 4.0  # of measuring, at least one client


@dataclass(frozen=True)
class Sized:
    """One client alone on this machine, and how many processes like that fit."""

    prepared: Prepared
    alone: Measurement
    need: Need
    machine: Machine
    capacity: Capacity


def size(config: RunConfig) -> Sized:
    """Measure one client of a run.

    Raises:
        UsageError: the config does not work.
        EngineError: the client raised.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    # Measured with a GPU for itself; how large a share it needs is the question.
    prepared = prepare(replace(config, num_gpus=1.0 if gpus else 0.0, num_cpus=min(config.num_cpus, 1.0)))
    model_bytes = sum(array.nbytes for array in prepared.initial_weights)
    own = int(psutil.Process().memory_full_info().uss)
    driver = own + memory.driver_bytes(config, model_bytes, averages=prepared.chosen.averages)
    machine = Machine(
        environment.available_cpus(),
        # What this process holds is counted as the driver's.
        None if (free := memory.free_memory()) is None else free + own,
        tuple(torch.cuda.mem_get_info(number)[0] for number in range(gpus)),
    )
    (alone,) = measure([Order.of(prepared, 0, _SECONDS)])
    gpu_bytes = machine.gpus[0] - alone.free_gpu_bytes if gpus and alone.free_gpu_bytes is not None else 0
    need = Need(alone.busy_cpus, alone.own_bytes, driver, gpu_bytes)
    # One computation of many clients fills a GPU; a second process would only share it.
    clients = gpus if gpus and prepared.program.together > 1 else config.num_fit_clients
    return Sized(prepared, alone, need, machine, capacity(need, machine, clients, uses_gpu=gpus > 0))


def gpus_for(config: RunConfig, num_actors: int) -> float:
    """Return the ``num_gpus`` of a client that ``auto`` stands for: 0 without a GPU.

    Args:
        num_actors: as many as the CPUs allow.

    Raises:
        UsageError, EngineError: as ``size``.
    """
    if config.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    found = size(config).capacity
    found = replace(found, limits={**found.limits, "CPUs": max(1, num_actors)})
    if not found.num_actors:
        raise ConfigError(f"--num-gpus auto: not one client fits: too little {found.limit}")
    return found.gpus_of_an_actor
