"""A try of the user's own functions on two examples, so that what cannot work ends before anything is written."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from flwr.client import Client
from flwr.common import Context, NDArrays, Scalar
from flwr.server.strategy import Strategy

from sim import user_code
from sim.client.runtime import TRAIN_SETTINGS, ClientRuntime, set_weights
from sim.data.examples import Examples
from sim.engine.contract import Chunk, Task
from sim.engine.worker import Worker, WrongReturnError
from sim.errors import PluginError
from sim.seeds import Purpose, seeded


def check_user_code(
    bench: ClientRuntime, weights: NDArrays, fit_config: dict[str, Scalar], strategy: Strategy | None = None
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
            _rehearse_client(bench, program.client, weights, fit_config)
    set_weights(bench.net, weights)


def _two_examples(bench: ClientRuntime) -> Any:
    return bench.batches(bench.dataset.train, np.arange(2), 2, shuffle=False)


@torch.no_grad()
def _as_predicted(bench: ClientRuntime) -> Any:
    """Two examples labelled as the net sees them: its accuracy is 1 on them, and 100 where percent are meant."""
    images, _ = next(iter(_two_examples(bench)))
    bench.net.eval()
    labels = bench.net(images).argmax(1).cpu().numpy()
    bench.renew()
    examples = Examples(bench.dataset.train.images[:2], labels)
    return bench.batches(examples, None, 2, shuffle=False)


def _rehearse_train(bench: ClientRuntime, spec: str, fit_config: dict[str, Scalar], proximal_mu: float) -> None:
    offered = {**fit_config, "proximal_mu": proximal_mu}
    taken = user_code.accepted(bench.train, {key: offered[key] for key in TRAIN_SETTINGS if key in offered})
    if proximal_mu and "proximal_mu" not in taken:
        raise PluginError(f"--train {spec}: takes no proximal_mu, which the strategy sends to every client")
    user_code.require_call(bench.train, spec, "--train", "net", "loader", "epochs", "device", **taken)
    net = copy.deepcopy(bench.net)
    try:
        loss = bench.train(net, _two_examples(bench), 1, bench.device, **taken)
    except Exception as error:
        raise PluginError(f"--train {spec}: raised {type(error).__name__}: {error}") from error
    if loss is not None and not _is_number(loss):
        raise PluginError(f"--train {spec}: returned {type(loss).__name__}; the mean loss or None is expected")


def _rehearse_test(bench: ClientRuntime, spec: str) -> None:
    user_code.require_call(bench.test, spec, "--test", "net", "loader", "device")
    try:
        returned: Any = bench.test(bench.net, _as_predicted(bench), bench.device)
    except Exception as error:
        raise PluginError(f"--test {spec}: raised {type(error).__name__}: {error}") from error
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(_is_number(item) for item in returned)):
        raise PluginError(f"--test {spec}: returned {returned!r}; (loss, accuracy) as two numbers is expected")
    if not 0 <= returned[1] <= 1:
        raise PluginError(f"--test {spec}: returned accuracy {returned[1]}; a fraction 0–1 is expected")


def _rehearse_client(bench: ClientRuntime, spec: str, weights: NDArrays, fit_config: dict[str, Scalar]) -> None:
    made: list[Any] = []

    def client_fn(context: Context) -> Client:
        loader = _two_examples(bench)
        try:
            made.append(bench.client_over(loader, loader, context))
        except (Exception, SystemExit) as error:
            raise PluginError(f"--client {spec}: cannot be made: {type(error).__name__}: {error}") from error
        return made[0]  # type: ignore[no-any-return]

    task = Task(0, {**fit_config, "server_round": 0, "local_epochs": 1})
    (outcome,) = (
        Worker(bench.program, 1, 0, client_fn=client_fn).run(Chunk("fit", 0, [task], weights, summed=False)).outcomes
    )
    if isinstance(outcome.cause, PluginError):
        raise outcome.cause
    if not isinstance(made[0], Client):
        raise PluginError(f"--client {spec}: made {type(made[0]).__name__}, not a flwr NumPyClient or Client")
    # What it raises on two examples may be their fault; what it returns is not.
    if isinstance(outcome.cause, WrongReturnError):
        raise PluginError(f"--client {spec}: {outcome.cause}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
