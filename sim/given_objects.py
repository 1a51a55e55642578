"""What a caller of the Python interface gives beside a config: parts of a program, and what observes a run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sim import user_code
from sim.config.fields import plain
from sim.config.run_config import AppConfig, RunConfig
from sim.errors import ConfigError

_SETTINGS = ("model", "train", "test", "client", "loss", "client_fn", "strategy", "dataset")
_OF_APPS = ("client_app", "server_app")
_UNNAMED = (*_OF_APPS, "client_manager")  # they are no settings
_FUNCTIONS = ("model", "train", "test", "load_data", "client", "loss", "client_fn")
# Argument → the methods that it must have.
_METHODS = {"client_manager": ("register", "num_available", "sample"), "history": ("add_loss_centralized",)}


class GivenObjects:
    """The parts of a program that were given as objects, and a config that names all parts.

    Attributes:
        objects: by the name of the argument of ``simulate``.
        config: with the names of the objects, which is what a run records of them.
    """

    def __init__(self, config: RunConfig, given: Mapping[str, Any]) -> None:
        """
        Args:
            given: arguments of ``simulate``; a text is the value of the setting.

        Raises:
            ConfigError: one of them is of no use.
        """
        if not isinstance(config, RunConfig):
            raise ConfigError(f"config: must be a RunConfig, not {_kind(config)}")
        given = {name: value for name, value in given.items() if value is not None}
        _check(config, given)
        texts: dict[str, Any] = {_setting(name): value for name, value in given.items() if isinstance(value, str)}
        self.objects = {**_objects_in(config), **given}
        self.objects = {name: value for name, value in self.objects.items() if not isinstance(value, str)}
        config = replace(config, **texts)
        names: dict[str, Any] = {
            _setting(n): user_code.name_of(value) for n, value in self.objects.items() if n not in _UNNAMED
        }
        self.config = replace(config, **names)


def check_observers(on_record: Any, history: Any, ray_init_args: Any) -> None:
    """Check arguments of ``simulate`` that are used when a run is under way.

    Raises:
        ConfigError: one of them is of no use.
    """
    if not (on_record is None or callable(on_record)):
        raise ConfigError(f"on_record: must be a function of a RoundRecord, not {_kind(on_record)}")
    if on_record is not None and not _takes_one(on_record):
        raise ConfigError("on_record: must take one argument, the RoundRecord of a round")
    _check_methods("history", history)
    if not isinstance(ray_init_args, Mapping | None):
        raise ConfigError(f"ray_init_args: must be a dict of arguments of ray.init, not {_kind(ray_init_args)}")
    for name in ("num_cpus", "num_gpus"):
        value = plain((ray_init_args or {}).get(name))
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(f"ray_init_args: {name} must be a number, not {_kind(value)}")


def _check(config: RunConfig, given: Mapping[str, Any]) -> None:
    for name in _OF_APPS:
        if name in given and not isinstance(config, AppConfig):
            raise ConfigError(f"{name}: a Flower app needs an AppConfig; this is a RunConfig, which takes a program")
    for name in _UNNAMED:
        if isinstance(given.get(name), str):
            raise ConfigError(f"{name}: must be an object, not text; the folder of an app is a setting of an AppConfig")
    for name in _FUNCTIONS:
        value = given.get(name)
        if value is None or callable(value) or isinstance(value, str):
            continue
        how = "; lambda: data makes one of data" if name == "load_data" else ""
        raise ConfigError(f"{name}: must be a function, or the import path of one, not {_kind(value)}{how}")
    loss, strategy = given.get("loss"), given.get("strategy")
    if isinstance(loss, type):
        raise ConfigError(f"loss: {_kind(loss)} must be an object of it, e.g. {loss.__name__}()")
    if not (strategy is None or callable(strategy) or isinstance(strategy, str) or _is_strategy(strategy)):
        raise ConfigError(f"strategy: must be a strategy of Flower's, or what makes one, not {_kind(strategy)}")
    _check_methods("client_manager", given.get("client_manager"))


def _is_strategy(value: Any) -> bool:
    return hasattr(value, "configure_fit") or hasattr(value, "configure_train")


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a built-in one has no signature
        return True
    return True


def _check_methods(name: str, value: Any) -> None:
    missing = [method for method in _METHODS[name] if not callable(getattr(value, method, None))]
    if value is not None and missing:
        raise ConfigError(f"{name}: {_kind(value)} has no {', '.join(missing)}")


def _kind(value: Any) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else type(value).__qualname__


def _setting(name: str) -> str:
    return "dataset" if name == "load_data" else name


def _objects_in(config: RunConfig) -> dict[str, Any]:
    """Return the objects in a config, and those of the script itself, which another process could not import."""
    found = dict(config.objects)
    for name in _SETTINGS:
        value = getattr(config, name) or ""
        if name not in found and value.startswith("__main__:"):
            thing = getattr(sys.modules["__main__"], value.partition(":")[2], None)
            found |= {} if thing is None else {name: thing}
    return {"load_data" if name == "dataset" else name: value for name, value in found.items()}
