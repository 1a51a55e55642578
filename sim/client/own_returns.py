"""What the user's own ``train`` and ``test`` return: a loss, metrics, and sometimes the trained weights."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from sim.client.returned_names import Names, names_of_numbers
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


def of_train(returned: Any, net: nn.Module, returns: Names = (), *, score: str = "accuracy") -> Returned:
    """Return what ``train`` returned as metrics; weights that it returned are put into ``net``.

    Many programs return the model, a copy of it from their best epoch, or its state_dict, alone or with metrics.

    Args:
        returns: the names in its return statements, which may say in which order its numbers are.

        score: what an accuracy is called.

    Raises:
        OwnReturnError: it is a generator, which trains nothing until somebody asks for its elements.
    """
    if inspect.isgenerator(returned) or inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        raise OwnReturnError(
            f"train returned a {type(returned).__name__}, which has trained nothing; let it return, not yield"
        )
    returned = _with_names(returned)
    parts = list(returned) if isinstance(returned, tuple) else [returned]
    others = [position for position, part in enumerate(parts) if part is not None and not _put_weights(part, net)]
    if not others:
        return Returned(None, {})
    if len(others) == 1 and isinstance(other := parts[others[0]], Mapping):
        metrics, notes = _numbers_of(other)
        return Returned(metrics.pop("loss", None), metrics, notes)
    numbers = [position for position in others if scalar(parts[position]) is not None]
    if len(others) == 2 and len(numbers) == 1 and isinstance(named := parts[sum(others) - numbers[0]], Mapping):
        return _with_others(returns, parts, numbers, named, score)
    series = [position for position in others if _mean(parts[position]) is not None]
    recorded = numbers or series
    has_usual_form = recorded == others[:2] if numbers else len(others) == 1
    called, note = names_of_numbers(returns, len(parts), recorded, ("loss", score) if has_usual_form else (), score)
    if called is None or not recorded:
        return Returned(None, {}, (_unrecorded([parts[position] for position in others], _WHAT_TRAIN_RETURNS),))
    metrics, notes = _numbers_of({name: parts[position] for name, position in zip(called, recorded, strict=True)})
    if called == ["loss"] and notes:
        notes = ("the mean of the series that it returns is recorded as the loss",)
    left = [parts[position] for position in others if position not in recorded]
    if left:
        notes = (*notes, _unrecorded(left, _WHAT_TRAIN_RETURNS))
    return Returned(metrics.pop("loss", None), metrics, (*note, *notes))


def of_test(returned: Any, score: str, returns: Names = ()) -> Returned:
    """Return what ``test`` returned as a loss and metrics.

    Args:
        score: what its second number is called.
        returns: the names in its return statements, which may say in which order its numbers are.

    Raises:
        OwnReturnError: it is something else than ``_WHAT_TEST_RETURNS``, perhaps followed by predictions.
    """
    returned = _with_names(returned)
    if isinstance(returned, Mapping):
        metrics, notes = _numbers_of(returned)
        if metrics:
            return Returned(metrics.pop("loss", None), metrics, notes)
    if isinstance(returned, list) and (mean := _mean(returned)) is not None and not _is_literal(returned, returns):
        found = of_test(mean, score, returns)  # a series
        return found._replace(notes=("the mean of the series that it returns is recorded", *found.notes))
    parts = list(returned) if isinstance(returned, tuple | list) else [returned]
    if len(parts) == 3 and isinstance(parts[2], Mapping) and isinstance(parts[1], int):
        parts.pop(1)  # the number of examples, as a client of Flower's returns it
    numbers = [position for position, part in enumerate(parts) if scalar(part) is not None]
    if len(parts) == 2 and len(numbers) == 1 and isinstance(named := parts[1 - numbers[0]], Mapping):
        return _with_others(returns, parts, numbers, named, score)
    defaults = () if numbers != [0, 1][: len(parts)] else (score,) if len(parts) == 1 else ("loss", score)
    called, note = names_of_numbers(returns, len(parts), numbers, defaults, score)
    if called is None or not numbers:
        shown = repr(returned) if isinstance(returned, int | float | str | tuple | list) else type(returned).__name__
        raise OwnReturnError(f"test returned {shown}; {_WHAT_TEST_RETURNS} is expected")
    metrics, _ = _numbers_of({name: parts[position] for name, position in zip(called, numbers, strict=True)})
    rest = [part for position, part in enumerate(parts) if position not in numbers]
    left = (_unrecorded(rest, _WHAT_TEST_RETURNS),) if rest else ()
    return Returned(metrics.pop("loss", None), metrics, (*note, *left))


def _with_others(
    returns: Names,
    parts: Sequence[Any],
    numbers: Sequence[int],
    others: Mapping[Any, Any],
    score: str,
) -> Returned:
    """Return the only number among what was returned, usually the loss, together with a dict of others."""
    called, note = names_of_numbers(returns, len(parts), numbers, ("loss",), score)
    number, _ = _numbers_of(dict.fromkeys(called or (), parts[numbers[0]]))
    metrics, notes = _numbers_of(others)
    note += tuple(f"its number is the {name}, not what its dict has by this name" for name in number.keys() & metrics)
    metrics |= number
    return Returned(metrics.pop("loss", None), metrics, (*note, *notes))


def _is_literal(returned: list[Any], returns: Names) -> bool:
    """Return whether a list is written out in a return statement, as a tuple is."""
    return len(returned) > 1 and any(len(names) == len(returned) for names in returns)


def _with_names(returned: Any) -> Any:
    """Return a named tuple or a data class as a dict, anything else as it is."""
    if isinstance(returned, tuple) and hasattr(returned, "_asdict"):
        return returned._asdict()
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type | nn.Module):
        return {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    return returned


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
