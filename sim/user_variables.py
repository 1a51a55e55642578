"""What user code keeps in the variables of its modules, classes, functions and data sets, and its random generators.

Clients share processes, so a counter in a module, or a generator that a data set draws from, would make results depend
on which clients a process executes. Each client therefore finds the variables as they were before any client, and the
generators draw from the random numbers of that client. Put back are plain values (numbers, texts, lists, tuples, sets
and dicts of them, and small arrays), networks and optimizers; those that a client has added, or put in the place of
other objects, are removed. Anything else, such as a data set that a module loads once, stays as it is, also in the
place of None, and so do true and false where a client has changed such a thing, because they often say that it has
happened.
"""

from __future__ import annotations

import logging
import operator
import pickle
import sys
import types
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch

from sim import own_generators, own_networks, user_code
from sim.errors import some
from sim.function_cache import FUNCTION_WITH_CACHE, FunctionCache
from sim.own_networks import Kept
from sim.process_settings import restored_settings
from sim.user_objects import (
    MOST_ELEMENTS,
    NotPlainError,
    Value,
    Variable,
    copied,
    equal,
    fill,
    is_array,
    is_own_kind,
    is_removed,
    is_special,
    is_state,
    own_modules,
    variables_of,
    walk,
)

_MOST_BYTES = 2**24  # of an array whose content is looked at


class _Generator(NamedTuple):
    """A random generator of user code.

    Attributes:
        key: what tells its stream from those of others.
        initial: its state before any client.
    """

    made: Any
    key: tuple[int, int]
    initial: Any


class _Elements(NamedTuple):
    """A list or a set in which something is not plain.

    Attributes:
        first: its elements before any client; none if it was large.
        size: their number.
    """

    name: str
    held: list[Any] | set[Any]
    first: list[Any]
    size: int

    def has_changed(self) -> bool:
        """Return whether it has other elements now."""
        if len(self.held) != self.size:
            return True
        return isinstance(self.held, list) and any(map(operator.is_not, self.held, self.first))

    def put_back(self) -> bool:
        """Give it its first elements, and return True, unless data are among the later ones."""
        known = set(map(id, self.first))
        is_back = len(self.first) == self.size and is_removed([each for each in self.held if id(each) not in known])
        if is_back:
            fill(self.held, self.first)
        return is_back


class UserVariables:
    """The variables and generators of the user code in this process."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._variables: list[Variable] = []
        self._generators: list[_Generator] = []
        self._networks: list[tuple[str, Kept]] = []
        self._caches: list[tuple[str, FunctionCache]] = []
        self._names: Counter[str] = Counter()
        self._num_modules = 0
        self._stream: np.random.SeedSequence | None = None
        self._logs = True
        self._changed: dict[str, bool] = {}  # name → whether it is put back
        self._lists: list[_Elements] = []  # with what is not plain
        # What has variables: itself, its name, the variables, and their names at first.
        self._places: list[tuple[Any, str, Mapping[str, Any], frozenset[str]]] = []

    def renew(self, *things: Any) -> None:
        """Note the variables of all modules of the user's, and of ``things``, as they are now."""
        known = _in_modules()
        self._seen, self._names = dict(known._seen), Counter(known._names)
        self._variables, self._generators, self._places = [*known._variables], [*known._generators], [*known._places]
        self._networks, self._caches = [*known._networks], [*known._caches]
        self._lists = [*known._lists]
        self._num_modules = len(sys.modules)
        self.note(*things)

    def forget_changes(self) -> None:
        """Say again, in another run, which variables clients change."""
        self._changed.clear()

    def is_noted_again(self) -> bool:
        """Note the same variables and generators as they are now; False if they are no longer the same.

        That takes a tenth of the time in which they are found.
        """
        is_same = not any(each.has_changed() for each in self._lists)
        if not (is_same and all(len(inside) == len(names) for _, _, inside, names in self._places)):
            return False
        for index, variable in enumerate(self._variables):
            now = variable.now()
            if now is not variable.initial:
                if not (now.is_plain and variable.initial.is_plain):
                    return False
                self._variables[index] = variable._replace(initial=now)
        self._generators = [each._replace(initial=own_generators.state_of(each.made)) for each in self._generators]
        self._networks = [(name, each.again() if each.has_changed() else each) for name, each in self._networks]
        return True

    def note(self, *things: Any) -> None:
        """Note the variables of more objects, such as a module that has just been imported, as they are now."""
        known = len(self._generators)
        inner: set[int] = set()  # networks in others that are noted
        for found, value in walk(things, self._seen):
            held = found.read() if value is None else value.held
            if found.is_own and not (value is None and found.is_constant):
                initial = value or Value(held, held, is_plain=False)
                self._variables.append(Variable(found.name, found.read, found.write, initial))
            if value is None:
                if found.is_own:
                    if isinstance(held, dict):
                        self._places.append((held, found.name, held, frozenset(held)))
                    elif isinstance(held, list | set):
                        first = [*held] if len(held) <= MOST_ELEMENTS else []
                        self._lists.append(_Elements(found.name, held, first, len(held)))
                    elif (inside := variables_of(held)) is not None:
                        self._places.append((held, found.name, inside, frozenset(inside)))
                if isinstance(held, FUNCTION_WITH_CACHE) and found.is_own:
                    self._caches.append((found.name, FunctionCache(held)))
                elif found.is_own and id(held) not in inner and (network := own_networks.kept(held)) is not None:
                    self._networks.append((found.name, network))
                    inner.update(map(id, held.modules() if isinstance(held, torch.nn.Module) else (held,)))
                if own_generators.kind_of(held) and not self._knows(held):
                    # Not its place in the list, which may depend on the process.
                    key = zlib.crc32(found.name.encode()), self._names[found.name]
                    self._names[found.name] += 1
                    self._generators.append(_Generator(held, key, own_generators.state_of(held)))
        self._reseed(known)

    def _knows(self, made: Any) -> bool:
        return any(made is known.made for known in self._generators)

    @property
    def notes(self) -> list[str]:
        """What the user should know of the variables that clients have changed, one line each."""
        known = {each.name for each in self._variables} | {each.name for each in self._lists}
        back = [name for name, is_back in self._changed.items() if is_back]
        left = [name for name, is_back in self._changed.items() if name in known and not is_back]
        return [*([_how_found(back)] if back else []), *([_how_left(left)] if left else [])]

    @contextmanager
    def initial(self, stream: np.random.SeedSequence, *, log: bool = True) -> Iterator[None]:
        """Let the variables be as before any client inside the block, and as they are now after it.

        Args:
            stream: of the client; generators draw from it.
            log: whether the log says which variables have changed, also of a block in this one.
        """
        logged, self._logs = self._logs, self._logs and log
        self._note_modules()
        variables, generators = self._variables, self._generators  # to which imports in the block add
        later = {id(place): [*inside] for place, _, inside, names in self._places if len(inside) > len(names)}
        # What cannot change, or is looked into elsewhere, is its own copy.
        before = [each.initial if each.read() is each.initial.copy else each.now() for each in variables]
        states = [own_generators.state_of(each.made) for each in generators]
        counters: dict[int, Any] = {}
        for variable, value in zip(variables, before, strict=True):
            if value is not variable.initial and not variable.is_flag:
                variable.put(variable.initial, counters)
        later_elements = [(each.held, elements) for each, elements in self._changed_lists() if each.put_back()]
        self._stream = stream
        self._reseed()
        try:
            with self._initial_networks():
                yield
        finally:
            self._stream = None
            flags, stays, counters = [], False, {}
            for variable, value in zip_longest(variables, before):
                wanted = value or variable.initial
                now = wanted if variable.read() is wanted.copy else variable.now()
                if now is variable.initial and now is wanted:
                    continue
                if variable.is_flag and now.is_plain:
                    flags.append((variable, now, wanted))
                    continue
                stays |= now is not variable.initial and not variable.gives_up(now)
                if not now.is_as(wanted):
                    self._note_change(variable, now)
                    variable.put(wanted, counters)
            for place, name, inside, names in self._places:
                if len(inside) > len(names):
                    self._remove(place, name, inside, names.union(later.get(id(place), ())))
                    stays |= len(inside) > max(len(names), len(later.get(id(place), ())))
            stays |= self._put_lists_back(later_elements)
            for variable, now, wanted in flags:
                self._note_change(variable, now, is_back=not stays)
                if not stays:
                    variable.put(wanted, counters)
            for each, state in zip(generators, states, strict=False):
                own_generators.put_state(each.made, state)
            self._logs = logged

    @contextmanager
    def _initial_networks(self) -> Iterator[None]:
        """Let networks and optimizers be as before any client inside the block, and as they are now after it."""
        networks, caches = self._networks, self._caches  # to which imports in the block add
        sizes = [cache.size for _, cache in caches]
        before = [each.again() if each.has_changed() else None for _, each in networks]
        for (_, each), now in zip(networks, before, strict=True):
            if now is not None:
                each.put_back()
        try:
            yield
        finally:
            for (name, network), now in zip_longest(networks, before):
                if network.has_changed():
                    self._say(name)
                    network.put_back()
                if now is not None:
                    now.put_back()
            sizes += [0] * (len(caches) - len(sizes))
            for (name, cache), size in zip(caches, sizes, strict=True):
                if not size and cache.has_state():
                    self._say(name)
                    cache.clear()

    def _changed_lists(self) -> list[tuple[_Elements, list[Any]]]:
        return [(each, [*each.held]) for each in self._lists if each.has_changed()]

    def _put_lists_back(self, later: list[tuple[Any, list[Any]]]) -> bool:
        """Give lists their elements: the first ones, or those that they had later; return whether some keep others."""
        stays = False
        for each, _ in self._changed_lists():
            is_back = each.put_back()
            self._say(each.name, is_back=is_back)
            stays |= not is_back
        for held, elements in later:
            fill(held, elements)
        return stays

    def _say(self, name: str, *, is_back: bool = True) -> None:
        """Say once that clients change something."""
        if name in self._changed:
            return
        self._changed[name] = is_back
        if self._logs:
            logging.getLogger("sim").warning("note: %s", (_how_found if is_back else _how_left)([name]))

    def _remove(self, place: Any, name: str, inside: Mapping[str, Any], names: Collection[str]) -> None:
        """Remove the plain variables of a place that have come to these names."""
        for key in [key for key in inside if key not in names and not is_special(key)]:
            held = inside[key]
            with suppress(NotPlainError, AttributeError, TypeError):  # a class may refuse to give an attribute up
                if not is_state(held):
                    copied(held, arrays_inside=True)
                if held is None or isinstance(held, bool):
                    continue
                if isinstance(inside, dict):
                    del inside[key]
                else:
                    delattr(place, key)
                self._say(f"{name}.{key}")

    def saved(self) -> Callable[[], None]:
        """Return a function that puts everything back to what it is now."""
        variables = [(variable, variable.now()) for variable in self._variables]
        states = [(each.made, own_generators.state_of(each.made)) for each in self._generators]
        networks = [network.again() for _, network in self._networks]

        def put_back() -> None:
            counters: dict[int, Any] = {}
            for variable, value in variables:
                variable.put(value, counters)
            for made, state in states:
                own_generators.put_state(made, state)
            for network in networks:
                network.put_back()

        return put_back

    def put_initial(self) -> None:
        """Let all be as it was noted."""
        counters: dict[int, Any] = {}
        for variable in self._variables:
            if not variable.is_flag:
                variable.put(variable.initial, counters)
        for each in self._generators:
            own_generators.put_state(each.made, each.initial)
        for _, network in self._networks:
            network.put_back()

    def keep_changed(self) -> None:
        """Forget what is as it was noted."""
        self._variables = [each for each in self._variables if each.now() is not each.initial]
        self._networks = [(name, network) for name, network in self._networks if network.has_changed()]
        states = [own_generators.state_of(each.made) for each in self._generators]
        self._generators = [
            each
            for each, state in zip(self._generators, states, strict=True)
            if pickle.dumps(state) != pickle.dumps(each.initial)  # compares the arrays in them, too
        ]

    def _note_change(self, variable: Variable, now: Value, *, is_back: bool = True) -> None:
        if now is variable.initial or variable.name in self._changed:
            return
        if not now.is_plain and variable.initial.held is None and not (_holds_arrays(now.held) or is_state(now.held)):
            return  # an object that is made when it is first needed, such as a data set
        if now.is_plain and variable.initial.is_plain and equal(variable.initial.copy, now.copy):
            return
        self._say(variable.name, is_back=is_back and variable.gives_up(now))

    def _reseed(self, first: int = 0) -> None:
        if self._stream is None:
            return
        for each in self._generators[first:]:
            spawn_key = *self._stream.spawn_key, 0, *each.key
            own_generators.reseed(each.made, np.random.SeedSequence(self._stream.entropy, spawn_key=spawn_key))

    def _note_modules(self) -> None:
        if len(sys.modules) != self._num_modules:
            self._num_modules = len(sys.modules)
            self.note(*own_modules())


_MODULES: list[types.ModuleType] = []
_OF_MODULES: list[UserVariables] = []


def _in_modules() -> UserVariables:
    """Return the variables of the user's modules as they are now."""
    modules = own_modules()
    is_known = bool(_OF_MODULES) and len(modules) == len(_MODULES) and all(map(operator.is_, modules, _MODULES))
    if not (is_known and _OF_MODULES[0].is_noted_again()):
        _MODULES[:], _OF_MODULES[:] = modules, [UserVariables()]
        _OF_MODULES[0].note(*modules)
    return _OF_MODULES[0]


OF_THIS_PROCESS = UserVariables()
user_code.after_import.append(OF_THIS_PROCESS.note)
# By id of a function, which is kept, so that no other one gets the id.
_CALLED: dict[int, tuple[Any, UserVariables]] = {}
_CHANGED_BY: dict[int, tuple[Any, dict[str, None]]] = {}


@contextmanager
def called_again(function: Callable[..., Any]) -> Iterator[None]:
    """Let a function of the user's find the variables and generators that it changes as at its first call.

    Else the second call in a process would go on with the random numbers of the first, or add to its lists.
    """
    if id(function) in _CALLED:
        _CALLED[id(function)][1].put_initial()
        yield
        return
    variables = UserVariables()
    variables.renew(function)
    yield
    variables.keep_changed()
    _CALLED[id(function)] = function, variables


@contextmanager
def unchanged(*things: Any) -> Iterator[None]:
    """Put the variables and generators of user code back after the block, in which its examples are looked at."""
    variables = UserVariables()
    variables.renew(*things)
    try:
        yield
    finally:
        variables.put_initial()


@contextmanager
def isolated(stream: np.random.SeedSequence, *, log: bool = True) -> Iterator[None]:
    """Let user code find the process as the first client would, and leave nothing in it.

    Args:
        stream, log: see ``UserVariables.initial``.
    """
    with restored_settings(), OF_THIS_PROCESS.initial(stream, log=log):
        yield


def _holds_arrays(held: Any) -> bool:
    """Whether a value is an array or a tensor, or a container of some, such as a moving average of weights."""
    if is_own_kind(type(held)):
        held = getattr(held, "__dict__", {})
    if isinstance(held, dict):
        held = held.values()
    elements = held if isinstance(held, Collection) and not isinstance(held, np.ndarray | torch.Tensor) else [held]
    return any(isinstance(each, np.ndarray | torch.Tensor | torch.nn.Module) for each in islice(elements, 1000))


def _how_found(names: Sequence[str]) -> str:
    return f"clients change {some(names)}, which each of them finds as it was at first"


def _how_left(names: Sequence[str]) -> str:
    return (
        f"clients keep in {some(names)} what is not put back, because it is large or no plain value; a cache of data "
        "is fine there, but results that depend on the clients before differ with the number of processes"
    )


@contextmanager
def changed_by(function: Callable[..., Any]) -> Iterator[list[str]]:
    """Give a list that holds, after a block that calls a function, the names of the variables that it changes.

    A second call in a process may set a variable to what it already holds; another process needs it nevertheless.
    """
    modules, kept = own_modules(), dict[int, Any]()
    before = _contents(modules, kept)
    names: list[str] = []
    yield names
    after = _contents(modules, kept)
    _, known = _CHANGED_BY.setdefault(id(function), (function, {}))
    known |= dict.fromkeys(name for name, content in after.items() if name not in before or content != before[name])
    names += known


def _contents(modules: list[types.ModuleType], kept: dict[int, Any]) -> dict[str, Any]:
    """Return what the variables hold by their names: a copy, or the id of what is not plain, which is kept for it."""
    contents: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    counts: Counter[str] = Counter()
    for found, value in walk(modules, seen):
        counts[found.name] += 1
        name = found.name if counts[found.name] == 1 else f"{found.name} ({counts[found.name]})"
        is_plain = value is not None and not is_array(value.copy)
        contents[name] = [value.copy if value is not None and is_plain else _token(found.read())]  # a NaN equals itself
    kept |= seen
    return contents


def _token(thing: Any) -> tuple[str, int]:
    """Return what changes if another object is there, or if an array is filled in place."""
    if isinstance(thing, torch.Tensor):
        try:
            thing = thing.detach().numpy()
        except (TypeError, RuntimeError):  # numpy has no such array: sparse, bfloat16, or on a GPU
            return "id", id(thing)
    if isinstance(thing, np.ndarray) and thing.nbytes <= _MOST_BYTES and thing.dtype.kind != "O":
        return "content", zlib.crc32(thing.tobytes())
    return "id", id(thing)
