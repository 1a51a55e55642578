"""The user's own objects: ``package.module:name`` → the object, and calls that pass what it asks for."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from sim.errors import ConfigError, PluginError


def load(spec: str, setting: str) -> Any:
    """Import what ``package.module:name`` names; modules in the current folder are found.

    Args:
        setting: the flag that named it, for the message.

    Raises:
        PluginError: no such module or name, or the import raised.
    """
    module_name, _, name = spec.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        place = f"in {folder} or the installed packages"
        reason = (
            f"no module named {module_name} {place}" if error.name == module_name else f"its import failed: {error}"
        )
        raise PluginError(f"{setting} {spec}: {reason}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{setting} {spec}: its import failed: {type(error).__name__}: {error}") from error
    try:
        found = module
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise PluginError(f"{setting} {spec}: {module_name} has no {name}; it has {', '.join(public)}") from None
    if not callable(found):
        raise PluginError(f"{setting} {spec}: is {type(found).__name__}, not something to call")
    return found


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of ``function``; none for a builtin that does not tell."""
    try:
        return _signature(function)
    except TypeError:  # it cannot be hashed
        return _signature.__wrapped__(function)


@lru_cache(maxsize=64)  # asked for each client
def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of the offered keyword arguments that ``function`` takes."""
    parameters = parameters_of(function).values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in offered.items() if key in names}


def require_call(function: Callable[..., Any], spec: str, setting: str, *args: Any, **kwargs: Any) -> None:
    """Check that ``function`` can be called so, without calling it.

    Raises:
        PluginError: the signature does not fit.
    """
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        wanted = ", ".join([*(str(a) for a in args), *kwargs])
        raise PluginError(f"{setting} {spec}: cannot be called with ({wanted}): {error}") from None


def check_arguments(
    function: Callable[..., Any], given: Mapping[str, Any], reserved: set[str], flag: str, name: str
) -> None:
    """Check the user's arguments of a library's function against its signature.

    Args:
        reserved: parameters that the config fills.
        flag: where the arguments were given, for the message.
        name: what the user calls the function.

    Raises:
        ConfigError: one that it does not take, or of a wrong type.
    """
    parameters = parameters_of(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    plain = {key: p.annotation for key, p in parameters.items() if key not in reserved and _words_of(p.annotation)}
    for key, value in given.items():
        place = f"{flag} {key}={value}"
        if key in reserved or (key not in parameters and not open_ended):
            takes = f"takes these arguments: {', '.join(plain)}" if plain else "takes no arguments"
            raise ConfigError(f"{place}: {name} {takes}")
        words = _words_of(plain[key]) if key in plain else ""
        if words and not _fits(value, plain[key]):
            raise ConfigError(f"{place}: must be {words}")


_TYPE_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def _words_of(annotation: Any) -> str:
    """What a plain type is called; empty for what a flag cannot give."""
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(get_args(annotation))}"
    options = [option for option in get_args(annotation) or (annotation,) if option is not type(None)]
    return _TYPE_WORDS.get(options[0], "") if len(options) == 1 else ""


def _fits(value: Any, annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    options = get_args(annotation) or (annotation,)
    return type(value) in options or (type(value) is int and float in options)
