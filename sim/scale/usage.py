"""What a child and its processes take of the machine: memory, and a GPU's memory and time."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

MIB = 2**20
_ACTOR = "ChunkActor"  # in the title that Ray gives to a process of ours


@dataclass
class Peak:
    """The most that was seen, in MiB of memory that belongs to a process alone (USS); None for what is not there.

    ``actors_mib`` is the sum over processes that train, ``actor_mib`` the largest of them, ``gpu_mib`` what is taken of
    all GPUs by whomever, ``gpu_utilization`` the mean share 0–1 of the time that they were busy.
    """

    driver_mib: float | None = None
    actors_mib: float | None = None
    actor_mib: float | None = None
    gpu_mib: float | None = None
    gpu_utilization: float | None = None


class Watch:
    """Looks at a process and those that it started, at most every ``period_seconds``; a peak between is not seen."""

    def __init__(self, pid: int, period_seconds: float = 0.5) -> None:
        self.peak = Peak()
        self._pid = pid
        self._period = period_seconds
        self._next = 0.0
        self._busy: list[float] = []
        self._nvidia_smi = shutil.which("nvidia-smi")

    def look(self) -> None:
        """Look, if it is time to."""
        if time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + self._period
        with suppress(psutil.Error):
            driver = psutil.Process(self._pid)
            self._see(driver_mib=_own_mib(driver))
            actors = [_own_mib(p) for p in driver.children(recursive=True) if _ACTOR in _title(p)]
            if actors:
                self._see(actors_mib=sum(actors), actor_mib=max(actors))
        if self._nvidia_smi is not None:
            self._look_at_gpus(self._nvidia_smi)

    def _see(self, **values: float) -> None:
        for name, value in values.items():
            setattr(self.peak, name, max(value, getattr(self.peak, name) or 0.0))

    def _look_at_gpus(self, program: str) -> None:
        query = [program, "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
        used, busy = parse_gpus(answer.stdout)
        if used:
            self._see(gpu_mib=sum(used))
        if busy:
            self._busy.append(sum(busy) / len(busy))
            self.peak.gpu_utilization = sum(self._busy) / len(self._busy)


def parse_gpus(text: str) -> tuple[list[float], list[float]]:
    """Read nvidia-smi's lines ``MiB, percent``, one a GPU; what it does not know ("[N/A]") is left out."""
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


def _title(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
