"""A try of the user's own functions on two examples, so that what cannot work ends before anything is written."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from flwr.client import Client, NumPyClient
from flwr.common import Context, NDArrays, RecordDict, Scalar
from flwr.server.strategy import Strategy

from sim import plugins
from sim.client import Workbench, set_weights
from sim.errors import PluginError
from sim.seeds import Purpose, seeded


def rehearse(
    bench: Workbench, weights: NDArrays, fit_config: dict[str, Scalar], strategy: Strategy | None = None
) -> None:
    """Call the user's ``train``, ``test`` and client once; built-in ones are known to work.

    Raises:
        PluginError: one of them raises or returns the wrong thing.
    """
    program = bench.program
    with seeded(0, Purpose.TEST):
        if program.train is not None:
            _rehearse_train(bench, program.train, fit_config, getattr(strategy, "proximal_mu", 0.0))
        if program.test is not None:
            _rehearse_test(bench, program.test)
        if program.client is not None:
            _rehearse_client(bench, program.client)
    set_weights(bench.net, weights)


def _two_examples(bench: Workbench) -> Any:
    return bench.batches(bench.dataset.train, np.arange(2), 2, shuffle=False)


def _rehearse_train(bench: Workbench, spec: str, fit_config: dict[str, Scalar], proximal_mu: float) -> None:
    plugins.require_call(bench.train, spec, "--train", "net", "loader", "epochs", "device")
    taken = plugins.accepted(bench.train, {**fit_config, "proximal_mu": proximal_mu})
    if proximal_mu and "proximal_mu" not in taken:
        raise PluginError(f"--train {spec}: takes no proximal_mu, which the strategy sends to every client")
    knobs = {key: value for key, value in taken.items() if key not in ("local_epochs", "batch_size")}
    net = copy.deepcopy(bench.net)
    try:
        loss = bench.train(net, _two_examples(bench), 1, bench.device, **knobs)
    except Exception as error:
        raise PluginError(f"--train {spec}: raised {type(error).__name__}: {error}") from error
    if loss is not None and not _is_number(loss):
        raise PluginError(f"--train {spec}: returned {type(loss).__name__}; the mean loss or None is expected")


def _rehearse_test(bench: Workbench, spec: str) -> None:
    plugins.require_call(bench.test, spec, "--test", "net", "loader", "device")
    try:
        returned: Any = bench.test(bench.net, _two_examples(bench), bench.device)
    except Exception as error:
        raise PluginError(f"--test {spec}: raised {type(error).__name__}: {error}") from error
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(_is_number(item) for item in returned)):
        raise PluginError(f"--test {spec}: returned {returned!r}; (loss, accuracy) as two numbers is expected")
    if not 0 <= returned[1] <= 1:
        raise PluginError(f"--test {spec}: returned accuracy {returned[1]}; a fraction 0–1 is expected")


def _rehearse_client(bench: Workbench, spec: str) -> None:
    try:
        client = bench.client(Context(0, 0, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {}))
    except Exception as error:
        raise PluginError(f"--client {spec}: cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(client, Client | NumPyClient):
        raise PluginError(f"--client {spec}: made {type(client).__name__}, not a flwr NumPyClient or Client")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
