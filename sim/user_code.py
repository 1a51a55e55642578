"""The user's own objects: imports ``package.module:name``, and selects the arguments that a function takes."""

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
    """Import the object ``package.module:name``; modules in the current folder are found, too.

    Args:
        setting: the flag that named the object, for the error message.

    Raises:
        PluginError: the module or the name does not exist, the import raised, or the object cannot be called.
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
        raise PluginError(f"{setting} {spec}: is of type {type(found).__name__}, which cannot be called")
    return found


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of ``function``; none for a builtin whose signature is unknown."""
    try:
        return _signature(function)
    except TypeError:  # an object without a hash cannot be a key of the cache
        return _signature.__wrapped__(function)


@lru_cache(maxsize=64)  # called for every client
def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of the keyword arguments in ``offered`` that ``function`` takes."""
    parameters = parameters_of(function).values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in offered.items() if key in names}


def require_call(function: Callable[..., Any], spec: str, setting: str, *args: Any, **kwargs: Any) -> None:
    """Check that ``function`` can be called with these arguments, without calling it.

    Raises:
        PluginError: the signature does not take the arguments.
    """
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        wanted = ", ".join([*(str(a) for a in args), *kwargs])
        raise PluginError(f"{setting} {spec}: cannot be called with ({wanted}): {error}") from None


def check_arguments(
    function: Callable[..., Any], given: Mapping[str, Any], reserved: set[str], flag: str, name: str
) -> None:
    """Check arguments that the user gave for a function of a library against its signature.

    Args:
        reserved: parameters that the config sets, which the user must not give.
        flag: the flag that gave the arguments, for the error message.
        name: the name of the function in the error message.

    Raises:
        ConfigError: the function does not take an argument, or an argument has the wrong type.
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
    """Return a type in words; the text is empty for types whose values cannot be given in a flag."""
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(get_args(annotation))}"
    options = [option for option in get_args(annotation) or (annotation,) if option is not type(None)]
    return _TYPE_WORDS.get(options[0], "") if len(options) == 1 else ""


def _fits(value: Any, annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    options = get_args(annotation) or (annotation,)
    return type(value) in options or (type(value) is int and float in options)
