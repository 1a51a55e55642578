"""Measure the resources that a run uses: the memory of its processes, GPU memory and GPU utilization."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

MIB = 2**20
_ACTOR = "ChunkActor"  # Ray puts the class name of an actor into the title of its process …
_WORKER = "default_worker.py"  # … but sometimes it does not, and the title remains that of the program


@dataclass
class Peak:
    """The highest values that were measured; None for what does not exist.

    Memory is in MiB, for processes the memory that belongs to one process alone (unique set size, USS).

    Attributes:
        driver_mib: memory of the driver.
        actors_mib: memory of all actors at one time.
        actor_mib: memory of the largest actor.
        gpu_mib: used memory of all GPUs, including that of other programs.
        gpu_utilization: fraction 0–1 of the time that the GPUs were busy; a mean, not a peak.
    """

    driver_mib: float | None = None
    actors_mib: float | None = None
    actor_mib: float | None = None
    gpu_mib: float | None = None
    gpu_utilization: float | None = None


class UsageSampler:
    """Measures a process and its child processes at most once per ``period_seconds``.

    A peak between two measurements is missed.
    """

    def __init__(self, pid: int, period_seconds: float = 0.5) -> None:
        self.peak = Peak()
        self._pid = pid
        self._period_seconds = period_seconds
        self._next = 0.0
        self._busy: list[float] = []
        self._nvidia_smi = shutil.which("nvidia-smi")

    def sample(self) -> None:
        """Measure and update ``peak``, if ``period_seconds`` have passed since the last measurement."""
        if time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + self._period_seconds
        with suppress(psutil.Error):
            driver = psutil.Process(self._pid)
            self._update_peak(driver_mib=_own_mib(driver))
            actors = [_own_mib(p) for p in driver.children(recursive=True) if is_actor(p)]
            if actors:
                self._update_peak(actors_mib=sum(actors), actor_mib=max(actors))
        if self._nvidia_smi is not None:
            self._sample_gpus(self._nvidia_smi)

    def _update_peak(self, **values: float) -> None:
        for name, value in values.items():
            setattr(self.peak, name, max(value, getattr(self.peak, name) or 0.0))

    def _sample_gpus(self, program: str) -> None:
        query = [program, "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            process = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.SubprocessError):  # too slow this time, or gone
            return
        used, busy = parse_gpus(process.stdout)
        if used:
            self._update_peak(gpu_mib=sum(used))
        if busy:
            self._busy.append(sum(busy) / len(busy))
            self.peak.gpu_utilization = sum(self._busy) / len(self._busy)


def parse_gpus(text: str) -> tuple[list[float], list[float]]:
    """Parse the output of nvidia-smi, one line ``MiB, percent`` per GPU.

    Returns:
        The used memory of each GPU in MiB, and the utilization of each GPU as a fraction 0–1. A value that nvidia-smi
        does not know ("[N/A]") is left out.
    """
    used, busy = [], []
    for line in text.splitlines():
        memory, _, percent = line.partition(",")
        with suppress(ValueError):
            used.append(float(memory))
        with suppress(ValueError):
            busy.append(float(percent) / 100)
    return used, busy


def _own_mib(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / MIB
    except psutil.Error:
        return 0.0


def is_actor(process: psutil.Process) -> bool:
    """Whether a process of Ray's is an actor, which executes clients; False if it has ended."""
    try:
        return any(_ACTOR in word or word.endswith(_WORKER) for word in process.cmdline())
    except psutil.Error:
        return False
