"""PyTorch's compiler, a second of import, waits in each process until something is compiled.

PyTorch imports it at the first step of any optimizer, only to tell it what not to compile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer

_COMPILER = "torch._dynamo"
_MADE = "__dynamo_disable"  # where PyTorch's decorator keeps what it made when it was first called


def put_off() -> None:
    """Let optimizers work without the compiler; once it is there, they do as PyTorch made them.

    A PyTorch that is built otherwise keeps its ways.
    """
    try:
        from torch._compile import _disable_dynamo
        from torch.optim.optimizer import _use_grad_for_differentiable
    except ImportError:
        return
    kept_out, with_breaks = (_code(wrap(_code)) for wrap in (_disable_dynamo, _use_grad_for_differentiable))
    for method in vars(Optimizer).values():
        if _code(method) is kept_out:
            method.__wrapped__.__dict__.setdefault(_MADE, _kept_out_later(method))
    for kind in vars(torch.optim).values():
        if isinstance(kind, type) and _code(vars(kind).get("step")) is with_breaks:
            kind.step = _with_breaks_later(vars(kind)["step"])  # type: ignore[attr-defined]


def _code(function: Any) -> Any:
    return getattr(function, "__code__", None)


def _kept_out_later(method: Any) -> Callable[..., Any]:
    function = method.__wrapped__

    def call(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return function(*args, **kwargs)
        function.__dict__.pop(_MADE, None)  # the decorator makes its own now
        return method(*args, **kwargs)

    return call


def _with_breaks_later(step: Any) -> Callable[..., Any]:
    @wraps(step)
    def call(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            return step(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step.__wrapped__(self, *args, **kwargs)

    return call
