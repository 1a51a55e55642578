"""The device on which a process computes, and how PyTorch computes there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_DETERMINISTIC: Any = torch.utils.deterministic  # has no types


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto`` (a GPU if this process sees one, otherwise the CPU), ``cpu`` or ``cuda``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def compute_repeatably(torch_threads: int, device: str = "auto") -> None:
    """Let PyTorch compute with so many threads on the CPU, and on a GPU with kernels that give the same bits each time.

    Some kernels of CUDA add in an order that changes from call to call. Where PyTorch has no other, it says so in a
    warning and takes it nevertheless (``torch.use_deterministic_algorithms``).

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    torch.set_num_threads(torch_threads)
    if pick_device(device).type == "cpu":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # it would choose the fastest kernel by timing them
    _DETERMINISTIC.fill_uninitialized_memory = False  # a search for errors, which takes time


@contextmanager
def computing_as_before() -> Iterator[None]:
    """Undo ``compute_repeatably`` after the block, because the process may go on with a program of the user's."""
    threads = torch.get_num_threads()
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill = torch.backends.cudnn.benchmark, _DETERMINISTIC.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.backends.cudnn.benchmark, _DETERMINISTIC.fill_uninitialized_memory = benchmark, fill
