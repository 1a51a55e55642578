"""The settings of a process that user code may change and forget: read before it is called, put back after it.

Clients share processes, so what one of them leaves behind would reach those that come after it in the same process,
and results would depend on the number of processes. The variables of
the user's modules are put back by ``sim.user_variables``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from sim import private_names
from sim.user_code import own_command_line

_ENVIRONMENT = private_names.environment_table()
_HOOKS = private_names.global_hooks()
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)


@contextmanager
def restored_settings() -> Iterator[None]:
    """Put the settings of this process back after the block, in which user code is called.

    They are PyTorch's and numpy's global settings and hooks, the current folder, the environment, the mask of new
    files, ``sys.path``, the standard streams, the filters of warnings, and the handlers of signals. A fork of this
    process that leaves the block ends there.
    """
    process = os.getpid()
    before = [(read(), read, put) for read, put in _SETTINGS]
    hooks = [(table, dict(table)) for table in _HOOKS]
    is_main = threading.current_thread() is threading.main_thread()
    handlers = [(number, signal.getsignal(number)) for number in _SIGNALS] if is_main else []
    try:
        with own_command_line():
            yield
    except KeyboardInterrupt:
        handlers = []  # the first Ctrl-C has changed them on purpose
        raise
    finally:
        if os.getpid() != process:
            os._exit(0)  # user code has forked, and the fork has returned as well: it must not go on with the run
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


def _attribute(place: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(place, name), lambda value: setattr(place, name, value)


# (read, put back) of each setting.
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
    ),
    (_flushes_denormal, torch.set_flush_denormal),
    _attribute(torch.backends.cudnn, "benchmark"),
    _attribute(torch.backends.cudnn, "deterministic"),
    _attribute(torch.backends.cudnn, "enabled"),
    (np.geterr, lambda errors: np.seterr(**errors)),
    (_folder, _put_folder),
    (_mask, os.umask),
    (lambda: dict(_ENVIRONMENT), _put_environment),
    (lambda: list(sys.path), lambda folders: setattr(sys, "path", folders)),
    (lambda: list(warnings.filters), lambda filters: setattr(warnings, "filters", filters)),
    _attribute(sys, "stdout"),
    _attribute(sys, "stderr"),
]
