"""The names of modules that a function of the user's reads, and those that only the script behind it sets."""

from __future__ import annotations

import builtins
import dis
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from sim.errors import some
from sim.user_code import ARGUMENTS, Arguments
from sim.user_objects import is_own

_EARLIER = Arguments()


def functions_used_by(function: Callable[..., Any]) -> Iterator[FunctionType]:
    """Yield the function, and the user's functions that it calls, each once."""
    waiting: list[Any] = [function]
    seen: set[FunctionType] = set()
    while waiting:
        current = inspect.unwrap(waiting.pop())
        if not isinstance(current, FunctionType) or current in seen:
            continue
        seen.add(current)
        yield current
        for name in names_read_by(current):
            value = current.__globals__.get(name)
            if isinstance(value, FunctionType) and is_own(value.__module__ or ""):
                waiting.append(value)


def names_read_by(function: FunctionType) -> tuple[str, ...]:
    """Return the names of its module that a function reads, also in the functions inside of it."""
    return _names_in(function.__code__)


@lru_cache(maxsize=256)  # names only: in a notebook, what they stand for may be set later
def _names_in(code: CodeType) -> tuple[str, ...]:
    return (*dict.fromkeys(_globals_in(code)),)


def set_by_a_script(function: Callable[..., Any]) -> str:
    """Return, for an error, which names a function reads that its module lacks; nothing if there are none."""
    names = [name for _, name in _without_value(function)]
    script = 'what stands under if __name__ == "__main__" is not executed'
    return f"; its module does not set {some(names)}: {script}" if names else ""


def set_arguments(function: Callable[..., Any], arguments: Any) -> None:
    """Let ``args`` and the like, which a script would set to its options, be the arguments of the program.

    A function may read them from its module, where ``main`` sets them by ``global args``. Nothing that has a value is
    changed, and nothing is set where the program has no arguments.
    """
    if not (isinstance(arguments, Arguments) and vars(arguments)):
        return
    for module, name in _without_value(function):
        if name.lower() in ARGUMENTS.split():
            module[name] = arguments


def _without_value(function: Callable[..., Any]) -> list[tuple[dict[str, Any], str]]:
    """Return module and name of what has no value, or one that an earlier run in this process was given."""
    return [
        (used.__globals__, name)
        for used in functions_used_by(function)
        for name in names_read_by(used)
        if isinstance(used.__globals__.get(name, _EARLIER), Arguments) and not hasattr(builtins, name)
    ]


def _globals_in(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function inside of it, or a comprehension
            yield from _globals_in(constant)
