"""Checks what a strategy returns, so that a wrong return is named and not dropped."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from flwr.common import ArrayRecord, Parameters

from sim.engine.client_calls import is_number, shape_of
from sim.errors import RunError, described

_PARAMETERS = "Parameters, which ndarrays_to_parameters makes,"
_EVALUATED = "(loss, dict of metrics) or None"
# The functions of the user's that Flower's own strategies call, by the method that calls them.
_FUNCTIONS = {
    "evaluate": ("evaluate_fn", _EVALUATED),
    "aggregate_fit": ("fit_metrics_aggregation_fn", "a dict of metrics"),
    "aggregate_evaluate": ("evaluate_metrics_aggregation_fn", "a dict of metrics"),
    "configure_fit": ("on_fit_config_fn", "a dict"),
    "configure_evaluate": ("on_evaluate_config_fn", "a dict"),
}


def checked_tested(strategy: Any, returned: Any, server_round: int) -> tuple[float | None, Mapping[str, Any]] | None:
    """Return what ``evaluate`` measured; None if it did not.

    Raises:
        RunError: it is no loss with metrics.
    """
    match returned:
        case None | () | []:
            return None
        case (loss, Mapping() as metrics) if loss is None or is_number(loss):
            return loss, metrics
    raise _wrong(strategy, "evaluate", returned, _EVALUATED, server_round)


def checked_instructions(strategy: Any, method: str, returned: Any, server_round: int) -> list[Any]:
    """Return the instructions of a ``configure`` method as a list; None chooses no clients, as in Flower.

    Raises:
        RunError: they are no pairs of a client and its instructions, or a config is no dict.
    """
    found = list(returned or ())
    for each in found:
        ins: Any = each[1] if isinstance(each, Sequence) and len(each) == 2 else None
        if not isinstance(getattr(ins, "parameters", None), Parameters):
            expected = "pairs of a client and its FitIns or EvaluateIns with Parameters"
            raise RunError(f"round {server_round}: {method} must return {expected}, not {shape_of(each)}")
        if not isinstance(ins.config, Mapping):
            raise _wrong(strategy, method, ins.config, "a dict", server_round)
    return found


def checked_aggregated(strategy: Any, method: str, returned: Any, server_round: int) -> tuple[Any, Mapping[str, Any]]:
    """Return the two results of an aggregation: the parameters or the loss, which may be None, and the metrics.

    Raises:
        RunError: it is something else. None in the place of the pair counts as (None, {}), and a missing dict as {}.
    """
    expected = f"({_PARAMETERS} dict) or (None, dict)" if method == "aggregate_fit" else "(loss or None, dict)"
    match returned:
        case None | () | []:
            return None, {}
        case (first,):
            second = None
        case (first, second):
            pass
        case _:
            raise RunError(f"round {server_round}: {method} must return {expected}, not {shape_of(returned)}")
    fits = isinstance(first, Parameters) if method == "aggregate_fit" else is_number(first)
    if first is not None and not fits:
        raise RunError(f"round {server_round}: {method} must return {expected}, not {shape_of(returned)}")
    if not isinstance(second, Mapping | None):
        raise _wrong(strategy, method, second, "a dict of metrics in the second place", server_round)
    return first, second or {}


def checked_trained(returned: Any, server_round: int) -> tuple[ArrayRecord | None, Any]:
    """Return what ``aggregate_train`` of a strategy of ``flwr.serverapp`` returned: arrays, and what was measured.

    Raises:
        RunError: it is something else.
    """
    match returned:
        case (ArrayRecord() | None as arrays, Mapping() | None as metrics):
            return arrays, metrics
    expected = "(ArrayRecord or None, MetricRecord or None)"
    raise RunError(f"round {server_round}: aggregate_train must return {expected}, not {shape_of(returned)}")


@contextmanager
def evaluate_fn_named(server_round: int) -> Iterator[None]:
    """Name ``evaluate_fn`` where Flower's own ``evaluate`` could not use what it returned.

    Raises:
        RunError: it could not. Another error stays as it is.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if last.name != "evaluate" or PurePath(last.filename).parts[-4:-1] != ("flwr", "server", "strategy"):
            raise
        reason = f"evaluate_fn must return {_EVALUATED} ({described(error)})"
        raise RunError(f"round {server_round}: {reason}") from error


def _wrong(strategy: Any, method: str, returned: Any, expected: str, server_round: int) -> RunError:
    function, of_function = _FUNCTIONS[method]
    if getattr(strategy, function, None) is not None:
        method, expected = function, of_function
    return RunError(f"round {server_round}: {method} must return {expected}, not {shape_of(returned)}")
