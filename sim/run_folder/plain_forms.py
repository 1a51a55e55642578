"""Values that a text or a few numbers say completely, such as a path, a date or a member of an enum."""

from __future__ import annotations

import enum
import logging
import operator
import sys
import types
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path, PurePath
from typing import Any

import torch

from sim.run_folder.torch_states import Tree
from sim.user_objects import MISSING, is_own_kind, name_of

_TEXTS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "path": (Path, str, Path),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "torch device": (torch.device, str, torch.device),
    "torch dtype": (torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), lambda name: vars(torch)[name]),
    "logger": (logging.Logger, operator.attrgetter("name"), logging.getLogger),
    "module": (types.ModuleType, operator.attrgetter("__name__"), lambda name: sys.modules[name]),
}


def plain_form(value: Any) -> Tree | None:  # noqa: PLR0911 - one return per kind
    """Return a JSON object that says all of a value; None for one of another kind."""
    match value:
        case enum.Enum():
            is_known = class_named(name_of(type(value))) is type(value) and value.name in type(value).__members__
            return {"enum": name_of(type(value)), "member": value.name} if is_known else None
        case complex():
            return {"complex": [value.real.hex(), value.imag.hex()]} if type(value) is complex else None
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case timedelta():
            return {"timedelta": [value.days, value.seconds, value.microseconds]}
        case datetime() | time() if not isinstance(value.tzinfo, timezone | None):
            return None  # a text has no more than its offset
        case PurePath() if not isinstance(value, Path):
            return None
    for kind, (made, text_of, _) in _TEXTS.items():
        if isinstance(value, made):
            return {kind: text_of(value)}
    return None


def of_plain_form(tree: Tree) -> Any:
    """Return the value that ``plain_form`` converted; ``MISSING`` if it has converted none."""
    match tree:
        case {"enum": str(name), "member": str(member)} if issubclass(found := class_named(name) or object, enum.Enum):
            return found[member]
        case {"complex": [str(real), str(imaginary)]}:
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case {"range": [int(), int(), int()] as numbers}:
            return range(*numbers)
        case {"timedelta": [int(days), int(seconds), int(microseconds)]}:
            return timedelta(days, seconds, microseconds)
    for kind, (_, _, value_of) in _TEXTS.items():
        if isinstance(text := tree.get(kind), str):
            return value_of(text)
    return MISSING


def class_named(name: str) -> type | None:
    """Return a class of a module that is imported, by its whole name; None if there is none."""
    parts = name.split(".")
    for number in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:number]))
        if found is not None:
            for part in parts[number:]:
                found = getattr(found, part, None)
            return found if isinstance(found, type) else None
    return None


def is_made_by_name(kind: type) -> bool:
    """Whether objects of a class of the user's can be made anew from their attributes."""
    is_usual = getattr(kind, "__new__", None) is object.__new__ or kind is types.SimpleNamespace
    return is_usual and is_own_kind(kind) and class_named(name_of(kind)) is kind
