"""Which arguments a class of the user's and one of its methods get, where the method trains or tests: ``Trainer.fit``.

Many programs are written so: ``Trainer(net, train_loader, test_loader, optimizer).fit(epochs)``. A client makes an
object of its own for each time that it trains or tests. A method of the model itself, ``net.fit(loader)``, is a
function whose first argument is the model.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any, NamedTuple, Self

from sim.parameter_roles import Binding


@dataclass(frozen=True)
class MethodBinding(Binding):
    """What the parameters of a class and of one of its methods mean.

    Attributes:
        of_class: the binding of the class.
        of_method: the binding of the method, without the object.
    """

    of_class: Binding
    of_method: Binding

    @classmethod
    def join(cls, function: Callable[..., Any], of_class: Binding, of_method: Binding) -> Self:
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
        )

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of both by their names."""
        return {**self.of_class.parameters, **self.of_method.parameters}

    def prepared(self, offered: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
        """Make an object of the class, and return its method as a function of arguments by role."""
        method = getattr(self.of_class.call(offered), self.function.__name__)

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
    if not isinstance(owner, type) or inspect.getattr_static(owner, own_name, None) is not function:
        return None
    is_model = any(base.__module__ == "torch.nn.modules.module" for base in owner.__mro__)  # torch is not imported here
    return None if is_model else owner


class OwnedMethod(NamedTuple):
    """A method and its class, which another process cannot find by its name if a script defines it."""

    owner: type
    function: Callable[..., Any]


def makes_loaders(function: Callable[..., Any], owner: type | None) -> bool:
    """Return whether a function, or any method of its class, makes a DataLoader, so that it takes data sets."""
    functions = [function] if owner is None else [function, *vars(owner).values()]
    codes = [getattr(inspect.unwrap(each), "__code__", None) for each in functions if callable(each)]
    return any("DataLoader" in _names_in(code) for code in codes if code is not None)


def _names_in(code: CodeType) -> set[str]:
    inside = [_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*inside)


def split(thing: Callable[..., Any] | OwnedMethod) -> tuple[type | None, Callable[..., Any]]:
    """Return the class, see ``owner_of``, and the function."""
    return thing if isinstance(thing, OwnedMethod) else (owner_of(thing), thing)


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
    of_class = Binding.of(owner, {*offered, *offered_to_class}, place)
    return MethodBinding.join(function, of_class, Binding.of(partial(function, None), offered, place))
