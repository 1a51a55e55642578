"""Finds the variables of user code: of its modules, classes, functions and data sets, and what these hold."""

from __future__ import annotations

import argparse
import array
import ast
import math
import operator
import sys
import sysconfig
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache, partial, singledispatch
from itertools import count
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from sim.user_code import name_in_folder

MOST_ELEMENTS = 1000  # of a container that is put back or looked into
MOST_LATER_ELEMENTS = 1_000_000  # of one that clients have filled
_MOST_OBJECTS = 20_000  # looked into
_MOST_DEPTH = 5  # of containers in containers

_HERE = str(Path(__file__).parent) + "/"
_LIBRARIES = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LIBRARY_FOLDERS = ("/site-packages/", "/dist-packages/")

_OTHERS: dict[str, Any] = {}  # modules of libraries by name, because to look at all again takes 20 ms
_SCALARS = (int, float, complex, str, bytes)
_CONSTANTS = (Enum, Decimal, Fraction, date, time, timedelta, tzinfo, PurePath, range)
_DICTS = (dict, Counter, OrderedDict, defaultdict)
_BYTES = bytearray, array.array
_CONTAINERS = (list, tuple, set, frozenset, deque, *_DICTS)
_MOST_OF_ARRAY = 2**16  # elements of an array or a tensor that is put back
_NAMESPACES = (argparse.Namespace, types.SimpleNamespace)
# Libraries whose objects change by themselves: loggers note what they were asked, and a notebook's kernel is at work.
_CHANGING = ("logging", "asyncio", "IPython", "ipykernel", "jupyter_client", "tornado", "traitlets", "zmq")
MISSING = object()  # what a variable holds that is no longer there


class NotPlainError(TypeError):
    """A value is or holds something else than numbers, texts and containers, or too many of them."""


class Value(NamedTuple):
    """What a variable holds: an object, and an equal one that nobody changes; the object again if it is not plain."""

    held: Any
    copy: Any
    is_plain: bool = True

    def is_as(self, other: Value) -> bool:
        """Whether the same object holds the same."""
        return self.held is other.held and equal(self.held, other.copy)

    def filled(self) -> Any:
        """Return the object, after it was given its content."""
        if not self.is_plain:
            return self.held
        content = copied(self.copy, MOST_LATER_ELEMENTS, arrays_inside=True)
        if is_array(content):
            return _filled_array(self.held, content)
        if isinstance(self.held, count):
            return content  # it cannot be set back
        fill(self.held, content)
        return self.held


class Variable(NamedTuple):
    """A variable of user code.

    Attributes:
        initial: what it held before any client.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    initial: Value

    @property
    def is_flag(self) -> bool:
        """Whether it held true or false at first."""
        return isinstance(self.initial.held, bool)

    def now(self) -> Value:
        """Return what it holds."""
        held, initial = self.read(), self.initial
        try:
            if held is initial.held and (held is initial.copy or equal(held, initial.copy)):
                return initial
            return Value(held, copied(held, MOST_LATER_ELEMENTS, arrays_inside=True))
        except (NotPlainError, RuntimeError):
            return Value(held, held, is_plain=False)

    def gives_up(self, now: Value) -> bool:
        """Return whether what it holds now is put back: all but data that are loaded once, which are no numbers."""
        return now.is_plain or _is_number(self.initial.held) or is_state(now.held)

    def put(self, value: Value, counters: dict[int, Any]) -> None:
        """Let it hold what it held, if it gives up what it holds now.

        Args:
            counters: those that were made anew in the place of others, by the id of these, which may have two names.
        """
        now = self.now()
        if not now.is_as(value) and self.gives_up(now):
            is_counter = isinstance(value.held, count)
            self.write(counters.setdefault(id(value.held), value.filled()) if is_counter else value.filled())


class Found(NamedTuple):
    """A variable, perhaps of a library, whose value is to be looked into alone."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    is_own: bool

    @property
    def is_constant(self) -> bool:
        """Whether it can hold nothing else, so that only the content of what it holds can change."""
        return self.write is _kept


def variables_of(held: Any) -> dict[str, Any] | types.MappingProxyType[str, Any] | None:
    """Return the variables that a module, class, function or object of the user's has itself; None for other things."""
    if isinstance(held, types.ModuleType):
        module = held.__name__
    else:
        module = getattr(held if isinstance(held, type | types.FunctionType) else type(held), "__module__", "")
    found = getattr(held, "__dict__", None) if is_own(module) else None
    return found if isinstance(found, dict | types.MappingProxyType) else None


def walk(things: Iterable[Any], seen: dict[int, Any]) -> Iterator[tuple[Found, Value | None]]:
    """Return each variable that can be reached from objects, with its value; None if that is nothing plain.

    Args:
        seen: objects that were looked into, by id; they are kept there, so that no other object gets the id.
    """
    names = (name_in_folder(getattr(thing, "__name__", type(thing).__name__)) for thing in things)
    pending = deque(_constant(thing, name, owned=True) for thing, name in zip(things, names, strict=True))
    while pending and len(seen) < _MOST_OBJECTS:
        found = pending.popleft()
        held = found.read()
        try:
            if isinstance(held, count) and found.is_constant:
                raise NotPlainError  # it cannot be set back, nor another one put in its place
            yield found, Value(held, copied(held))
        except NotPlainError:
            yield found, None
            if id(held) not in seen:
                seen[id(held)] = held
                pending.extend(_variables_in(held, found.name, found.is_own))


@singledispatch
def _variables_in(thing: Any, name: str, owned: bool) -> Iterable[Found]:
    """Return what an object of any kind holds.

    Args:
        owned: whether a container of this kind belongs to user code.
    """
    kind, attributes = type(thing), getattr(thing, "__dict__", None)
    if kind.__module__.partition(".")[0] in _CHANGING:
        return []
    if issubclass(kind, _NAMESPACES):
        return _entries(attributes, name, owned=True)  # type: ignore[arg-type]
    slots = [*_in_slots(thing)] if is_own(kind.__module__) else []
    if type(attributes) is not dict:
        return slots
    return [*slots, *_entries(attributes, name_of(kind), owned=is_own(kind.__module__))]


def _in_slots(thing: Any) -> Iterator[Found]:
    """Return what an object of the user's holds without a dict."""
    for kind in type(thing).__mro__:
        for key, slot in vars(kind).items():
            if isinstance(slot, types.MemberDescriptorType) and is_own(kind.__module__) and not is_special(key):
                read = partial(getattr, thing, key, MISSING)
                yield Found(f"{name_of(type(thing))}.{key}", read, partial(setattr, thing, key), True)


def _in_attributes(thing: Any) -> Iterable[Found]:
    """Return what a list or a tuple of a class of the user's holds beside its elements."""
    kind, attributes = type(thing), getattr(thing, "__dict__", {})
    return _entries(attributes, name_of(kind), owned=True) if is_own_kind(kind) else []


@_variables_in.register(types.ModuleType)
def _in_module(thing: types.ModuleType, name: str, owned: bool) -> Iterable[Found]:
    return _entries(vars(thing), name, owned=True) if is_own(thing.__name__) else []


@_variables_in.register(type)
def _in_class(thing: type, name: str, owned: bool) -> Iterator[Found]:
    for key in [key for key in vars(thing) if not is_special(key)] if is_own(thing.__module__) else []:
        read, write = partial(vars(thing).get, key, MISSING), partial(setattr, thing, key)
        yield Found(f"{name_of(thing)}.{key}", read, write, True)


@_variables_in.register(types.FunctionType)
def _in_function(thing: types.FunctionType, name: str, owned: bool) -> Iterator[Found]:
    variables = thing.__globals__
    module = str(variables.get("__name__"))  # that of a decorated function is the decorator's
    if variables is not getattr(sys.modules.get(module), "__dict__", None):  # it came by value from another process
        yield _constant(variables, module, owned=True)
    elif not is_own(module):
        return
    place = name_of(thing)
    yield from _entries(vars(thing), place, owned=True)
    for position in range(len(thing.__defaults__ or ())):
        yield Found(place, partial(_default, thing, position), partial(_set_default, thing, position), True)
    if thing.__kwdefaults__ is not None:
        yield _constant(thing.__kwdefaults__, place, owned=True)
    for cell, key in zip(thing.__closure__ or (), thing.__code__.co_freevars, strict=True):
        yield Found(f"{place}.{key}", partial(content_of, cell), partial(setattr, cell, "cell_contents"), True)


@_variables_in.register(dict)
def _in_dict(thing: dict[Any, Any], name: str, owned: bool) -> Iterable[Found]:
    return _entries(thing, name, owned=owned) if len(thing) <= MOST_ELEMENTS else []


@_variables_in.register(list)
@_variables_in.register(tuple)
@_variables_in.register(set)
def _in_elements(thing: Any, name: str, owned: bool) -> Iterable[Found]:
    inside = _constants(thing, name, owned=owned) if len(thing) <= MOST_ELEMENTS else []
    return [*inside, *_in_attributes(thing)]


@_variables_in.register(types.MethodType)
def _in_method(thing: types.MethodType, name: str, owned: bool) -> Iterable[Found]:
    return _constants((thing.__self__, thing.__func__), name, owned=owned)


@_variables_in.register(staticmethod)
@_variables_in.register(classmethod)
def _in_wrapper(thing: Any, name: str, owned: bool) -> Iterable[Found]:
    return _constants((thing.__func__,), name, owned=owned)


@_variables_in.register(partial)
def _in_partial(thing: partial[Any], name: str, owned: bool) -> Iterable[Found]:
    return _constants((thing.func, thing.args, thing.keywords), name, owned=owned)


def _entries(variables: dict[Any, Any], place: str, *, owned: bool) -> Iterator[Found]:
    for key in list(variables):
        if not is_special(key):
            read, write = partial(variables.get, key, MISSING), partial(operator.setitem, variables, key)
            yield Found(f"{place}.{key}", read, write, owned)


def _default(function: types.FunctionType, position: int) -> Any:
    values = function.__defaults__ or ()
    return values[position] if position < len(values) else MISSING


def _set_default(function: types.FunctionType, position: int, value: Any) -> None:
    values = [*(function.__defaults__ or ())]
    values[position : position + 1] = [value]
    function.__defaults__ = tuple(values)


def _constant(thing: Any, name: str, *, owned: bool) -> Found:
    """Return what holds an object for ever, so that only the content of the object can change."""
    return Found(name, lambda: thing, _kept, owned)


def _kept(_: Any) -> None:
    """Write nothing."""


def _constants(things: Iterable[Any], name: str, *, owned: bool) -> list[Found]:
    return [_constant(thing, name, owned=owned) for thing in things]


def attributes_of(thing: Any) -> dict[str, Any]:
    """Return the attributes that an object holds itself, also those that its class has slots for."""
    slots = [name for kind in type(thing).__mro__ for name in _names_of_slots(vars(kind).get("__slots__", ()))]
    values = {name: value for name in slots if (value := getattr(thing, name, MISSING)) is not MISSING}
    return {**values, **getattr(thing, "__dict__", {})}


def _names_of_slots(slots: Any) -> list[str]:
    return [name for name in ([slots] if isinstance(slots, str) else slots) if not is_special(name)]


def name_of(thing: Any) -> str:
    """Return the name of a function or class with its module."""
    return f"{thing.__module__}.{thing.__qualname__}"


def is_special(key: Any) -> bool:
    """Whether a name is one of Python's, such as ``__doc__``."""
    return isinstance(key, str) and key.startswith("__") and key.endswith("__")


def content_of(cell: types.CellType) -> Any:
    """Return what a variable of an enclosing function holds."""
    try:
        return cell.cell_contents
    except ValueError:  # it has none yet
        return MISSING


def own_modules() -> list[types.ModuleType]:
    """Return the modules of the user's that are imported."""
    found = []
    for name, module in list(sys.modules.items()):
        if _OTHERS.get(name) is module:
            continue
        # __main__ of an actor is a file of Ray
        if not isinstance(module, types.ModuleType) or is_library(getattr(module, "__file__", None) or ""):
            _OTHERS[name] = module
        elif is_own(module.__name__):
            found.append(module)
    return found


def is_own_kind(kind: type) -> bool:
    """Return whether a class is the user's, or one whose objects hold nothing but the user's variables."""
    return kind in _NAMESPACES or is_own(kind.__module__)


def is_own(module_name: str) -> bool:
    """Return whether a module is the user's: neither this package, nor installed, nor Python's."""
    if module_name == "__main__" or module_name not in sys.modules:  # what comes by value from another process
        return True
    if name_in_folder(module_name) != module_name:  # a file of the user's that has the name of a library
        return True
    top = sys.modules.get(module_name.partition(".")[0])
    files = [getattr(module, "__file__", None) for module in (top, sys.modules.get(module_name))]
    is_built_in = files[-1] is None
    return not (is_built_in or any(file is not None and is_library(file) for file in files))


@cache
def is_library(file: str) -> bool:
    """Return whether a file is no user's code: of this package, of Python, or of an installed package."""
    if file.startswith((_HERE, *_LIBRARIES)) or any(folder in file for folder in _LIBRARY_FOLDERS):
        return True
    return any(file.startswith(f"{folder}/") and _holds_packages(folder) for folder in sys.path if folder)


@cache
def _holds_packages(folder: str) -> bool:
    """Return whether pip has installed into a folder that somebody has chosen (``pip install --target``)."""
    return next(Path(folder).glob("*.dist-info"), None) is not None


def copied(value: Any, most_elements: int = MOST_ELEMENTS, *, arrays_inside: bool = False) -> Any:
    """Return a copy of a plain value.

    Args:
        arrays_inside: containers may hold arrays, which all together are as small as one may be.

    Raises:
        NotPlainError: it is or holds anything else than numbers, texts and containers, or too many of them.
    """
    if is_array(value):
        return _copied_array(value)
    return _plain(value, _Left(most_elements, _MOST_OF_ARRAY if arrays_inside else 0))


def _copied_array(value: Any) -> Any:
    return value.copy() if hasattr(value, "copy") else value.detach().clone()


def _filled_array(held: Any, content: Any) -> Any:
    if hasattr(held, "detach"):  # also a parameter
        if not held.is_leaf:  # a client has added a tensor of a graph to it
            try:
                held.detach_()
            except RuntimeError:  # it is a part of another tensor
                return content
        held.detach()[...] = content
    else:
        held[...] = content
    return held


def fill(held: Any, content: Any) -> None:
    """Give a container its content; other things stay as they are."""
    if isinstance(held, (list, *_BYTES)):
        held[:] = content
    elif isinstance(held, deque):
        held.clear()
        held.extend(content)
    elif isinstance(held, dict | set):
        held.clear()
        held.update(content)


def is_removed(held: Any) -> bool:
    """Return whether something is plain, even if it is large, or a state, see below."""
    return _is_plain(held, _Left(MOST_LATER_ELEMENTS, _MOST_OF_ARRAY)) or is_state(held)


def is_state(held: Any, left: _Left | None = None, depth: int = 0) -> bool:
    """Whether something is removed from a variable after the client that has put it there.

    That is a network, an optimizer, a small tensor of a graph or on a GPU, a value that cannot change, a container of
    such things and of plain values, or an object of a class of the user's that holds nothing else; so it is no data
    set, which is loaded once.
    """
    kind, left = type(held), left or _Left(MOST_ELEMENTS, _MOST_OF_ARRAY)
    if kind in _tensor_kinds():
        left.of_arrays -= held.numel()
        return bool(left.of_arrays >= 0)
    if is_constant(held) or isinstance(held, _network_kinds()):
        return True
    if isinstance(held, _CONTAINERS) and (kind in _CONTAINERS or isinstance(held, tuple) or is_own(kind.__module__)):
        if len(held) > MOST_ELEMENTS:
            return False
        inside: Iterable[Any] = [*(held.values() if isinstance(held, dict) else held), *attributes_of(held).values()]
    elif is_own(kind.__module__) and kind.__module__ != "logging" and not hasattr(kind, "__getitem__"):
        inside = attributes_of(held).values()
    else:
        return False
    if depth == _MOST_DEPTH:
        return False
    return all(_is_plain(each, left) or is_state(each, left, depth + 1) for each in inside)


def _is_plain(held: Any, left: _Left) -> bool:
    before = replace(left)
    try:
        _plain(held, left)
    except (NotPlainError, RuntimeError):
        left.elements, left.of_arrays = before.elements, before.of_arrays
        return False
    return True


def is_constant(held: Any) -> bool:
    """Whether a value of some kind beside numbers and texts cannot change."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    of_numpy = () if numpy is None else (numpy.generic, numpy.dtype)
    of_torch = () if torch is None else (torch.dtype, torch.device)
    return isinstance(held, (*_CONSTANTS, *of_numpy, *of_torch))


def _network_kinds() -> tuple[type, ...]:
    torch = sys.modules.get("torch")
    if torch is None:
        return ()
    return torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor of few elements in the CPU's memory, whose content can be put back."""
    kind = type(value)
    if kind.__module__ not in ("numpy", "torch", "torch.nn.parameter"):
        return False
    if kind is getattr(sys.modules.get("numpy"), "ndarray", None):
        most = _MOST_OF_ARRAY if value.dtype.kind in "biufc" else MOST_ELEMENTS * (value.dtype.kind in "USMm")
        return bool(value.size <= most and value.flags.writeable)
    if kind not in _tensor_kinds() or value.layout != sys.modules["torch"].strided or not value.is_leaf:
        return False
    return bool(value.numel() <= _MOST_OF_ARRAY and value.device.type == "cpu")


def _tensor_kinds() -> tuple[type, ...]:
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.Tensor, torch.nn.Parameter)


def equal(held: Any, copy: Any) -> bool:
    """Whether a plain value is equal to a copy, also NaN to NaN in arrays."""
    if held is copy:
        return True
    if isinstance(copy, count):
        return type(held) is count and repr(held) == repr(copy)
    if not is_array(copy):
        try:
            return bool(held == copy) or (_holds_counter(copy) and _equal_inside(held, copy))
        except (RuntimeError, ValueError):  # it holds arrays, of which this asks one by one
            return _equal_inside(held, copy)
    if hasattr(held, "detach"):
        held = held.detach()
    if type(held) is not type(copy) or (held.shape, held.dtype) != (copy.shape, copy.dtype):
        return False
    is_nan = (held != held) & (copy != copy)  # noqa: PLR0124 - which only NaN are
    return bool(((held == copy) | is_nan).all())


def _holds_counter(value: Any) -> bool:
    """Whether a plain value holds a counter, which is equal to itself only."""
    if type(value) not in _CONTAINERS:
        return isinstance(value, count)
    return any(map(_holds_counter, value.values() if isinstance(value, dict) else value))


def _equal_inside(held: Any, copy: Any) -> bool:
    if type(held) is not type(copy) or len(held) != len(copy):
        return False
    if isinstance(copy, dict):
        return held.keys() == copy.keys() and all(equal(held[key], copy[key]) for key in copy)
    return all(map(equal, held, copy))


@dataclass
class _Left:
    """How much a plain value may still hold."""

    elements: int
    of_arrays: int


def _plain(value: Any, left: _Left) -> Any:
    if value is None or value is MISSING or type(value) in (bool, *_SCALARS) or _is_number_of_numpy(value):
        return value
    if is_array(value) and math.prod(value.shape) <= left.of_arrays:
        left.of_arrays -= math.prod(value.shape)
        return _copied_array(value)
    if isinstance(value, (count, *_BYTES)):
        return _copied_count(value) if isinstance(value, count) else _copied_bytes(value)
    if type(value) not in _CONTAINERS or len(value) > left.elements:
        raise NotPlainError
    left.elements -= len(value)
    if isinstance(value, tuple) and any(isinstance(each, (*_CONTAINERS, count, *_BYTES)) for each in value):
        raise NotPlainError  # what these hold can be changed, while the tuple stays the same
    if isinstance(value, dict):
        return {_plain(key, left): _plain(each, left) for key, each in value.items()}
    if isinstance(value, deque):
        return deque((_plain(each, left) for each in value), value.maxlen)
    return type(value)([_plain(each, left) for each in value])


def _copied_count(value: count[Any]) -> count[Any]:
    """Return an equal counter; Python can copy one only up to version 3.13."""
    try:
        found = ast.literal_eval(repr(value).removeprefix("count"))
    except (ValueError, SyntaxError):  # it counts something else than numbers
        raise NotPlainError from None
    return count(*found) if isinstance(found, tuple) else count(found)


def _copied_bytes(value: bytearray | array.array[Any]) -> bytearray | array.array[Any]:
    if len(value) > _MOST_OF_ARRAY:
        raise NotPlainError
    return value[:]


def _is_number_of_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy") if type(value).__module__ == "numpy" else None
    return numpy is not None and isinstance(value, (numpy.number, numpy.bool_))


def _is_number(value: Any) -> bool:
    """Whether a plain value is a number or a text."""
    return not isinstance(value, bool) and (isinstance(value, _SCALARS) or _is_number_of_numpy(value))
