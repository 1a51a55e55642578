"""The settings of runs as texts: for the heads of tables and panels, and what differs between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim.config.fields import parse_scalar
from sim.errors import one_line

Key = tuple[str, ...]  # the values of some settings, as they are shown
NOTHING = "–"  # a setting that has no effect in a run
NOT_COMPARED = {"seed", "name", "results_dir", "verbose"}


def named(text: str) -> str:
    """Return the name of a setting as configs have it; that of an argument, after a point, is its owner's affair."""
    setting, point, argument = text.strip().partition(".")
    return setting.removeprefix("--").replace("-", "_") + point + argument


def shown(config: Mapping[str, Any], name: str) -> str:
    """Return the value of a setting such as ``alpha`` or ``strategy_args.eta``; ``NOTHING`` if the run has none."""
    setting, _, argument = name.partition(".")
    found = config.get(setting)
    if argument:
        found = found.get(argument) if isinstance(found, dict) else None
    return NOTHING if found is None else one_line(f"{found:.12g}" if isinstance(found, float) else str(found), 100)


def ordered(keys: Sequence[Key]) -> list[Key]:
    """Order keys by number where all are numbers, otherwise as they appeared; what has none comes last."""
    orders = []
    for values in zip(*keys, strict=True):
        parsed = {value: parse_scalar(value) for value in values if value != NOTHING}
        are_numbers = all(type(each) in (int, float) for each in parsed.values())
        order: dict[str, Any] = parsed if are_numbers else {each: n for n, each in enumerate(dict.fromkeys(parsed))}
        orders.append({**{each: (0, place) for each, place in order.items()}, NOTHING: (1, 0)})
    return sorted(keys, key=lambda key: [order[value] for order, value in zip(orders, key, strict=True)])


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings in which configs differ, besides seed, name and folder; an argument counts as a setting."""
    names = dict.fromkeys(name for config in configs for name in _names(config))
    return [name for name in names if len({shown(config, name) for config in configs}) > 1]


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if name in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            yield from (f"{name}.{argument}" for argument in value)
        else:
            yield name
