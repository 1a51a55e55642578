"""The device on which a process computes, and how PyTorch computes there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sim.private_names import import_compiler_when_used
from sim.processes import keep_freed_memory

_DETERMINISTIC: Any = torch.utils.deterministic  # has no types
_VARIES = "does not have a deterministic implementation"  # what PyTorch's warning says of an operation
# It says so of each matrix product unless CUBLAS_WORKSPACE_CONFIG is set, with which each takes twice as long. Products
# of one process do not overlap here, and then they give the same bits (cuBLAS's documentation, "Results
# Reproducibility").
_USES_CUBLAS = "is not deterministic because it uses CuBLAS"


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto`` (a GPU if this process sees one, otherwise the CPU), ``cpu`` or ``cuda``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def notes_on_precision(precision: str, device: str) -> Iterator[str]:
    """Say where this machine's processor has no instructions for a precision, with which training takes longer."""
    if precision != "bf16" or pick_device(device).type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return  # older versions of PyTorch do not say
    can = torch.cpu.get_capabilities()
    if can.get("architecture") == "x86_64" and not (can.get("avx512_bf16") or can.get("amx_bf16")):
        yield (
            f"--precision bf16: this processor ({can.get('cpu_name', 'unknown')}) has no instructions for bfloat16, so "
            "that training may take several times as long as with fp32"
        )


def compute_repeatably(torch_threads: int, device: str = "auto", *, user_code: bool = True) -> None:
    """Let PyTorch compute with so many threads on the CPU, and on a GPU with kernels that give the same bits each time.

    Some kernels of CUDA add in an order that changes from call to call. The built-in training needs none of them. For
    code of the user's PyTorch replaces them, and where it cannot, takes them nevertheless
    (``torch.use_deterministic_algorithms``); ``varying_operations`` says which.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        user_code: model or functions are the user's. Their steps take longer, because PyTorch looks at each.
    """
    keep_freed_memory()
    import_compiler_when_used()
    torch.set_num_threads(torch_threads)
    if pick_device(device).type == "cpu":
        return
    torch.backends.cudnn.benchmark = False  # it would choose the fastest kernel by timing them
    torch.backends.cudnn.deterministic = True
    _use_deterministic(user_code, True)
    _DETERMINISTIC.fill_uninitialized_memory = False  # a search for errors, which takes time
    for message in (_VARIES, _USES_CUBLAS):
        warnings.filterwarnings("ignore", message=f".*{message}")


@contextmanager
def varying_operations() -> Iterator[set[str]]:
    """Collect the operations in the block for which PyTorch has no kernel that gives the same bits each time."""
    found: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{_VARIES}")
        show = warnings.showwarning

        def collect(message: Warning | str, *place: Any, **more: Any) -> None:
            name, is_one, _ = str(message).partition(f" {_VARIES}")
            found.add(name) if is_one else show(message, *place, **more)

        warnings.showwarning = collect
        yield found


_import_threads = [0]  # while a run is under way


def import_threads() -> int:
    """Return with how many threads PyTorch computes while a process of the run imports the program."""
    return _import_threads[-1] or torch.get_num_threads()


@contextmanager
def computing_as_before(torch_threads: int | None = None, *, is_imported: bool = False) -> Iterator[None]:
    """Undo ``compute_repeatably`` after the block, because the process may go on with a program of the user's.

    What a module computes while it is imported, such as a model that it trains, depends on the number of threads, which
    is therefore the same in each process.

    Args:
        torch_threads: with which the block imports the program, if it does.
        is_imported: a script has imported the program already.
    """
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    algorithms = _deterministic()
    flags = cudnn.benchmark, cudnn.deterministic, _DETERMINISTIC.fill_uninitialized_memory
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    _import_threads.append(threads if is_imported else torch.get_num_threads())
    try:
        with warnings.catch_warnings():
            yield
    finally:
        _import_threads.pop()
        torch.set_num_threads(threads)
        _use_deterministic(*algorithms)
        cudnn.benchmark, cudnn.deterministic, _DETERMINISTIC.fill_uninitialized_memory = flags


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _use_deterministic(mode: bool, warn_only: bool) -> None:
    if (mode, warn_only and mode) != _deterministic():  # PyTorch would import its compiler, which takes a second
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
