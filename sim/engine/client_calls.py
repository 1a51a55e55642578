"""Calls a client of Flower's, and checks what it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.common import (
    Code,
    EvaluateIns,
    FitIns,
    GetParametersIns,
    GetPropertiesIns,
    NDArrays,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from torch import Tensor

from sim.engine.aggregation import check_finite
from sim.engine.interface import MOST_ACCURACY, ClientResult, Task
from sim.metrics import spelled
from sim.run_folder.records import Phase

MOST_EXAMPLES = 2**53  # beyond it a float64 does not tell two numbers apart


class WrongReturnError(TypeError):
    """A client returned something that is not what Flower expects."""


def weight_in(result: ClientResult, name: str) -> float:
    """Return the number in a reply by which it is weighted in a sum.

    Raises:
        WrongReturnError: there is none.
    """
    metrics = {key: value for _, kind, entries in result.records or [] if kind == "metrics" for key, value in entries}
    value = metrics.get(name)
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        problem = "has no" if value is None else f"says {value} for the"
        raise WrongReturnError(
            f"the reply {problem} metric {name!r}, by which the strategy weights it; its metrics are "
            f"{', '.join(map(repr, metrics)) or 'none'}"
        )
    return value


def fit(client: Any, weights: NDArrays, task: Task) -> tuple[NDArrays, int, dict[str, Any]]:
    """Have a ``Client`` or ``NumPyClient`` train; return its weights, number of examples and metrics.

    Raises:
        WrongReturnError: it returns something else.
        RuntimeError: it answers that it failed.
    """
    if not isinstance(client, NumPyClient):
        answer = client.fit(FitIns(ndarrays_to_parameters(weights), dict(task.config)))
        _check_status(answer.status)
        return parameters_to_ndarrays(answer.parameters), answer.num_examples, answer.metrics
    returned = client.fit(weights, dict(task.config))
    match returned:
        case (list() | tuple() as arrays, num_examples, dict() as metrics) if _is_count(num_examples):
            # Copies, because the arrays may be views of a net that is used again.
            return [np.array(array) for array in arrays], int(num_examples), metrics
    raise WrongReturnError(f"fit must return (list of arrays, int, dict), not {shape_of(returned)}")


def evaluate(client: Any, weights: NDArrays, task: Task) -> tuple[float, int, dict[str, Any]]:
    """Have a client evaluate; return its loss, number of examples and metrics.

    Raises:
        WrongReturnError, RuntimeError: as for ``fit``.
    """
    if not isinstance(client, NumPyClient):
        answer = client.evaluate(EvaluateIns(ndarrays_to_parameters(weights), dict(task.config)))
        _check_status(answer.status)
        return float(answer.loss), answer.num_examples, answer.metrics
    returned = client.evaluate(weights, dict(task.config))
    match returned:
        case (loss, num_examples, dict() as metrics) if _is_count(num_examples) and is_number(loss):
            return float(loss), int(num_examples), metrics
    raise WrongReturnError(f"evaluate must return (float, int, dict), not {shape_of(returned)}")


def asked(client: Any, task: Task) -> ClientResult:
    """Return what a strategy asks of a client by itself: its properties as metrics, or its parameters as weights.

    Raises:
        WrongReturnError, RuntimeError: as for ``fit``.
    """
    result = ClientResult(task.client_id)
    numpy_client, config = isinstance(client, NumPyClient), dict(task.config)
    if task.asks == "properties":
        answer = client.get_properties(config if numpy_client else GetPropertiesIns(config))
        if not numpy_client:
            _check_status(answer.status)
        properties = answer if numpy_client else answer.properties
        result.metrics = checked_metrics(properties, "get_properties", any_accuracy=True)
    else:
        answer = client.get_parameters(config if numpy_client else GetParametersIns(config))
        if not numpy_client:
            _check_status(answer.status)
        arrays = answer if numpy_client else parameters_to_ndarrays(answer.parameters)
        if not isinstance(arrays, list | tuple):
            raise WrongReturnError(f"get_parameters must return a list of arrays, not {shape_of(arrays)}")
        result.weights = [np.array(array) for array in arrays]
    return result


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a single number of Python, numpy or PyTorch, and no boolean."""
    value = _plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return a single number of numpy or PyTorch as Python's own."""
    is_single = isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0)
    return value.item() if is_single else value


def checked_metrics(metrics: Any, method: str, *, any_accuracy: bool = False) -> dict[str, Scalar]:
    """Return what a client measured as numbers and texts of Python.

    Args:
        method: of the client, for the message.
        any_accuracy: an accuracy may be something else than a fraction.

    Raises:
        WrongReturnError: a metric is something else, or an accuracy is not a fraction.
    """
    if not isinstance(metrics, Mapping):
        raise WrongReturnError(f"{method} must return its metrics as a dict, not as {type(metrics).__name__}")
    plain = {key: _plain(value) for key, value in metrics.items()}
    for key, value in plain.items():
        if type(key) is not str or type(value) not in (bool, int, float, str, bytes):
            kinds = f"{type(key).__name__}: {type(value).__name__}"
            raise WrongReturnError(
                f"{method} returned the metric {key!r} ({kinds}); a number, text or bytes is expected"
            )
    accuracy = plain.get("accuracy")
    if isinstance(accuracy, int | float) and not any_accuracy and not 0 <= accuracy <= MOST_ACCURACY:
        raise WrongReturnError(f"{method} returned accuracy {accuracy}; a fraction 0–1 is expected")
    return plain


def _check_status(status: Any) -> None:
    if status.code != Code.OK:
        raise RuntimeError(f"the client answered {status.code.name}: {status.message}")


def check_count(number: Any, least: int, phase: Phase) -> None:
    """Check a number of examples.

    Raises:
        WrongReturnError: it is no whole number from ``least`` to ``MOST_EXAMPLES``.
    """
    if not (_is_count(number) and least <= number <= MOST_EXAMPLES):
        shown = number if not _is_count(number) or abs(number) < 10**30 else "of more than 30 digits"
        raise WrongReturnError(f"{phase} returned num_examples {shown}; {least} to {MOST_EXAMPLES} is expected")


def shape_of(returned: Any) -> str:
    """Return the type of what user code returned, and those of the items of a tuple, for a message."""
    if isinstance(returned, tuple):
        return f"({', '.join(type(item).__name__ for item in returned)})"
    return type(returned).__name__


def check_fit(result: ClientResult, sent: NDArrays, names: Sequence[str] = (), *, others: bool = False) -> float | None:
    """Check what a client's ``fit`` returned; return its loss, if it gave one.

    Args:
        sent: the weights from which the client started.
        names: of the arrays, for the message.
        others: the client has a model of its own; it may return other arrays than it got, and use no example.

    Raises:
        WrongReturnError: the arrays have other shapes or dtypes, or there are no examples.
        NonFiniteError: a weight is NaN or infinite that was not sent so.
    """
    weights = result.weights or []
    dtypes = [np.asarray(w).dtype for w in weights]
    if others:
        if not all(dtype.kind in "biuf" for dtype in dtypes):
            raise WrongReturnError(f"fit returned arrays of types {[d.name for d in dtypes]}; numbers are expected")
    else:
        shapes, expected_shapes = [np.shape(w) for w in weights], [w.shape for w in sent]
        if shapes != expected_shapes:
            raise WrongReturnError(f"fit returned arrays of shapes {shapes}, the model has {expected_shapes}")
        fits = [np.can_cast(dtype, w.dtype, "same_kind") for dtype, w in zip(dtypes, sent, strict=True)]
        if not all(fits):
            raise WrongReturnError(f"fit returned arrays of types {[d.name for d in dtypes]}, the model has others")
    check_count(result.num_examples, 0 if others else 1, "fit")
    check_finite(weights, sent, names)
    return spelled(result.metrics, "loss")
