"""Whether a run fits into this machine's memory: an estimate before it starts."""

from __future__ import annotations

from pathlib import Path

from sim.config.run_config import RunConfig

_PROCESS_BYTES = 450 * 2**20  # of one that has imported PyTorch and Flower, as seen on Linux with PyTorch 2.14
_GIB = 2**30


def shortage(
    config: RunConfig, model_bytes: int, num_processes: int, *, averages: bool, free_bytes: int | None = None
) -> str | None:
    """Say in one line what would not fit; None if it should, or if nobody knows.

    A process holds the model, its gradients, the optimizer's state and a sum (two more for Adam), times the clients of
    one computation; the driver holds a few copies, and those of every client for a strategy that needs each.

    Args:
        averages: the strategy needs only the mean.
        free_bytes: memory that is free; what the system says unless given.
    """
    free = free_memory() if free_bytes is None else free_bytes
    if free is None:
        return None
    copies = (4 if config.optimizer == "sgd" else 6) * (config.vectorized_clients or 1)
    processes = num_processes * (_PROCESS_BYTES + (copies * model_bytes if not config.gpus_of_a_client else 0))
    driver = _PROCESS_BYTES + driver_bytes(config, model_bytes, averages=averages)
    if processes + driver <= free:
        return None
    return (
        f"{num_processes} process{'es' * (num_processes > 1)} and the driver need about "
        f"{(processes + driver) / _GIB:.1f} GiB, {free / _GIB:.1f} are free; a larger --num-cpus starts fewer, and "
        "strategies that average need no memory a client"
    )


def driver_bytes(config: RunConfig, model_bytes: int, *, averages: bool) -> int:
    """What the driver holds of a model, beyond what it has imported."""
    return model_bytes * (8 if averages else 8 + 3 * config.num_fit_clients)


def free_memory() -> int | None:
    """Bytes that processes can still get, within the limit of this container; None where that cannot be read."""
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
