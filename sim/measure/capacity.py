"""How many processes of a run fit on a machine; arithmetic alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TOLERANCE = 0.1  # a process that keeps 1.05 of 2 CPUs busy does not keep a second one from running
_SHARE = 0.9  # of free memory; the rest is for what was not foreseen
_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What there is: CPUs, free memory (None where nobody knows) and the free memory of each GPU, in bytes."""

    num_cpus: int
    free_bytes: int | None
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Need:
    """What one actor takes: CPUs that it keeps busy, memory, GPU memory with its context; and the driver's memory."""

    busy_cpus: float
    actor_bytes: int
    driver_bytes: int
    gpu_bytes: int = 0


@dataclass(frozen=True)
class Capacity:
    """How many actors fit by each limit."""

    limits: dict[str, int]
    num_cpus: int
    num_gpus: int

    @property
    def num_actors(self) -> int:
        """As many as every limit allows; may be 0."""
        return min(self.limits.values())

    @property
    def limit(self) -> str:
        """What the next one would lack."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def cpus_of_an_actor(self) -> float:
        """``--num-cpus`` with which so many start; rounded down, so that they do."""
        return math.floor(self.num_cpus / self.num_actors * 100) / 100

    @property
    def gpus_of_an_actor(self) -> float:
        """``--num-gpus`` with which they share the GPUs evenly."""
        if not self.num_gpus:
            return 0.0
        return math.floor(1 / math.ceil(self.num_actors / self.num_gpus) * 10_000) / 10_000


def capacity(need: Need, machine: Machine, num_clients: int, *, uses_gpu: bool) -> Capacity:
    """Say how many actors fit.

    Args:
        num_clients: of a round; more actors would idle.
    """
    limits = {"CPUs": int(machine.num_cpus / max(need.busy_cpus, 0.01) + _TOLERANCE)}
    if machine.free_bytes is not None:
        limits["memory"] = max(0, int((_SHARE * machine.free_bytes - need.driver_bytes) / max(need.actor_bytes, 1)))
    if uses_gpu:
        limits["GPU memory"] = sum(int(_SHARE * free / max(need.gpu_bytes, 1)) for free in machine.gpus)
    limits["clients a round"] = num_clients
    return Capacity(limits, machine.num_cpus, len(machine.gpus) if uses_gpu else 0)
