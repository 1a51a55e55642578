"""What the code of the server keeps outside of its strategy, so that a checkpoint can keep it, too.

An app may count rounds in a variable of its module, keep the best loss in an object that its ``evaluate_fn`` uses, the
turn of the clients in its client manager, or the server's momentum in ``Context.state``. Only what the strategy and its
functions name is looked at, and of this, only what is not as it was before the first round is kept.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import operator
import sys
import types
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flwr.common import RecordDict
from flwr.server.strategy import Strategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim.errors import StateError
from sim.run_folder.encode_state import Arrays, Encoder, is_key
from sim.run_folder.torch_states import has_state_dict, is_data_set, is_module, is_tensor, put_state, state_of
from sim.user_objects import (
    MISSING,
    MOST_LATER_ELEMENTS,
    NotPlainError,
    attributes_of,
    content_of,
    copied,
    is_array,
    is_own,
    is_own_kind,
    is_special,
    name_of,
)

_STATE = "Context.state"
_NEW = "="  # before the name of a variable that holds another object than before the first round
_MOST_PLACES = 20_000  # looked into
_MOST_ELEMENTS = 1000  # of a container that is looked into
_CODE = (types.FunctionType, types.MethodType, staticmethod, classmethod, property, partial, type)
_STRATEGIES = (Strategy, MessageStrategy)


class _Found(NamedTuple):
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


class _Held(NamedTuple):
    """What a variable holds.

    Attributes:
        content: a checksum; None if it is not known.
        kept: what a checkpoint can keep of it; ``MISSING`` for nothing.
    """

    held: Any
    content: str | None
    kept: Any


class ServerVariables:
    """The variables that a strategy and its functions use, as they are before the first round."""

    def __init__(self, things: Iterable[Any], state: RecordDict | None = None) -> None:
        """
        Args:
            things: the strategy, functions of the app, its client manager and its server.
            state: the ``Context.state`` of the server.
        """
        self._state = state
        self._places: list[tuple[Any, str]] = []  # what is looked into, with its name
        self._before: dict[str, _Held] = {}
        self._seen: dict[int, Any] = {}  # by id, which nothing else can have while it is kept here
        counts = Counter[str]()
        pending = deque((thing, type(thing).__name__) for thing in things)
        while pending and len(self._seen) < _MOST_PLACES:
            thing, place = pending.popleft()
            if id(thing) in self._seen:
                continue
            self._seen[id(thing)] = thing
            place = name_of(thing) if isinstance(thing, types.FunctionType | type) else place
            counts[place] += 1  # two functions that were made by the same one
            self._places.append((thing, place if counts[place] == 1 else f"{place} ({counts[place]})"))
            for name, read, _ in _inside(*self._places[-1]):
                if name not in self._before:
                    self._before[name] = held = _look(read())
                    pending.extend((each, name) for each in _followed(held))

    def present(self) -> dict[str, Any]:
        """Return what each variable held before the first round, by name."""
        return {name: before.held for name, before in self._before.items()}

    def changed(self) -> dict[str, Any]:
        """Return what is not as it was before the first round, by name.

        Raises:
            StateError: some of that cannot be kept; the message names all.
        """
        found: dict[str, Any] = {}
        problems: list[str] = []
        seen: set[str] = set()
        for thing, place in self._places:
            for name, read, _ in _inside(thing, place):
                if name not in seen:
                    seen.add(name)
                    self._compare(name, _look(read()), found, problems)
        gone = (name for name, before in self._before.items() if name not in seen and before.content is not None)
        problems += [f"{name} (deleted)" for name in gone]
        if problems:
            raise StateError(", ".join(problems))
        if self._state:
            found[_STATE] = dict(self._state)
        return found

    def _compare(self, name: str, now: _Held, found: dict[str, Any], problems: list[str]) -> None:
        before = self._before.get(name, _NOTHING)
        held, has_state = now.held, has_state_dict(now.held)
        is_same = held is before.held or (isinstance(held, types.MethodType) and held == before.held)
        if is_same and (before.content is None or (id(held) in self._seen and not has_state)):
            return  # what it holds is looked at by itself, if it is the user's
        if now.content is None:
            kept, lost = _partly(held, name)
            if kept is not None:
                found[name if is_same else _NEW + name] = kept
            elif before.content is None or (is_same and isinstance(held, list)):
                lost = lost or [f"{name} ({type(held).__name__})"]
            problems += lost
        elif now.content != before.content:
            if now.kept is MISSING or (has_state and type(held) is not type(before.held)):
                problems.append(f"{name} ({type(held).__name__})")
            else:
                found[name if is_same or has_state else _NEW + name] = now.kept

    def restore(self, values: Mapping[str, Any]) -> None:
        """Put back what ``changed`` returned; an object that was changed in its place has its content already."""
        writes = {name: write for thing, place in self._places for name, _, write in _inside(thing, place)}
        present = self.present()
        for key, value in values.items():
            name = key.removeprefix(_NEW)
            held = present.get(name)
            if key == _STATE and self._state is not None:
                self._state.clear()
                self._state.update(value)
            elif key == name and has_state_dict(held):
                put_state(held, value)
            elif key != name or value is not held:
                writes.get(name, partial(self._write_new, name))(value)

    def _write_new(self, name: str, value: Any) -> None:
        """Give a value to a variable that was not there before the first round."""
        for thing, place in sorted(self._places, key=lambda each: -len(each[1])):
            rest = name.removeprefix(place)
            is_container = isinstance(thing, list | dict)
            if rest == name:
                continue
            if is_container and rest.startswith("[") and rest.endswith("]"):
                key = ast.literal_eval(rest[1:-1])
                thing.insert(key, value) if isinstance(thing, list) else thing.__setitem__(key, value)
                return
            if not is_container and rest.startswith(".") and rest[1:].isidentifier():
                write = setattr if isinstance(thing, type) else object.__setattr__  # an object may be frozen
                write(thing, rest[1:], value)
                return
        module, _, key = name.rpartition(".")
        if module in sys.modules and is_own(module):
            setattr(sys.modules[module], key, value)


def _look(held: Any) -> _Held:
    if held is MISSING:
        return _Held(held, "", MISSING)
    if is_data_set(held) or isinstance(held, _STRATEGIES):  # data do not change, and a strategy is kept elsewhere
        return _Held(held, None, MISSING)
    try:
        position = _position(held)
        if position is not None:
            return _Held(held, position, MISSING)
        kept = state_of(held) if has_state_dict(held) else held
        return _Held(held, _checksum(kept), kept)
    except Exception:  # noqa: BLE001 - it is not kept, whatever it raises when it is looked at
        return _Held(held, None, MISSING)


def _checksum(value: Any) -> str:
    with suppress(NotPlainError):
        if not is_array(value) or getattr(value.dtype, "kind", "") in "USMm":  # others leave out digits in their text
            text = repr(copied(value, MOST_LATER_ELEMENTS))
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    arrays: Arrays = {}
    tree = Encoder(arrays, is_made_again=False, is_first_enough=True).encode(value, "value")
    sums = [(name, str(array.dtype), array.shape, zlib.crc32(array.data)) for name, array in arrays.items()]
    return hashlib.sha256(json.dumps([tree, sums]).encode()).hexdigest()


def _position(held: Any) -> str | None:
    """Return how far an iterator is; None for other things."""
    if isinstance(held, types.GeneratorType):
        frame = held.gi_frame
        return "at its end" if frame is None else f"{frame.f_lasti} {frame.f_locals}"
    if isinstance(held, itertools.count):
        return repr(held)
    is_built_in = type(held).__module__ in ("builtins", "itertools")
    return str(operator.length_hint(held, -1)) if is_built_in and isinstance(held, Iterator) else None


def _partly(held: Any, name: str) -> tuple[dict[Any, Any] | None, list[str]]:
    """Return what can be kept of a new object that cannot be kept as a whole, and the names of what else it needs.

    Data sets, loaders and other objects of libraries are not needed: code that finds none makes them again.
    """
    if type(held) is dict and all(is_key(key) for key in held):
        entries = {key: _look(each) for key, each in held.items()}
        lost = [problem for key, each in entries.items() for problem in _lost(each.held, f"{name}[{key!r}]")]
        return {key: held[key] for key, each in entries.items() if each.kept is held[key]}, lost
    return None, _lost(held, name)


def _lost(held: Any, name: str) -> list[str]:
    if _look(held).kept is held:
        return []
    if isinstance(held, list | tuple | set | dict):
        parts = held.values() if isinstance(held, dict) else held
        return [problem for number, part in enumerate(parts) for problem in _lost(part, f"{name}[{number}]")]
    if is_data_set(held) or isinstance(held, (types.ModuleType, *_CODE)):
        return []
    is_content = isinstance(held, np.ndarray) or is_tensor(held) or has_state_dict(held) or _position(held) is not None
    is_needed = is_content or type(held).__module__.startswith("flwr.") or is_own_kind(type(held))
    return [f"{name} ({type(held).__name__})"] if is_needed else []


_NOTHING = _look(MISSING)


# What is looked into.


def _followed(found: _Held) -> Iterable[Any]:
    """Return what is to be looked into of a variable: code, the user's objects, and what cannot be kept as a whole."""
    held = found.held
    if is_data_set(held):
        return []
    if found.content is None or is_own_kind(type(held)):
        return [held]
    if isinstance(held, list | tuple | dict) and len(held) <= _MOST_ELEMENTS:
        return {type(each): None for each in (held.values() if isinstance(held, dict) else held)}
    return []


def _inside(thing: Any, place: str) -> Iterable[_Found]:  # noqa: PLR0911 - one return per kind
    """Return the variables that user code names, or that an object of the user's has."""
    match thing:
        case types.FunctionType():
            return _in_function(thing, place)
        case type():
            return _in_class(thing, place) if is_own(thing.__module__) else []
        case types.MethodType():
            return _constants(place, self=thing.__self__, function=thing.__func__)
        case staticmethod() | classmethod():
            return _constants(place, function=thing.__func__)
        case property():
            return _constants(place, get=thing.fget, set=thing.fset)
        case partial():
            arguments = {str(number): each for number, each in enumerate(thing.args)}
            return _constants(place, function=thing.func, **arguments, **thing.keywords)
        case dict() | list() | tuple() | deque() if len(thing) > _MOST_ELEMENTS:
            return []
        case dict():
            return [_item(thing, key, each, place) for key, each in thing.items() if is_key(key)]
        case list() | tuple() | deque():
            return [_item(thing, number, each, place) for number, each in enumerate(thing)]
        case _ if isinstance(getattr(thing, "__wrapped__", None), types.FunctionType):  # of functools.cache
            return _constants(place, function=thing.__wrapped__)
        case _ if isinstance(thing, _STRATEGIES) or is_own_kind(type(thing)):
            return _in_object(thing, place)
    return []


def _item(thing: Any, key: Any, held: Any, place: str) -> _Found:
    return _Found(f"{place}[{key!r}]", lambda: held, partial(operator.setitem, thing, key))


def _constants(place: str, **things: Any) -> list[_Found]:
    return [_Found(f"{place}.{key}", lambda thing=thing: thing, lambda _: None) for key, thing in things.items()]  # type: ignore[misc]


def _in_object(thing: Any, place: str) -> Iterator[_Found]:
    kinds = {f"class {kind.__qualname__}": kind for kind in type(thing).__mro__}
    yield from _constants(place, **kinds)
    is_strategy, is_net = isinstance(thing, _STRATEGIES), is_module(thing)
    for key, held in attributes_of(thing).items():
        # Other attributes of a strategy belong to the checkpoint already, and those of a module to its state.
        is_code = callable(held) or has_state_dict(held) or isinstance(held, _STRATEGIES) or is_own_kind(type(held))
        if is_code if is_strategy else not (is_net and (key.startswith("_") or key == "training")):
            read, write = partial(getattr, thing, key, MISSING), partial(object.__setattr__, thing, key)
            yield _Found(f"{place}.{key}", read, write)


def _in_class(thing: type, place: str) -> Iterator[_Found]:
    for key, held in list(vars(thing).items()):
        if not is_special(key) or isinstance(held, types.FunctionType):
            read = partial(vars(thing).get, key, MISSING)
            yield _Found(f"{place}.{key}", read, partial(setattr, thing, key))


def _in_function(thing: types.FunctionType, place: str) -> Iterator[_Found]:
    variables = thing.__globals__
    if not is_own(str(variables.get("__name__"))):
        return
    names = _names_in(thing.__code__)
    # What a function imports itself is none of its module's variables.
    package = variables.get("__package__") or ""
    imported = [name for key in names for name in (key, f"{package}.{key}") if name in sys.modules and is_own(name)]
    yield from _in_modules([variables, *(vars(sys.modules[name]) for name in imported)], names)
    for key in vars(thing):
        yield _Found(f"{place}.{key}", partial(getattr, thing, key, MISSING), partial(setattr, thing, key))
    defaults = {str(number): each for number, each in enumerate(thing.__defaults__ or ())}
    yield from _constants(f"{place}.default", **defaults, **(thing.__kwdefaults__ or {}))
    for cell, key in zip(thing.__closure__ or (), thing.__code__.co_freevars, strict=True):
        name = f"{name_of(thing)}.{key}{place.removeprefix(name_of(thing))}"
        yield _Found(name, partial(content_of, cell), partial(setattr, cell, "cell_contents"))


def _in_modules(modules: list[dict[str, Any]], names: Iterable[str]) -> Iterator[_Found]:
    """Return the variables of modules, and of modules that these hold, that code names."""
    pending, seen = deque(modules), set[int]()
    while pending:
        variables = pending.popleft()
        if id(variables) in seen:
            continue
        seen.add(id(variables))
        for key in names:
            if key in variables and not is_special(key):
                held = variables[key]
                read, write = partial(variables.get, key, MISSING), partial(operator.setitem, variables, key)
                yield _Found(f"{variables.get('__name__')}.{key}", read, write)
                if isinstance(held, types.ModuleType) and is_own(held.__name__):
                    pending.append(vars(held))


def _names_in(code: types.CodeType) -> dict[str, None]:
    """Return the names of variables and attributes in code, in an order that does not depend on the process."""
    names = dict.fromkeys(code.co_names)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            names |= _names_in(each)
    return names
