"""Compare the configs and the environments of runs: what is the same in all runs, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "–"
_NOT_COMPARED = {"name", "results_dir", "verbose"}


@dataclass(frozen=True)
class Setting:
    """One setting of the config or one fact about the environment.

    Attributes:
        name: its name; nested names are joined by dots, e.g. ``strategy_args.eta``.
        values: its value in each run, as text; None for a run to which it does not apply.
    """

    name: str
    values: list[str | None]

    @property
    def differs(self) -> bool:
        """Whether two runs to which it applies have different values."""
        return len({value for value in self.values if value is not None}) > 1

    @property
    def common(self) -> str:
        """The value in the first run to which it applies."""
        return next((value for value in self.values if value is not None), ABSENT)


def compare_configs(configs: Sequence[Mapping[str, Any]], are_central: Sequence[bool]) -> list[Setting]:
    """Return every setting in the order of the configs, without the name and the folder of the runs.

    A setting that only federated or only centralised runs have does not apply to the other kind, so it is no difference
    between the two kinds. If some runs of a kind give a setting and others of this kind do not, it differs.

    Args:
        are_central: for each config, whether it is that of a centralised run.
    """
    flat = [
        {name: _text(value) for name, value in _flat(config) if name.partition(".")[0] not in _NOT_COMPARED}
        for config in configs
    ]
    settings = []
    for name in _union(flat):
        known = {kind for kind, values in zip(are_central, flat, strict=True) if name in values}
        settings.append(
            Setting(
                name,
                [
                    values.get(name, ABSENT if kind in known else None)
                    for kind, values in zip(are_central, flat, strict=True)
                ],
            )
        )
    return settings


def compare_environments(environments: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Return every fact about the environments.

    A fact that a run did not record counts as a difference. Facts do not apply to a run that recorded none at all.
    """
    flat = [{name: _text(value) for name, value in _flat(environment)} for environment in environments]
    return [Setting(name, [values.get(name, ABSENT) if values else None for values in flat]) for name in _union(flat)]


def _union(mappings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys of all mappings; a key that only a later mapping has follows the key before it there."""
    names: list[str] = []
    for mapping in mappings:
        place = 0
        for name in mapping:
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    return names


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
