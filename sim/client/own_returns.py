"""What the user's own ``train`` and ``test`` return: a loss, metrics, and sometimes the trained weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from sim.errors import some

_WHAT_TRAIN_RETURNS = "the mean loss, (loss, accuracy), a dict of metrics"
_WHAT_TEST_RETURNS = "accuracy, (loss, accuracy), (loss, dict of metrics) or dict of metrics"
_WRAPPERS = "module.", "_orig_mod."  # what nn.DataParallel and torch.compile put before the names of weights


class OwnReturnError(TypeError):
    """A function of the user's returned something that cannot be used."""


class Returned(NamedTuple):
    """What a function of the user's returned.

    Attributes:
        loss: None if there is none.
        metrics: by name, without the loss.
        notes: what of it is recorded in another form, or not at all.
    """

    loss: float | None
    metrics: dict[str, float]
    notes: tuple[str, ...] = ()


def scalar(value: Any) -> float | None:
    """Return a number, also of numpy or PyTorch, as a float; None if it is none."""
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if is_number else None


def of_train(returned: Any, net: nn.Module) -> Returned:
    """Return what ``train`` returned as metrics; weights that it returned are put into ``net``.

    Many programs return the model, a copy of it from their best epoch, or its state_dict, alone or with metrics.

    Raises:
        OwnReturnError: it is a generator, which trains nothing until somebody asks for its elements.
    """
    if inspect.isgenerator(returned) or inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        raise OwnReturnError(
            f"train returned a {type(returned).__name__}, which has trained nothing; let it return, not yield"
        )
    parts = list(returned) if isinstance(returned, tuple) else [returned]
    others = [part for part in parts if not _put_weights(part, net)]
    if len(others) == 2 and None not in (numbers := [scalar(part) for part in others]):
        loss, accuracy = numbers
        return Returned(loss, {"accuracy": accuracy})  # type: ignore[dict-item]
    if len(others) > 1:
        return Returned(None, {}, (_unrecorded(others, _WHAT_TRAIN_RETURNS),))
    (other,) = others or [None]
    if other is None:
        return Returned(None, {})
    if isinstance(other, Mapping):
        metrics, notes = _numbers_of(other)
        return Returned(metrics.pop("loss", None), metrics, notes)
    mean = _mean(other)
    if mean is None:
        return Returned(None, {}, (_unrecorded([other], _WHAT_TRAIN_RETURNS),))
    notes = () if scalar(other) is not None else ("the mean of the series that it returns is recorded as the loss",)
    return Returned(mean, {}, notes)


def of_test(returned: Any, score: str) -> Returned:
    """Return what ``test`` returned as a loss and metrics.

    Args:
        score: what its second number is called.

    Raises:
        OwnReturnError: it is something else than ``_WHAT_TEST_RETURNS``, perhaps followed by predictions.
    """
    if (number := scalar(returned)) is not None:
        return Returned(None, {score: number})
    if isinstance(returned, Mapping):
        metrics, notes = _numbers_of(returned)
        if metrics:
            return Returned(metrics.pop("loss", None), metrics, notes)
    if isinstance(returned, tuple | list) and len(returned) > 1 and (first := scalar(returned[0])) is not None:
        second, *rest = returned[1:]
        if isinstance(second, Mapping):
            metrics, notes = _numbers_of(second)
            metrics.pop("loss", None)
            return Returned(first, metrics, notes)
        if (value := scalar(second)) is not None and all(scalar(each) is None for each in rest):
            notes = (_unrecorded(rest, _WHAT_TEST_RETURNS),) if rest else ()
            return Returned(first, {score: value}, notes)
    shown = repr(returned) if isinstance(returned, int | float | str | tuple | list) else type(returned).__name__
    raise OwnReturnError(f"test returned {shown}; {_WHAT_TEST_RETURNS} is expected")


def _put_weights(part: Any, net: nn.Module) -> bool:
    """Put what was returned into a net if it has all of its weights; return whether it has."""
    if part is net:
        return True
    if not isinstance(part, nn.Module | Mapping):
        return False
    own = net.state_dict()
    found = dict(part.state_dict() if isinstance(part, nn.Module) else part)
    for prefix in _WRAPPERS:
        if not own.keys() <= found.keys() and all(isinstance(name, str) for name in found):
            consume_prefix_in_state_dict_if_present(found, prefix)
    if not own or any(getattr(found.get(name), "shape", None) != value.shape for name, value in own.items()):
        return False
    # A copy of arrays, of which PyTorch takes only those in a plain order.
    new = {n: torch.from_numpy(found[n].copy()) if isinstance(found[n], np.ndarray) else found[n] for n in own}
    if any(new[name].data_ptr() != value.data_ptr() for name, value in own.items()):
        net.load_state_dict(new)
    return True


def _mean(value: Any) -> float | None:
    """Return a number, or the mean of a series of numbers; None if it is neither."""
    if (number := scalar(value)) is not None:
        return number
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if not isinstance(value, list) or not value:
        return None
    numbers = [scalar(each) for each in value]
    return None if None in numbers else sum(numbers) / len(numbers)  # type: ignore[arg-type]


def _numbers_of(returned: Mapping[Any, Any]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the metrics of a dict, of a series its mean, and the notes."""
    means = {str(name): _mean(value) for name, value in returned.items()}
    metrics = {name: mean for name, mean in means.items() if mean is not None}
    series = [str(name) for name, value in returned.items() if str(name) in metrics and scalar(value) is None]
    left = [name for name, mean in means.items() if mean is None]
    notes = []
    if series:
        notes.append(f"the means of the series {some(series, 5)} that it returns are recorded")
    if left:
        notes.append(f"{some(left, 5)} of what it returns {_is_or_are(left)} no number and not recorded")
    return metrics, tuple(notes)


def _unrecorded(parts: Iterable[Any], expected: str) -> str:
    kinds = [type(part).__name__ for part in parts]
    return f"what it returns ({some(kinds, 5)}) is not recorded; {expected} is"


def _is_or_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
