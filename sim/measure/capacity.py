"""How many clients fit on a machine at once: an estimate before a run, and a measurement of one client (sim size)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from sim.config.run_config import RunConfig
from sim.errors import ConfigError
from sim.measure.measure_client import Measurement, MeasurementTask, measure
from sim.run_folder import environment
from sim.server.prepared_run import Prepared
from sim.setup.prepare import prepare

_PROCESS_BYTES = 450 * 2**20  # of a process that has imported PyTorch 2.14 and Flower, on Linux
_MEASURE_SECONDS = 4.0  # at least one client is measured, however long it takes
_CPU_TOLERANCE = 0.1  # a process that keeps 1.05 of 2 CPUs busy does not keep a second one from running
_MEMORY_SHARE = 0.9  # of free memory; the rest is for what the measurement did not see
_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """A machine: CPUs, free memory in bytes (None where it is not known), and the free memory of each GPU in bytes."""

    num_cpus: int
    free_bytes: int | None
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Need:
    """What one actor needs (CPUs that it keeps busy, memory, GPU memory with its context), and the driver's memory."""

    busy_cpus: float
    actor_bytes: int
    driver_bytes: int
    gpu_bytes: int = 0


@dataclass(frozen=True)
class Capacity:
    """How many actors fit, by each limit."""

    limits: dict[str, int]
    num_cpus: int
    num_gpus: int

    @property
    def num_actors(self) -> int:
        """The number of actors that every limit allows; it may be 0."""
        return min(self.limits.values())

    @property
    def limit(self) -> str:
        """What one more actor would lack."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def cpus_per_actor(self) -> float:
        """``--num-cpus`` with which this number of actors starts; rounded down, so that all of them do."""
        return math.floor(self.num_cpus / self.num_actors * 100) / 100

    @property
    def gpus_per_actor(self) -> float:
        """``--num-gpus`` with which the actors share the GPUs evenly."""
        if not self.num_gpus:
            return 0.0
        return math.floor(1 / math.ceil(self.num_actors / self.num_gpus) * 10_000) / 10_000


def capacity(need: Need, machine: Machine, num_clients: int, *, uses_gpu: bool) -> Capacity:
    """Return how many actors fit.

    Args:
        num_clients: clients per round; more actors would be idle.
    """
    limits = {"CPUs": int(machine.num_cpus / max(need.busy_cpus, 0.01) + _CPU_TOLERANCE)}
    if machine.free_bytes is not None:
        limits["memory"] = max(
            0, int((_MEMORY_SHARE * machine.free_bytes - need.driver_bytes) / max(need.actor_bytes, 1))
        )
    if uses_gpu:
        limits["GPU memory"] = sum(int(_MEMORY_SHARE * free / max(need.gpu_bytes, 1)) for free in machine.gpus)
    limits["clients per round"] = num_clients
    return Capacity(limits, machine.num_cpus, len(machine.gpus) if uses_gpu else 0)


@dataclass(frozen=True)
class Sizing:
    """One client measured alone on this machine, and how many processes like its own fit."""

    prepared: Prepared
    alone: Measurement
    need: Need
    machine: Machine
    capacity: Capacity


def size(config: RunConfig) -> Sizing:
    """Measure one client of a run.

    Raises:
        UsageError: the config does not work.
        EngineError: the client raised.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    # Measured with a GPU of its own, to see how large a share it needs.
    prepared = prepare(replace(config, num_gpus=1.0 if gpus else 0.0, num_cpus=min(config.num_cpus, 1.0)))
    model_bytes = sum(array.nbytes for array in prepared.initial_weights)
    own = int(psutil.Process().memory_full_info().uss)
    driver = own + driver_bytes(config, model_bytes, averages=prepared.averages)
    machine = Machine(
        environment.available_cpus(),
        # The memory of this process is counted as the driver's.
        None if (free := free_memory()) is None else free + own,
        tuple(torch.cuda.mem_get_info(number)[0] for number in range(gpus)),
    )
    (alone,) = measure([MeasurementTask.of(prepared, 0, _MEASURE_SECONDS)])
    gpu_bytes = machine.gpus[0] - alone.free_gpu_bytes if gpus and alone.free_gpu_bytes is not None else 0
    need = Need(alone.busy_cpus, alone.own_bytes, driver, gpu_bytes)
    # One computation of many clients fills a GPU; a second process would only share it.
    clients = gpus if gpus and prepared.spec.vectorized_clients > 1 else config.num_concurrent
    return Sizing(prepared, alone, need, machine, capacity(need, machine, clients, uses_gpu=gpus > 0))


def gpus_for(config: RunConfig, num_actors: int) -> float:
    """Return the ``num_gpus`` of a client that ``auto`` stands for; 0 without a GPU.

    Args:
        num_actors: the number that the CPUs allow.

    Raises:
        UsageError, EngineError: as ``size``.
    """
    if config.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    found = size(config).capacity
    found = replace(found, limits={**found.limits, "CPUs": max(1, num_actors)})
    if not found.num_actors:
        raise ConfigError(f"--num-gpus auto: not one client fits: too little {found.limit}")
    return found.gpus_per_actor


def shortage(
    config: RunConfig, model_bytes: int, num_processes: int, *, averages: bool, free_bytes: int | None = None
) -> str | None:
    """Return one line that says why a run would not fit into memory; None if it should fit, or if that is not known.

    A process holds the model, its gradients, the optimizer's state and a sum (two copies more for Adam), times the
    clients of one computation; the driver holds a few copies, and those of every client if the strategy needs each.

    Args:
        averages: the strategy needs only the mean of the clients.
        free_bytes: memory that is free; what the system reports if not given.
    """
    free = free_memory() if free_bytes is None else free_bytes
    if free is None:
        return None
    copies = (4 if config.optimizer in (None, "sgd") else 6) * (config.vectorized_clients or 1)
    processes = num_processes * (_PROCESS_BYTES + (copies * model_bytes if not config.gpus_of_a_client else 0))
    driver = _PROCESS_BYTES + driver_bytes(config, model_bytes, averages=averages)
    if processes + driver <= free:
        return None
    actors = f"{num_processes} process{'es' * (num_processes > 1)} and the driver need"
    return (
        f"{actors if num_processes else 'this process needs'} about "
        f"{(processes + driver) / _GIB:.1f} GiB, {free / _GIB:.1f} are free; a larger --num-cpus starts fewer, and "
        "strategies that average need no memory per client"
    )


def driver_bytes(config: RunConfig, model_bytes: int, *, averages: bool) -> int:
    """Return the memory that the driver needs for copies of the model."""
    return model_bytes * (8 if averages else 8 + 3 * config.num_fit_clients)


def free_memory() -> int | None:
    """Return the bytes that processes can still get in this container; None if that cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return min(free, int(limit) - int(used)) if limit != "max" else free
    except (OSError, ValueError):
        return free
