"""Turn ``--vary alpha=0.1,0.5`` into variants of a config, with one named run for each seed."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sim.config.app import read_app
from sim.config.fields import Scalar, default_of, flag_of, parse_flag, parse_scalar, type_of
from sim.config.run_config import RunConfig, config_type_of
from sim.errors import ConfigError

_FIXED = {"seed": "--seeds", "name": "the varied values", "results_dir": "--results-dir", "verbose": "--verbose"}
_MAX_NAME_LENGTH = 100
MOST_RUNS = 100_000  # of a sweep; each is a folder, and all are checked before the first one starts


@dataclass(frozen=True)
class Axis:
    """A setting and the values to try.

    ``argument`` is the name of one argument if the setting holds several arguments, and empty otherwise.
    """

    setting: str
    argument: str
    values: tuple[Scalar, ...]

    @property
    def key(self) -> str:
        """The name in tables and messages: ``alpha``, or ``strategy_args.eta``."""
        return f"{self.setting}.{self.argument}" if self.argument else self.setting


@dataclass(frozen=True)
class Variant:
    """One value for each axis, and one config for each seed."""

    values: dict[str, Scalar]
    configs: tuple[RunConfig, ...]

    @property
    def label(self) -> str:
        """The text for tables and messages, e.g. ``alpha 0.1, strategy fedavg``; ``base`` if nothing varies."""
        return ", ".join(f"{key} {value}" for key, value in self.values.items()) or "base"


def parse_axis(text: str) -> Axis:
    """Parse ``setting=value,value`` or ``setting.argument=value,value``.

    Raises:
        ConfigError: the setting does not exist or cannot be varied, there are no values, a value is given twice, or
            the setting does not accept a value.
    """
    place = f"--vary {text}"
    key, equals, right = text.partition("=")
    setting, _, argument = key.partition(".")
    setting = setting.removeprefix("--").replace("-", "_")
    known = {f.name: f for f in fields(RunConfig)}
    if not equals or not right:
        raise ConfigError(f"{place}: must be setting=value,value, e.g. alpha=0.1,1.0")
    if setting in _FIXED:
        raise ConfigError(f"{place}: {setting} cannot be varied; it is set by {_FIXED[setting]}")
    if setting not in known:
        names = ", ".join(name for name in known if name not in _FIXED)
        raise ConfigError(f"{place}: unknown setting {setting}; the settings are {names}")
    kind, _ = type_of(RunConfig, setting)
    if (kind is dict) != bool(argument):
        hint = (
            f"name one argument of {setting}, e.g. {setting}.name=1,2"
            if kind is dict
            else f"{setting} has no arguments; leave out .{argument}"
        )
        raise ConfigError(f"{place}: {hint}")
    words = right.split(",")
    values = tuple(_value(setting, kind, word, place) for word in words)
    if len(set(map(repr, values))) < len(values):
        raise ConfigError(f"{place}: contains the same value twice")
    return Axis(setting, argument, values)


def _value(setting: str, kind: type, word: str, place: str) -> Scalar:
    if not word:
        raise ConfigError(f"{place}: contains an empty value")
    if kind is dict:
        return parse_scalar(word)
    (config_field,) = (f for f in fields(RunConfig) if f.name == setting)
    value: Scalar = parse_flag(RunConfig, config_field, parse_scalar(word) if kind is bool else word)
    return value


def variants(given: dict[str, Any], axes: Sequence[Axis], num_seeds: int, results_dir: str) -> list[Variant]:
    """Return one variant for each combination of the axes' values.

    Args:
        given: the settings of the base config that the user gave. An axis overrides them, as a flag does: if it
            replaces a strategy, for example, the arguments of the replaced strategy are dropped.
        axes: the settings to vary.
        num_seeds: how many configs each variant gets. Their seeds count up from the seed of the base config.
        results_dir: the folder for the runs.

    Raises:
        ConfigError: two axes vary the same setting, or a combination of values is not a valid config.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"--vary {twice}=…: is given twice; give all its values to one --vary")
    num_runs = num_seeds * math.prod(len(axis.values) for axis in axes)
    if num_runs > MOST_RUNS:
        raise ConfigError(f"--vary {' '.join(keys)} with --seeds {num_seeds}: {num_runs} runs, at most {MOST_RUNS}")
    first = given.get("seed", RunConfig.seed)
    found, names = [], set()
    for values in itertools.product(*(axis.values for axis in axes)):
        layer: dict[str, Any] = {
            axis.setting: value for axis, value in zip(axes, values, strict=True) if not axis.argument
        }
        config_type = config_type_of({**given, **layer})
        settings = config_type.layered([given, layer])
        for axis, value in zip(axes, values, strict=True):
            if axis.argument:
                settings[axis.setting] = {**settings.get(axis.setting, {}), axis.argument: value}
        labelled = dict(zip(keys, values, strict=True))
        configs = []
        for seed in range(first, first + num_seeds):
            name = _name(labelled, seed)
            if name in names:  # the values differ only in characters that are not allowed in a file name
                name = _shortened(name, f"{labelled} {seed}")
            names.add(name)
            try:
                config = config_type(**{**settings, "seed": seed, "name": name, "results_dir": results_dir})
                if config.app is not None and seed == first:
                    read_app(config.app, config.run_config)  # it may not know a key, or not be there
            except ConfigError as error:
                if not labelled:
                    raise
                raise ConfigError(f"--vary {' '.join(f'{k}={v}' for k, v in labelled.items())}: {error}") from None
            configs.append(config)
        found.append(Variant(labelled, tuple(configs)))
    return found


def _name(values: dict[str, Scalar], seed: int) -> str:
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()]
    text = "_".join([*parts, f"seed-{seed}"])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")
    return name if len(name) <= _MAX_NAME_LENGTH else _shortened(name, text)


def _shortened(name: str, text: str) -> str:
    return f"{name[: _MAX_NAME_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def differences(config: dict[str, Any], wanted: RunConfig, skipped: Sequence[str]) -> list[str]:
    """Return one text for each setting in which a run's config differs from the wanted config.

    A setting whose wanted value is ``auto`` does not count, because the run's config holds the value that was chosen.

    Args:
        config: the run's config, as ``Run.config`` returns it.
        wanted: the config that the run should have.
        skipped: names of settings that may differ.

    Returns:
        Texts such as ``--lr 0.1, not 0.05``.
    """
    found = []
    may_have_defaults = wanted.program is not None or wanted.train is not None or ":" in wanted.dataset
    for config_field in fields(RunConfig):
        name = config_field.name
        value, actual = getattr(wanted, name), config.get(name)
        if value is None and name in RunConfig.BUILT_IN:  # the run's config holds what was chosen
            value = actual if may_have_defaults or actual is None else RunConfig.BUILT_IN[name]
        # What is not in the run's config is not given there, or a default that an earlier version did not have.
        is_same = value == actual if name in config else value in (None, {}, default_of(config_field))
        resolved = (
            value == "auto"
            or (name == "vectorized_clients" and wanted.local_training == "auto")
            or (name == "num_rounds" and not value)  # an app decides
        )
        if name not in skipped and not resolved and wanted.is_used(name) and not is_same:
            found.append(f"{flag_of(name)} {actual}, not {value}")
    return found
