"""Functions that take the model, the examples or the optimizer from variables of their module.

Many programs are written so: ``def train(epoch): for x, y in train_loader: … model(x) … optimizer.step()``. While such
a function is called, these variables are those of the client; afterwards they are what they were.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from sim.parameter_roles import ROLES, validates
from sim.used_variables import functions_used_by, names_read_by
from sim.user_objects import is_own

_RATES = {"lr", "initial_lr", "max_lr", "min_lr"}  # of a group of parameters; schedulers have put all but the first


class Variable(NamedTuple):
    """A variable of a module, by the dict that has it and its name there."""

    module: dict[str, Any]
    name: str

    @property
    def value(self) -> Any:
        """What it is now."""
        return self.module.get(self.name)


# role (net, loader, optimizer, scheduler, or namesake of a parameter for the net) → the variables that have it
Borrowed = Mapping[str, Sequence[Variable]]


def borrowed_by(
    function: Callable[..., Any], given: Collection[str], *, is_test: bool = False, net_names: Collection[str] = ()
) -> Borrowed:
    """Return the variables of modules through which a function uses what a client has of its own.

    Args:
        given: roles that its parameters have, for which no variable is taken.
        is_test: it is to be called with examples of a test.
        net_names: its parameters for the net; the functions that it calls may use a variable of that name.
    """
    function = inspect.unwrap(function)
    used = _used_by(function) if isinstance(function, FunctionType) else ()
    nets = [
        each
        for each in used
        # An average of models is made beside the model that is trained.
        if isinstance(each.value, nn.Module)
        and not isinstance(each.value, AveragedModel)
        and any(True for _ in each.value.parameters())
    ]
    loaders = [each for each in used if isinstance(each.value, DataLoader)]
    optimizers = [
        each for each in used if isinstance(each.value, Optimizer) and _model_of(each.value, each.module) is not None
    ]
    stepped = {id(each.value) for each in optimizers}
    found: dict[str, Sequence[Variable]] = {
        "net": _only(nets, lambda each: ROLES.get(each.name.lower()) == "net"),
        "loader": _only(loaders, lambda each: validates(each.name) == is_test),
        "namesake": [each for each in nets if each.name in net_names],
        "optimizer": optimizers,
        "scheduler": [
            each for each in used if isinstance(each.value, LRScheduler) and id(each.value.optimizer) in stepped
        ],
    }
    return {role: variables for role, variables in found.items() if variables and role not in given}


def learning_rate_of(borrowed: Borrowed) -> float | None:
    """Return the learning rate of the optimizer that a function borrows; None if it borrows none."""
    optimizers = [each.value for each in borrowed.get("optimizer", ())]
    return float(optimizers[0].defaults["lr"]) if optimizers and "lr" in optimizers[0].defaults else None


def of_model(borrowed: Borrowed, net: nn.Module) -> Borrowed:
    """Return what is borrowed without what is, or changes, another model than ``net``."""
    namesakes = [each for each in borrowed.get("namesake", ()) if _likeness(each.value) == _likeness(net)]
    optimizers = [each for each in borrowed.get("optimizer", ()) if is_for(each.value, each.module, net)]
    stepped = {id(each.value) for each in optimizers}
    schedulers = [each for each in borrowed.get("scheduler", ()) if id(each.value.optimizer) in stepped]
    return {**borrowed, "namesake": namesakes, "optimizer": optimizers, "scheduler": schedulers}


def is_for(optimizer: Optimizer, module: Mapping[str, Any], net: nn.Module) -> bool:
    """Return whether an optimizer in a module of the user's changes a model like ``net``, of the same class."""
    model = _model_of(optimizer, module)
    return model is not None and _likeness(model) == _likeness(net)


def copy_for(optimizer: Optimizer, module: Mapping[str, Any], net: nn.Module, lr: float | None) -> Optimizer:
    """Return a copy of an optimizer that changes ``net``, see ``lent``."""
    return _copy_with_rate(optimizer, _corresponding(optimizer, module, net), lr)


def own_criterion(function: Callable[..., Any], parameter: str) -> Variable | None:
    """Return the variable of a function's module that is meant by its parameter for a loss."""
    function = inspect.unwrap(function)
    module = getattr(function, "__globals__", {})
    if isinstance(module.get(parameter), nn.Module | FunctionType):
        return Variable(module, parameter)
    # A function called loss may take something else than outputs and targets.
    named = [name for name, held in module.items() if isinstance(held, nn.Module)]
    return next((Variable(module, name) for name in named if ROLES.get(name.lower()) == "criterion"), None)


def own_optimizer(function: Callable[..., Any], parameter: str) -> Variable | None:
    """Return the variable of a function's module that is meant by its parameter for an optimizer: of a model there."""
    function = inspect.unwrap(function)
    module = getattr(function, "__globals__", {})
    found = [
        Variable(module, name)
        for name, value in module.items()
        if isinstance(value, Optimizer) and _model_of(value, module) is not None
    ]
    named = [each for each in found if each.name == parameter]
    return next(iter(named or (found if len(found) == 1 else [])), None)


def _likeness(model: nn.Module) -> tuple[Any, ...]:
    """Return what two models have in common where one is a copy of the other, compiled or not."""
    inner = getattr(model, "_orig_mod", getattr(model, "module", model))
    return type(inner), *(name for name, _ in inner.named_parameters())


@contextmanager
def lent(borrowed: Borrowed, net: nn.Module, loader: Any, lr: float | None = None) -> Iterator[None]:
    """Let the variables be those of a client inside the block.

    An optimizer is a copy that changes ``net``, with nothing in its buffers; a scheduler is one of that copy.

    Args:
        lr: learning rate in the place of the optimizer's default; None for its own.
    """
    borrowed = of_model(borrowed, net)
    before = [(each, each.value) for variables in borrowed.values() for each in variables]
    copied: dict[int, Any] = {}  # of copy.deepcopy: what stands for an object
    for each in borrowed.get("optimizer", ()):
        copied |= _corresponding(each.value, each.module, net)
    made: dict[str, Callable[[Any], Any]] = {
        "net": lambda _: net,
        "namesake": lambda _: net,
        "loader": lambda _: loader,
        "optimizer": lambda own: _copy_with_rate(own, copied, lr),
        # After its optimizer, which it refers to.
        "scheduler": lambda own: _with_rates_of_its_optimizer(copy.deepcopy(own, copied)),
    }
    try:
        for role, make in made.items():
            for each in borrowed.get(role, ()):
                each.module[each.name] = make(each.value)
        yield
    finally:
        for each, value in before:
            each.module[each.name] = value


def _only(variables: Sequence[Variable], is_meant: Callable[[Variable], bool]) -> list[Variable]:
    """Return the variables of the only value among them, or else of the only value that is meant by its name."""
    for some in (variables, [each for each in variables if is_meant(each)]):
        if len({id(each.value) for each in some}) == 1:
            return list(some)
    return []


def _model_of(optimizer: Optimizer, module: Mapping[str, Any]) -> nn.Module | None:
    """Return the model in a variable of a module whose parameters an optimizer changes."""
    stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    models = [value for value in module.values() if isinstance(value, nn.Module)]
    return next((model for model in models if stepped <= {id(weight) for weight in model.parameters()}), None)


def _corresponding(optimizer: Optimizer, module: Mapping[str, Any], net: nn.Module) -> dict[int, Any]:
    """Return id of a parameter that an optimizer changes → the parameter of ``net`` with its name."""
    model, new = _model_of(optimizer, module), dict(net.named_parameters(remove_duplicate=False))
    assert model is not None
    return {id(weight): new[name] for name, weight in model.named_parameters(remove_duplicate=False) if name in new}


def _copy_with_rate(optimizer: Optimizer, copied: dict[int, Any], lr: float | None) -> Optimizer:
    """Return a copy with another learning rate, to which that of a group of parameters and of a scheduler is relative.

    Args:
        copied: of ``copy.deepcopy``.
    """
    made, own = copy.deepcopy(optimizer, copied), optimizer.defaults.get("lr")
    if lr is not None and isinstance(own, float | int) and own not in (0, lr):
        for group in made.param_groups:
            for name in _RATES & group.keys():
                group[name] = lr if group[name] == own else group[name] * lr / own
    if any("initial_lr" in group for group in made.param_groups):
        rates = copy.deepcopy([group["lr"] for group in made.param_groups])
        LambdaLR(made, lambda _: 1.0)  # notes the calls of step, as the scheduler of the original does; else it warns
        for group, rate in zip(made.param_groups, rates, strict=True):
            group["lr"] = rate
    return made


def _with_rates_of_its_optimizer(scheduler: Any) -> Any:
    """Let a copied scheduler, and those that it is made of, begin with the learning rates of the copied optimizer."""
    if hasattr(scheduler, "base_lrs"):
        before = scheduler.base_lrs
        scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
        if hasattr(scheduler, "max_lrs"):  # of CyclicLR
            now = zip(scheduler.max_lrs, scheduler.base_lrs, before, strict=True)
            scheduler.max_lrs = [most * lr / own if own else most for most, lr, own in now]
    for inner in [each for held in vars(scheduler).values() if isinstance(held, list) for each in held]:
        if isinstance(inner, LRScheduler):
            _with_rates_of_its_optimizer(inner)
    return scheduler


def _used_by(function: FunctionType) -> tuple[Variable, ...]:
    """Return the variables of modules that a function, and the user's functions that it calls, read."""
    found: dict[tuple[int, str], Variable] = {}
    for current in functions_used_by(function):
        for name in names_read_by(current):
            variable = Variable(current.__globals__, name)
            is_followed = isinstance(variable.value, FunctionType) and is_own(variable.value.__module__ or "")
            if variable.value is not None and not is_followed:
                found[id(variable.module), name] = variable
    return tuple(found.values())
