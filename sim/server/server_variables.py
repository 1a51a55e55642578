"""What the code of the server keeps outside of its strategy, so that a checkpoint can keep it, too.

An app may count rounds in a variable of its module, keep the best loss in a variable of the function around its
``evaluate_fn``, or the server's momentum in ``Context.state``. Only variables that the strategy and its functions name
are looked at, and of these, only what has another plain value than before the first round is kept.
"""

from __future__ import annotations

import operator
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from flwr.common import RecordDict

from sim.user_objects import MISSING, Variable, content_of, is_own, is_special, name_of

_STATE = "Context.state"
# What is looked into, if a variable holds it.
_CODE = (types.FunctionType, types.MethodType, staticmethod, classmethod, partial, type)
_Named = tuple[str, Callable[[], Any], Callable[[Any], object]]


class ServerVariables:
    """The variables that a strategy and its functions use, as they are before the first round."""

    def __init__(self, things: Iterable[Any], state: RecordDict | None = None) -> None:
        """
        Args:
            things: the strategy, and functions of the app.
            state: the ``Context.state`` of the server.
        """
        self._state = state
        self._variables: dict[str, Variable] = {}
        for variable in _variables_of(things):
            name, number = variable.name, 1
            while name in self._variables:  # two functions that were made by the same one
                number += 1
                name = f"{variable.name} ({number})"
            self._variables[name] = variable

    def changed(self) -> dict[str, Any]:
        """Return what is not as it was before the first round, by name."""
        found: dict[str, Any] = {}
        for name, variable in self._variables.items():
            now = variable.now()
            if now is not None and now.copy != variable.initial.copy:
                found[name] = now.copy
        if self._state:
            found[_STATE] = dict(self._state)
        return found

    def restore(self, values: Mapping[str, Any]) -> None:
        """Put back what ``changed`` returned."""
        for name, value in values.items():
            if name == _STATE and self._state is not None:
                self._state.clear()
                self._state.update(value)
            elif name in self._variables:
                self._variables[name].fill(value)


def _variables_of(things: Iterable[Any]) -> Iterator[Variable]:
    """Return the plain variables that functions and classes of the user refer to, and those that these refer to."""
    pending, seen = deque(things), dict[int, Any]()
    while pending:
        thing = pending.popleft()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        match thing:
            case types.FunctionType() | type():
                for name, read, write in _named_in(thing):
                    variable = Variable.of(name, read, write)
                    if variable is not None:
                        yield variable
                    elif isinstance(found := read(), _CODE):
                        pending.append(found)
            case dict():
                pending.extend(thing.values())
            case list() | tuple():
                pending.extend(thing)
            case types.MethodType() | staticmethod() | classmethod():
                pending.append(thing.__func__)
            case partial():
                pending.extend([thing.func, *thing.args, *thing.keywords.values()])
            case _:  # its attributes belong to the checkpoint already
                pending.extend(type(thing).__mro__)
                pending.extend(value for value in getattr(thing, "__dict__", {}).values() if isinstance(value, _CODE))


def _named_in(thing: types.FunctionType | type) -> Iterator[_Named]:
    """Return the variables that a function of the user's names, or that a class of the user's has."""
    if isinstance(thing, type):
        if is_own(thing.__module__):
            for key in vars(thing):
                if not is_special(key) or key == "__init__":
                    read = partial(vars(thing).get, key, MISSING)
                    yield f"{name_of(thing)}.{key}", read, partial(setattr, thing, key)
        return
    variables = thing.__globals__
    module = str(variables.get("__name__"))
    if not is_own(module):
        return
    for key in _names_in(thing.__code__):
        if key in variables and not is_special(key):
            read = partial(variables.get, key, MISSING)
            yield f"{module}.{key}", read, partial(operator.setitem, variables, key)
    for cell, key in zip(thing.__closure__ or (), thing.__code__.co_freevars, strict=True):
        yield f"{name_of(thing)}.{key}", partial(content_of, cell), partial(setattr, cell, "cell_contents")


def _names_in(code: types.CodeType) -> set[str]:
    inner = [_names_in(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    return set(code.co_names).union(*inner)
