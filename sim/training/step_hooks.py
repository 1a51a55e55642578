"""Sees every step that an optimizer takes on some parameters, whoever wrote the training loop around it.

PyTorch calls the public hooks of ``torch.optim.optimizer`` for each optimizer of a process, so that a correction
reaches a ``train`` that knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import SparseAdam
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sim import private_names

BeforeStep = Callable[[int, Tensor, float], None]
AfterStep = Callable[[Sequence[int]], None]
_watching: list[_Watch] = []  # also told of the steps of this package's own SGD, which is no Optimizer


class Step(NamedTuple):
    """A step of one parameter.

    Attributes:
        rate: the learning rate.
        momentum: ρ of the optimizer.
        is_nesterov: the optimizer looks ahead by its momentum.
        dampening: by how much less a gradient counts in a velocity that is there.
        is_first: the optimizer has not stepped the parameter before, so that it has no velocity yet.
    """

    rate: float
    momentum: float = 0.0
    is_nesterov: bool = False
    is_first: bool = False
    dampening: float = 0.0


@dataclass
class Steps:
    """The steps that were taken.

    Attributes:
        taken: the steps of each parameter.
        optimizers: names of the classes of the optimizers.
        are_undone: the parameters were written to after the last step, as by the weights of the best epoch.
    """

    taken: list[list[Step]]
    optimizers: set[str] = field(default_factory=set)
    are_undone: bool = False

    @property
    def count(self) -> int:
        """The number of steps of the parameter with the most."""
        return max(map(len, self.taken), default=0)

    def total_rate(self, index: int, pull: float = 0.0) -> float:
        """Return by how much a constant gradient of 1 would have moved a parameter: Σ η for plain SGD.

        With momentum ρ, a gradient counts in the steps after its own, too, with ρ, ρ², ….

        Args:
            pull: times the distance from the start, was added to each gradient.
        """
        total = velocity = 0.0
        for step in self.taken[index]:
            gradient = 1 - pull * total
            added = gradient if step.is_first or not step.momentum else (1 - step.dampening) * gradient
            velocity = added if step.is_first else step.momentum * velocity + added
            total += step.rate * (gradient + step.momentum * velocity if step.is_nesterov else velocity)
        return total


class _Watch:
    def __init__(self, parameters: Sequence[Tensor], before: BeforeStep | None, after: AfterStep | None) -> None:
        self.steps = Steps([[] for _ in parameters])
        self._last: list[Any] = [None] * len(parameters)  # the optimizer that stepped each of them last
        self._index = {id(parameter): index for index, parameter in enumerate(parameters)}
        self._before, self._after = before, after
        self._under_way: list[Any] = []  # optimizers that take a step: one around another, as in SAM or Lookahead
        self._prepared: set[int] = set()  # parameters of the outermost one's step
        self._parameters = parameters
        self._count_of_writes = private_names.count_of_writes()
        self._writes = self._counts()  # of each parameter, after the last step

    def begin(self, optimizer: Any) -> None:
        """Note that an optimizer begins a step."""
        if optimizer in self._under_way:  # one that has raised
            del self._under_way[self._under_way.index(optimizer) :]
        self._under_way.append(optimizer)
        self.renew(optimizer)

    def renew(self, optimizer: Any) -> None:
        """Note that the gradients are new, if the optimizer is the outermost one."""
        if self._under_way[0] is optimizer:
            self._prepared.clear()

    def prepare(self, optimizer: Any) -> None:
        """Correct the gradients, and count; once for a step of several optimizers."""
        if _is_skipped(optimizer):
            return
        for group in optimizer.param_groups:
            rate = float(group["lr"])
            for parameter in group["params"]:
                index = self._index.get(id(parameter))
                if index is None or parameter.grad is None or index in self._prepared:
                    continue
                self._prepared.add(index)
                if self._before is not None:
                    self._correct(index, parameter, rate, optimizer, climbs=bool(group.get("maximize")))
                momentum, dampening = (float(group.get(name) or 0.0) for name in ("momentum", "dampening"))
                is_first = self._last[index] is not optimizer
                self.steps.taken[index].append(Step(rate, momentum, bool(group.get("nesterov")), is_first, dampening))
                self._last[index] = optimizer
                self.steps.optimizers.add(type(optimizer).__name__)

    def _correct(self, index: int, parameter: Tensor, rate: float, optimizer: Any, *, climbs: bool) -> None:
        assert self._before is not None
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            if isinstance(optimizer, SparseAdam):
                raise ValueError(
                    "the correction of a sparse gradient is dense, and SparseAdam takes no dense gradients; SGD, Adam "
                    "and Adagrad do, and an nn.Embedding with sparse=False gives dense ones"
                )
            parameter.grad = parameter.grad.to_dense()
        factor = getattr(optimizer, "grad_scale", None)  # of a GradScaler, by which a fused step divides
        factor = 1.0 if factor is None else float(factor)
        factor = -factor if climbs else factor  # it steps along what it is given, which is minus the loss's gradient
        if factor != 1:
            parameter.grad.div_(factor)
        self._before(index, parameter, rate)
        if factor != 1:
            parameter.grad.mul_(factor)

    def finish(self, optimizer: Any) -> None:
        """Do what comes after the step, if it is not a part of another one."""
        if optimizer in self._under_way:
            del self._under_way[self._under_way.index(optimizer) :]
        if self._under_way:
            return
        self._prepared.clear()
        if _is_skipped(optimizer):
            return
        if self._after is not None:
            own = [p for group in optimizer.param_groups for p in group["params"]]
            indices = [self._index[id(p)] for p in own if id(p) in self._index]
            if indices:
                self._after(indices)
        self._writes = self._counts()

    def end(self) -> None:
        """Note what has happened since the last step."""
        self.steps.are_undone = self.steps.count > 0 and self._counts() != self._writes

    def _counts(self) -> list[int]:
        return list(map(self._count_of_writes, self._parameters))


def _is_skipped(optimizer: Any) -> bool:
    """Whether a fused step changes nothing, because a GradScaler has found a gradient that is not finite."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


@contextmanager
def watched(
    parameters: Sequence[Tensor], before: BeforeStep | None = None, after: AfterStep | None = None
) -> Iterator[Steps]:
    """Watch the steps that any optimizer takes on ``parameters`` inside the block.

    Args:
        before: called with the index of each parameter that has a gradient, the parameter and its learning rate; it
            may write to ``parameter.grad``, and the optimizer sees what it wrote.
        after: called after each step with the indices of the parameters that the optimizer has.
    """
    watch = _Watch(parameters, before, after)

    def pre_hook(optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        watch.begin(optimizer)
        closure = named.get("closure") or (arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            watch.prepare(optimizer)
            return None

        def corrected() -> Any:  # the optimizer computes the gradients inside its step
            loss = closure()
            watch.renew(optimizer)
            watch.prepare(optimizer)
            return loss

        return arguments[:1], {**named, "closure": corrected}

    def post_hook(optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        watch.finish(optimizer)

    handles = register_optimizer_step_pre_hook(pre_hook), register_optimizer_step_post_hook(post_hook)
    _watching.append(watch)
    try:
        yield watch.steps
    finally:
        watch.end()
        _watching.remove(watch)
        for handle in handles:
            handle.remove()


@contextmanager
def own_step(optimizer: Any) -> Iterator[None]:
    """Announce a step of what is no ``torch.optim.Optimizer`` but has ``param_groups``."""
    for watch in _watching:
        watch.prepare(optimizer)
    yield
    for watch in _watching:
        watch.finish(optimizer)
