"""``--vary alpha=0.1,0.5`` → variants of a config, and a run's name for each of their seeds."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sim.config.fields import Scalar, flag_of, parse_flag, parse_scalar, type_of
from sim.config.run_config import RunConfig
from sim.errors import ConfigError

_FIXED = {"seed": "--seeds", "name": "the values", "results_dir": "--results-dir", "verbose": "--verbose"}
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes; ``argument`` is one of a setting that holds arguments."""

    setting: str
    argument: str
    values: tuple[Scalar, ...]

    @property
    def key(self) -> str:
        """As the user wrote it: ``alpha``, or ``strategy_args.eta``."""
        return f"{self.setting}.{self.argument}" if self.argument else self.setting


@dataclass(frozen=True)
class Variant:
    """One value for each axis, and a config for each seed."""

    values: dict[str, Scalar]
    configs: tuple[RunConfig, ...]

    @property
    def label(self) -> str:
        """For people: ``alpha 0.1, strategy fedavg``."""
        return ", ".join(f"{key} {value}" for key, value in self.values.items()) or "base"


def parse_axis(text: str) -> Axis:
    """Read ``setting=value,value`` or ``setting.argument=value,value``.

    Raises:
        ConfigError: no such setting, no values, one of them twice, or one that the setting does not take.
    """
    place = f"--vary {text}"
    key, equals, right = text.partition("=")
    setting, _, argument = key.partition(".")
    setting = setting.removeprefix("--").replace("-", "_")
    known = {f.name: f for f in fields(RunConfig)}
    if not equals or not right:
        raise ConfigError(f"{place}: must be setting=value,value, e.g. alpha=0.1,1.0")
    if setting in _FIXED:
        raise ConfigError(f"{place}: {setting} follows from {_FIXED[setting]}")
    if setting not in known:
        keys = ", ".join(name for name in known if name not in _FIXED)
        raise ConfigError(f"{place}: unknown key {setting}; the keys are {keys}")
    kind, _ = type_of(RunConfig, setting)
    if (kind is dict) != bool(argument):
        wanted = (
            f"one of its arguments, e.g. {setting}.name=1,2"
            if kind is dict
            else f"{setting} alone, without .{argument}"
        )
        raise ConfigError(f"{place}: must vary {wanted}")
    words = right.split(",")
    values = tuple(_value(setting, kind, word, place) for word in words)
    if len(set(map(repr, values))) < len(values):
        raise ConfigError(f"{place}: has a value twice")
    return Axis(setting, argument, values)


def _value(setting: str, kind: type, word: str, place: str) -> Scalar:
    if not word:
        raise ConfigError(f"{place}: has an empty value")
    if kind is dict:
        return parse_scalar(word)
    (config_field,) = (f for f in fields(RunConfig) if f.name == setting)
    value: Scalar = parse_flag(RunConfig, config_field, parse_scalar(word) if kind is bool else word)
    return value


def variants(given: dict[str, Any], axes: Sequence[Axis], num_seeds: int, results_dir: str) -> list[Variant]:
    """Return the product of the axes' values, each with ``num_seeds`` seeds from the base's own on.

    Args:
        given: the settings of the base config that somebody named; an axis wins over them, and takes along what belongs
            to the value that it replaces, as flags do.

    Raises:
        ConfigError: an axis is there twice, or a combination of values cannot work.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--vary {' '.join(keys)}: a key is there twice")
    first = given.get("seed", RunConfig.seed)
    found, names = [], set()
    for values in itertools.product(*(axis.values for axis in axes)):
        layer: dict[str, Any] = {
            axis.setting: value for axis, value in zip(axes, values, strict=True) if not axis.argument
        }
        settings = RunConfig.layered([given, layer])
        for axis, value in zip(axes, values, strict=True):
            if axis.argument:
                settings[axis.setting] = {**settings.get(axis.setting, {}), axis.argument: value}
        labelled = dict(zip(keys, values, strict=True))
        configs = []
        for seed in range(first, first + num_seeds):
            name = _name(labelled, seed)
            if name in names:  # two values that differ only in what a file's name cannot hold
                name = _shortened(name, f"{labelled} {seed}")
            names.add(name)
            try:
                config = RunConfig(**{**settings, "seed": seed, "name": name, "results_dir": results_dir})
            except ConfigError as error:
                raise ConfigError(f"--vary {' '.join(f'{k}={v}' for k, v in labelled.items())}: {error}") from None
            configs.append(config)
        found.append(Variant(labelled, tuple(configs)))
    return found


def _name(values: dict[str, Scalar], seed: int) -> str:
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()]
    text = "_".join([*parts, f"seed-{seed}"])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")
    return name if len(name) <= _LONGEST_NAME else _shortened(name, text)


def _shortened(name: str, text: str) -> str:
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def differences(config: dict[str, Any], wanted: RunConfig, skipped: Sequence[str]) -> list[str]:
    """Say in which settings a run's config is not the wanted one; what ``auto`` was resolved to fits.

    Args:
        config: as ``Run.config`` returns it.
        skipped: settings that may differ.
    """
    found = []
    for config_field in fields(RunConfig):
        name = config_field.name
        value, is_there = getattr(wanted, name), config.get(name)
        resolved = value == "auto" or (name == "vectorized_clients" and wanted.local_training == "auto")
        if name not in skipped and not resolved and (value or None) != (is_there or None):
            found.append(f"{flag_of(name)} {is_there}, not {value}")
    return found
