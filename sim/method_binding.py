"""Which arguments a class of the user's and one of its methods get, where the method trains or tests: ``Trainer.fit``.

Many programs are written so: ``Trainer(net, train_loader, test_loader, optimizer).fit(epochs)``. A client makes an
object of its own for each time that it trains or tests. A method of the model itself, ``net.fit(loader)``, is a
function whose first argument is the model.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

from sim.parameter_roles import ROLES, Binding
from sim.user_code import load


@dataclass(frozen=True)
class MethodBinding(Binding):
    """What the parameters of a class and of one of its methods mean.

    Attributes:
        of_class: the binding of the class.
        of_method: the binding of the method, without the object.
        owner: the class.
    """

    of_class: Binding
    of_method: Binding
    owner: type

    @classmethod
    def join(cls, function: Callable[..., Any], of_class: Binding, of_method: Binding, owner: type) -> Self:
        """Return the binding of both together."""
        return cls(
            function,
            {**of_class.roles, **of_method.roles},
            of_class.required | of_method.required,
            {**of_class.defaults, **of_method.defaults},
            of_class.open_ended or of_method.open_ended,
            {**of_class.assumed, **of_method.assumed},
            of_class,
            of_method,
            owner,
        )

    @property
    def trains_all_epochs(self) -> bool:
        """Whether one call of the method trains for all epochs, whose number it or its class takes, not for one."""
        if self.of_method.takes("epochs"):
            return True
        return self.of_class.takes("epochs") and not self.of_method.takes("epoch") and self._reads_epochs()

    def _reads_epochs(self) -> bool:
        """Return whether the method, or one that it calls, reads a number of epochs of its object."""
        waiting, seen = [self.function.__name__], set()
        while waiting:
            name = waiting.pop()
            method = inspect.unwrap(found) if (found := inspect.getattr_static(self.owner, name, None)) else None
            if name in seen or not inspect.isfunction(method):
                continue
            seen.add(name)
            if any(ROLES.get(each.lower().lstrip("_")) == "epochs" for each in method.__code__.co_names):
                return True
            waiting += method.__code__.co_names
        return False

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of both by their names."""
        return {**self.of_class.parameters, **self.of_method.parameters}

    def prepared(self, offered: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
        """Make an object of the class, and return its method as a function of arguments by role."""
        positional, keywords = self.of_class.arguments(offered)
        method = getattr(self.owner(*positional, **keywords), self.function.__name__)

        def call(offered: Mapping[str, Any]) -> Any:
            positional, keywords = self.of_method.arguments(offered)
            return method(*positional, **keywords)

        return call

    def call(self, offered: Mapping[str, Any]) -> Any:
        """Make an object of the class and call its method once."""
        return self.prepared(offered)(offered)


def owner_of(function: Callable[..., Any]) -> type | None:
    """Return the class of which a function is a method that needs an object; None if it is none, or of a model."""
    name, _, own_name = getattr(function, "__qualname__", "").rpartition(".")
    if not name or "<locals>" in name or not inspect.isfunction(function):
        return None
    owner: Any = sys.modules.get(function.__module__)
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner if _needs_an_object(owner, own_name) else None


def _needs_an_object(owner: Any, name: str) -> bool:
    if not isinstance(owner, type) or not inspect.isfunction(inspect.getattr_static(owner, name, None)):
        return False
    return all(base.__module__ != "torch.nn.modules.module" for base in owner.__mro__)  # torch is not imported here


class OwnedMethod(NamedTuple):
    """A method and its class, which another process cannot find by its name if a script defines it."""

    owner: type
    function: Callable[..., Any]


def makes_loaders(function: Callable[..., Any], owner: type | None) -> bool:
    """Return whether a function, or any method of its class, makes a DataLoader or reads examples by their positions.

    It then takes data sets.
    """
    waiting = [function] if owner is None else [function, *vars(owner).values()]
    seen: set[Any] = set()
    while waiting:
        current = inspect.unwrap(waiting.pop())
        if not inspect.isfunction(current) or current in seen:
            continue
        seen.add(current)
        source = _source(current)
        if "DataLoader(" in source:  # to mention it is not to make one
            return True
        names = [name for name in inspect.signature(current).parameters if ROLES.get(name.lower()) == "dataset"]
        if any(re.search(rf"\b{name}(\[|\.tensors\b)", source) for name in names):
            return True
        called = [current.__globals__.get(name) for name in current.__code__.co_names]
        waiting += [each for each in called if inspect.isfunction(each) and each.__module__ == current.__module__]
    return False


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # it was not defined in a file
        return ""


def load_function(spec: Any, setting: str) -> tuple[type | None, Callable[..., Any]]:
    """Import a function that trains or tests; return the class of which it is a method that needs an object, and it.

    Args:
        spec: its import path, which for an inherited method names the class that makes the object; or the function.
        setting: the flag that named it.

    Raises:
        PluginError: see ``user_code.load``.
    """
    function = load(spec, setting)
    if isinstance(function, OwnedMethod):
        return function
    if isinstance(spec, str) and "." in spec.partition(":")[2]:
        place, _, name = spec.rpartition(".")
        owner = load(place, setting, callable_only=False)
        return (owner if _needs_an_object(owner, name) else None), function
    return owner_of(function), function


def with_owner(thing: Any) -> Any:
    """Return a method together with its class, anything else as it is."""
    owner = owner_of(thing)
    return thing if owner is None else OwnedMethod(owner, thing)


def binding_of(
    function: Callable[..., Any],
    offered: Collection[str],
    place: str,
    needed: Collection[tuple[str, ...]] = (),
    *,
    owner: type | None = None,
    offered_to_class: Collection[str] = (),
) -> Binding:
    """Read the signature of a function, or of a method together with that of its class; see ``Binding.of``.

    Args:
        owner: the class of which it is a method that needs an object.
        offered_to_class: roles for which there are arguments for a class in any case.

    Raises:
        PluginError: see ``Binding.of``.
    """
    if owner is None:
        return Binding.of(function, offered, place, needed)
    # A class may be a data class, or have a __new__ that takes anything; its __init__ says what it takes.
    maker = partial(owner.__init__, None) if inspect.isfunction(owner.__init__) else owner  # type: ignore[misc]
    of_class = Binding.of(maker, {*offered, *offered_to_class}, place)
    return MethodBinding.join(function, of_class, Binding.of(partial(function, None), offered, place), owner)
