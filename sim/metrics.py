"""Metrics by name: which direction is better, targets such as ``mae<=0.2``, and quantiles over clients."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

from sim.errors import ConfigError, one_line

PERCENTS = (10, 25, 50, 75, 90)  # quantiles over clients
_WORDS = "loss losses error errors err mae mse rmse perplexity entropy crossentropy bce huber nll"
_SMALLER_IS_BETTER = frozenset(_WORDS.split())
_DIRECTIONS = {"min": True, "max": False}
_COMPARISON = re.compile(r"\s*(.*?)\s*([<>]=)\s*(.*?)\s*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def flattened(measured: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return metrics in which each item of a list is one of its own: ``recall`` → ``recall[0]``, ``recall[1]``, …."""
    found: dict[Any, Any] = {}
    for name, value in measured.items():
        if isinstance(value, list | tuple):
            found |= {f"{name}[{number}]": item for number, item in enumerate(value)}
        else:
            found[name] = value
    return found


@dataclass(frozen=True)
class MetricName:
    """A metric, and whether smaller values of it are better."""

    name: str
    smaller_is_better: bool

    @classmethod
    def parse(cls, text: str, flag: str = "--metric") -> Self:
        """Parse ``mae``, ``score:min`` or ``score:max``.

        Without a direction the name decides: smaller is better for a loss, an error, mae, mse, rmse and perplexity,
        also as a word of a longer name such as ``val_loss``; larger is better for every other name.

        Raises:
            ConfigError: there is no name.
        """
        name, colon, direction = text.rpartition(":")
        if not (colon and direction in _DIRECTIONS):
            name, direction = text, ""
        if not name.strip():
            raise ConfigError(f"{flag} {one_line(text, 200)}: must be the name of a metric, NAME:min or NAME:max")
        return cls(name, _DIRECTIONS[direction] if direction else is_better_smaller(name))

    def best(self, values: Sequence[float]) -> float:
        """Return the best of one or more values."""
        return min(values) if self.smaller_is_better else max(values)


def is_better_smaller(name: str) -> bool:
    """Return whether the name of a metric says that smaller values are better."""
    return not _SMALLER_IS_BETTER.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def configured(metric: str | None) -> dict[str, MetricName]:
    """Return the metrics that the setting ``metric`` lists: what the user wrote, without a direction → the metric.

    A metric that is a function, ``package.module:function``, is called as the function.

    Raises:
        ConfigError: an entry has no name.
    """
    found = {}
    for word in (metric or "").split(",") if metric else ():
        if not word.strip():
            raise ConfigError(f"--metric {one_line(str(metric), 200)}: has an empty name beside a comma")
        parsed = MetricName.parse(word.strip())
        found[parsed.name] = MetricName(parsed.name.rpartition(":")[2], parsed.smaller_is_better)
    return found


def check_metrics(metric: str | None) -> None:
    """Check that the setting ``metric`` lists metrics, each of them once.

    Raises:
        ConfigError: it does not.
    """
    configured(metric)
    names = [MetricName.parse(word.strip()).name.rpartition(":")[2] for word in (metric or "").split(",") if metric]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--metric {one_line(str(metric), 200)}: names {name} twice")


def named(name: str, config: Mapping[str, Any]) -> MetricName:
    """Return the metric of a run with this name; its direction is that of the run's config, or that of the name.

    The config has it in its metrics, in its target, or in the metric of its validation.
    """
    metric, validation = config.get("metric"), config.get("validation_metric")
    known = list(configured(metric if isinstance(metric, str) else None).values())
    with suppress(ConfigError):  # a damaged config
        target = Target.of(config)
        known += [] if target is None else [target.metric]
        known += [MetricName.parse(validation)] if isinstance(validation, str) else []
    return next((each for each in known if each.name == name), MetricName(name, is_better_smaller(name)))


@dataclass(frozen=True)
class Target:
    """A value of a metric of the central test at which a run ends."""

    name: str
    at_most: bool
    value: float

    @classmethod
    def parse(cls, text: str, flag: str = "--target-metric") -> Self:
        """Parse ``mae<=0.2`` or ``auroc>=0.9``.

        Raises:
            ConfigError: the text is no such comparison, or an accuracy is no fraction.
        """
        match = _COMPARISON.fullmatch(text)
        name, sign, number = match.groups() if match else ("", "", "")
        if not name or not _NUMBER.fullmatch(number) or not math.isfinite(value := float(number)):
            raise ConfigError(f"{flag} {one_line(text, 200)}: must be NAME<=NUMBER or NAME>=NUMBER, e.g. mae<=0.2")
        if name == "accuracy" and not 0 <= value <= 1:
            raise ConfigError(f"{flag} {text}: an accuracy is a fraction, at least 0 and at most 1")
        return cls(name, sign == "<=", value)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """Return the target of a config: that of ``target_metric`` or ``target_accuracy``; None if it has none.

        Raises:
            ConfigError: see ``parse``; or it has both.
        """
        text, accuracy = config.get("target_metric"), config.get("target_accuracy")
        if text is not None and accuracy is not None:
            raise ConfigError(f"--target-accuracy {accuracy:g} and --target-metric {text}: give one of the two")
        if text is not None:
            return cls.parse(text)
        return None if accuracy is None else cls("accuracy", False, accuracy)

    @property
    def metric(self) -> MetricName:
        """The metric; its better direction is that of the comparison."""
        return MetricName(self.name, self.at_most)

    def __str__(self) -> str:
        return f"{self.name}{'<=' if self.at_most else '>='}{self.value:g}"

    def is_reached_by(self, value: float | None) -> bool:
        """Return whether a measured value reaches the target; None and NaN do not."""
        if value is None:
            return False
        return value <= self.value if self.at_most else value >= self.value


def is_target(text: str) -> bool:
    """Return whether a text has the sign of a target."""
    return "<=" in text or ">=" in text


_SPELLINGS = {"loss": ("loss",), "accuracy": ("accuracy", "acc")}
_WHERE = (
    "train",
    "training",
    "eval",
    "evaluate",
    "test",
    "val",
    "valid",
    "validation",
    "central",
    "centralized",
    "global",
)


def spelled(measured: Mapping[str, Any], name: str) -> float | None:
    """Return the number among metrics that is a loss or an accuracy in one of the usual spellings.

    Args:
        name: ``loss`` or ``accuracy``; ``train_loss``, ``eval-acc`` and ``test_accuracy`` are spellings of them.
    """
    exact = {name: measured[name]} if name in measured else {}
    for key, value in {**exact, **measured}.items():
        words = [word for word in str(key).lower().replace("-", "_").split("_") if word not in _WHERE]
        if len(words) == 1 and words[0] in _SPELLINGS[name] and isinstance(value, Real):
            return float(value)
    return None


def quantiles(values: Sequence[float], *, smaller_is_better: bool = False) -> dict[str, float]:
    """Return how clients differ, each counted once: ``p10`` … ``p90`` and ``worst10``; empty for no clients.

    The worst tenth, of which ``worst10`` is the mean, is rounded up to whole clients (Li et al. 2020, "Fair Resource
    Allocation in Federated Learning").
    """
    if not len(values):
        return {}
    import numpy as np

    found = np.quantile(values, [percent / 100 for percent in PERCENTS])
    worst = sorted(values, reverse=smaller_is_better)[: math.ceil(len(values) / 10)]
    return {
        **{f"p{percent}": float(value) for percent, value in zip(PERCENTS, found, strict=True)},
        "worst10": float(sum(worst) / len(worst)),
    }


def shown(value: float) -> str:
    """Return a value for people: four decimals where that says enough, otherwise four digits."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
