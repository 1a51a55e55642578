"""The settings of a process that user code may change and forget: read before it is called, put back after it.

Clients share processes, so what one of them leaves behind would reach those that come after it in the same process,
and results would depend on the number of processes. The variables of the user's modules are put back by
``sim.user_variables``.
"""

from __future__ import annotations

import builtins
import contextvars
import decimal
import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from sim import private_names

P = ParamSpec("P")
R = TypeVar("R")

_ENVIRONMENT = private_names.environment_table()
_HOOKS = private_names.global_hooks()
_num_modes, _leave_mode = private_names.function_modes()
_HAS_AFFINITY = hasattr(os, "sched_setaffinity")  # not on macOS
_LOGGERS = [logging.getLogger(name) for name in (None, "sim", "flwr")]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)


@contextmanager
def restored_settings() -> Iterator[None]:
    """Put the settings of this process back after the block, in which user code is called.

    They are PyTorch's and numpy's global settings and hooks, the current folder, the environment, the mask of new
    files, ``sys.path`` and ``sys.argv``, the standard streams, the filters of warnings, our loggers, and the handlers
    of signals; an alarm that is pending is cancelled. A fork of this process that leaves the block ends there.
    """
    process = os.getpid()
    before = [(read(), read, put) for read, put in _SETTINGS]
    hooks = [(table, dict(table) if table else {}) for table in _HOOKS]
    is_main = threading.current_thread() is threading.main_thread()
    handlers = [(number, signal.getsignal(number)) for number in _SIGNALS] if is_main else []
    may_alarm = is_main and not signal.getitimer(signal.ITIMER_REAL)[0]
    try:
        yield
    except KeyboardInterrupt:
        handlers = []  # the first Ctrl-C has changed them on purpose
        raise
    finally:
        if os.getpid() != process:
            os._exit(0)  # user code has forked, and the fork has returned as well: it must not go on with the run
        if may_alarm and signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, 0)  # else it would end the process, as its handler goes, too
        for value, read, put in before:
            if read() != value:
                put(value)
        for table, content in hooks:
            if table != content:
                table.clear()
                table.update(content)
        for number, handler in handlers:
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def in_own_context(function: Callable[P, R]) -> Callable[P, R]:
    """Let what user code sets in a ``contextvars.ContextVar`` be forgotten when the function ends."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return contextvars.copy_context().run(function, *args, **kwargs)

    return called


_CPU = torch.device("cpu")
_DENORMAL, _ONE = 1e-310, 1.0


def _flushes_denormal() -> bool:
    return _DENORMAL * _ONE == 0.0  # PyTorch has a setter only; its flag is the processor's, for all arithmetic


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - ten times as fast as Path.cwd()
    except OSError:  # it was removed
        return None


def _put_folder(folder: str | None) -> None:
    with suppress(OSError):
        os.chdir(folder or "")


def _mask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _put_environment(environment: dict[bytes, bytes]) -> None:
    os.environb.clear()
    os.environb.update(environment)


def _default_device() -> torch.device:
    return torch.get_default_device() if _num_modes() else _CPU  # another one is such a mode; asking takes 2 µs


def _put_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _leave_modes(count: int) -> None:
    while _num_modes() > count:
        _leave_mode()


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _put_autocast(device: str, state: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(device, state[0])
    torch.set_autocast_dtype(device, state[1])


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    depth: int = torch.autocast_decrement_nesting()
    return depth


def _put_autocast_depth(depth: int) -> None:
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()  # else weights of a block that nobody left would be found in it


_GUARDS: list[Any] = []  # which hold until they are deleted


def _put_inference_mode(mode: bool) -> None:
    _GUARDS.append(torch.inference_mode(mode))
    _GUARDS[-1].__enter__()


def _attribute(place: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(place, name), lambda value: setattr(place, name, value)


_OLDER_FLOAT32: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _attribute(torch.backends.cudnn, "allow_tf32"),
    _attribute(torch.backends.cuda.matmul, "allow_tf32"),
]
_FLOAT32 = [*private_names.float32_precisions(), *_OLDER_FLOAT32]


def _float32() -> list[Any]:
    try:
        return [read() for read, _ in _FLOAT32]
    except RuntimeError:  # PyTorch refuses to read an older switch whose newer one says something else
        return [_or_none(read) for read, _ in _FLOAT32]


def _or_none(read: Callable[[], Any]) -> Any:
    with suppress(RuntimeError):
        return read()


def _put_float32(values: list[Any]) -> None:
    for (read, put), value in 2 * list(zip(_FLOAT32, values, strict=True)):  # the older switches set newer ones
        if value is not None and _or_none(read) != value:
            put(value)


def _nnpack() -> bool:
    (is_enabled,) = torch.backends.nnpack.set_flags(True)
    torch.backends.nnpack.set_flags(is_enabled)
    return bool(is_enabled)


def _loggers() -> list[tuple[bool, int, list[logging.Handler]]]:
    return [(logger.disabled, logger.level, logger.handlers[:]) for logger in _LOGGERS]


def _put_loggers(states: list[tuple[bool, int, list[logging.Handler]]]) -> None:
    for logger, (is_disabled, level, handlers) in zip(_LOGGERS, states, strict=True):
        logger.disabled = is_disabled
        logger.setLevel(level)
        for handler in handlers:  # one that a callback or a strategy has added stays
            logger.addHandler(handler)


# (read, put back) of settings that change what PyTorch and numpy compute.
_COMPUTING: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (_default_device, _put_default_device),
    *((partial(_autocast, device), partial(_put_autocast, device)) for device in ("cpu", "cuda")),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (_float32, _put_float32),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
    ),
    (_flushes_denormal, torch.set_flush_denormal),
    _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    _attribute(torch.backends.cudnn, "benchmark"),
    _attribute(torch.backends.cudnn, "deterministic"),
    _attribute(torch.backends.cudnn, "enabled"),
    _attribute(torch.backends.mkldnn, "enabled"),
    *([_attribute(torch.backends.mkldnn, "deterministic")] if hasattr(torch.backends.mkldnn, "deterministic") else []),
    (_nnpack, torch.backends.nnpack.set_flags),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (np.geterr, lambda errors: np.seterr(**errors)),
]
# The same of all settings.
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    *_COMPUTING,
    (_num_modes, _leave_modes),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_inference_mode_enabled, _put_inference_mode),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (_autocast_depth, _put_autocast_depth),
    (_folder, _put_folder),
    (_mask, os.umask),
    (lambda: dict(_ENVIRONMENT), _put_environment),
    (lambda: list(sys.path), lambda folders: setattr(sys, "path", folders)),
    (lambda: list(warnings.filters), lambda filters: setattr(warnings, "filters", filters)),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.isenabled, lambda is_enabled: gc.enable() if is_enabled else gc.disable()),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    _attribute(tempfile, "tempdir"),
    _attribute(logging.root.manager, "disable"),
    (_loggers, _put_loggers),
    _attribute(builtins, "print"),
    _attribute(sys, "excepthook"),
    (
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda name: multiprocessing.set_start_method(name, force=True),
    ),
    (
        lambda: ((context := decimal.getcontext()).prec, context.rounding),
        lambda state: decimal.setcontext(decimal.Context(*state)),
    ),
    *([(lambda: os.sched_getaffinity(0), lambda cpus: os.sched_setaffinity(0, cpus))] if _HAS_AFFINITY else []),
    (lambda: list(sys.argv), lambda words: setattr(sys, "argv", words)),
    _attribute(sys, "stdout"),
    _attribute(sys, "stderr"),
]


def computing_settings() -> list[Any]:
    """Return the settings that change what PyTorch and numpy compute, for another process."""
    return [read() for read, _ in _COMPUTING]


def use_computing_settings(values: list[Any]) -> None:
    """Let this process compute as one with these settings."""
    for (read, put), value in zip(_COMPUTING, values, strict=True):
        if read() != value:
            put(value)
