"""Tries the user's own functions on two examples, so that what cannot work ends before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.client import Client
from flwr.common import Context, NDArrays, Scalar
from flwr.server.strategy import Strategy

from sim import user_code
from sim.client.runtime import ClientRuntime, ClientSpec
from sim.client.torch_client import TRAIN_SETTINGS
from sim.data.dataset import Examples
from sim.engine.contract import Chunk, ClientResult, Task
from sim.engine.worker import Worker, WrongReturnError
from sim.errors import PluginError, described
from sim.process_settings import restored_settings
from sim.seeds import Purpose, seeded
from sim.training.local import evaluating
from sim.training.weights import set_weights


def check_user_code(
    spec: ClientSpec, weights: NDArrays, fit_settings: dict[str, Scalar], strategy: Strategy | None = None
) -> None:
    """Call the user's ``train``, ``test`` and client once; the built-in ones are known to work.

    Args:
        fit_settings: what ``FitIns.config`` will carry.
        strategy: may send a ``proximal_mu``, which ``train`` then has to accept.

    Raises:
        PluginError: one of them raises or returns the wrong thing.
    """
    if spec.train is None and spec.test is None and spec.client is None:
        return
    made: list[Any] = []

    def client_fn(context: Context) -> Client:
        loader = _two_examples(worker.runtime)
        try:
            made.append(worker.runtime.client_over(loader, loader, context))
        except (Exception, SystemExit) as error:
            raise PluginError(f"--client {spec.client}: cannot be made: {described(error)}") from error
        return made[0]  # type: ignore[no-any-return]

    worker = Worker(spec, 1, 0, client_fn=client_fn)
    runtime = worker.runtime  # what a module sets when it is imported is part of the program, and stays
    with restored_settings(), seeded(0, Purpose.TEST):
        if spec.train is not None:
            _check_train(runtime, spec.train, fit_settings, getattr(strategy, "proximal_mu", 0.0))
            set_weights(runtime.net, weights)
        if spec.test is not None:
            _check_test(runtime, spec.test)
        if spec.client is not None:
            task = Task(0, {**fit_settings, "server_round": 0, "local_epochs": 1})
            (result,) = worker.run(Chunk("fit", 0, [task], weights, summed=False)).results
            _check_client(spec.client, made, result)


def _two_examples(runtime: ClientRuntime) -> Any:
    train = runtime.dataset.train
    return runtime.batches(Examples(train.images[:2], train.labels[:2]), np.arange(2), 2, shuffle=False)


@torch.no_grad()
def _as_predicted(runtime: ClientRuntime) -> Any:
    """Return two examples labelled as the net predicts: its accuracy on them is 1, or 100 where percent are meant."""
    images, _ = next(iter(_two_examples(runtime)))
    with evaluating(runtime.net):
        labels = runtime.net(images).argmax(1).cpu().numpy()
    examples = Examples(runtime.dataset.train.images[:2], labels)
    return runtime.batches(examples, None, 2, shuffle=False)


def _check_train(runtime: ClientRuntime, name: str, fit_settings: dict[str, Scalar], proximal_mu: float) -> None:
    offered = {**fit_settings, "proximal_mu": proximal_mu}
    accepted = user_code.accepted(runtime.train, {key: offered[key] for key in TRAIN_SETTINGS if key in offered})
    if proximal_mu and "proximal_mu" not in accepted:
        raise PluginError(f"--train {name}: takes no proximal_mu, which the strategy sends to every client")
    user_code.require_call(runtime.train, name, "--train", "net", "loader", "epochs", "device", **accepted)
    try:
        loss = runtime.train(runtime.net, _two_examples(runtime), 1, runtime.device, **accepted)
    except (Exception, SystemExit) as error:
        raise PluginError(f"--train {name}: raised {described(error)}") from error
    if loss is not None and not _is_number(loss):
        raise PluginError(f"--train {name}: returned {type(loss).__name__}; the mean loss or None is expected")


def _check_test(runtime: ClientRuntime, name: str) -> None:
    user_code.require_call(runtime.test, name, "--test", "net", "loader", "device")
    try:
        returned: Any = runtime.test(runtime.net, _as_predicted(runtime), runtime.device)
    except (Exception, SystemExit) as error:
        raise PluginError(f"--test {name}: raised {described(error)}") from error
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(_is_number(item) for item in returned)):
        raise PluginError(f"--test {name}: returned {returned!r}; (loss, accuracy) as two numbers is expected")
    if not 0 <= returned[1] <= 1:
        raise PluginError(f"--test {name}: returned accuracy {returned[1]}; a fraction 0–1 is expected")


def _check_client(name: str, made: list[Any], result: ClientResult) -> None:
    if isinstance(result.cause, PluginError):
        raise result.cause
    if not isinstance(made[0], Client):
        raise PluginError(f"--client {name}: made {type(made[0]).__name__}, not a flwr NumPyClient or Client")
    # What it raises on two examples may be due to them; what it returns is not.
    if isinstance(result.cause, WrongReturnError):
        raise PluginError(f"--client {name}: {result.cause}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
