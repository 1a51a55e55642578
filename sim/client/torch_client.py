"""A Flower client around a plain PyTorch program: one model, one partition, ``train`` and ``test``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from torch import nn

from sim.client.built_in_functions import BuiltInTest, BuiltInTrain
from sim.client.own_evaluation import OwnTest
from sim.client.own_training import OwnTrain
from sim.config.run_config import RunConfig, TrainingConfig
from sim.data.loaders import LimitedLoader, Loader
from sim.seeds import restored
from sim.training import local
from sim.training.proximal_term import proximal_term
from sim.training.weights import get_weights, set_weights, state_of

# The settings of a call of ``train`` that travel in ``FitIns.config``.
TRAIN_SETTINGS = (
    "lr",
    "momentum",
    "weight_decay",
    "proximal_mu",
    "optimizer",
    "max_steps",
    "precision",
    "clip_grad_norm",
)


def train_settings(config: TrainingConfig, number: int, count: int) -> dict[str, Scalar]:
    """Return the keyword arguments of ``train`` in round (or epoch) ``number`` of 1 … ``count``."""
    settings = {
        "lr": None if config.lr is None and config.train is not None else config.lr_in(number, count),
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "optimizer": config.optimizer,
        "precision": config.precision,
        "clip_grad_norm": config.clip_grad_norm,
    }
    return {name: value for name, value in settings.items() if value is not None}


def fit_settings(config: RunConfig, server_round: int) -> dict[str, Scalar]:
    """Return what ``FitIns.config`` carries to each client in a round."""
    return {
        "local_epochs": config.local_epochs,
        **({} if config.batch_size is None else {"batch_size": config.batch_size}),
        "max_steps": config.max_local_steps or 0,
        **train_settings(config, server_round, config.num_rounds),
    }


def most_batches(train: OwnTrain, config: Mapping[str, Scalar]) -> int:
    """Return after how many batches the loader of ``train`` has to end; 0 if it need not, or ``train`` knows."""
    is_told = train.binding.open_ended or train.binding.takes("max_steps")
    return 0 if is_told else int(config.get("max_steps") or 0)


class TorchClient(NumPyClient):
    """Trains and evaluates ``net`` on the examples of one partition.

    The settings of the training (``local_epochs``, ``batch_size``, ``lr``, …) come from the server with each call,
    in ``FitIns.config``.
    """

    _names: list[str] | None = None  # of the weights; here, because a class of the user's may have its own __init__

    def __init__(
        self,
        net: nn.Module,
        train_loader: Loader,
        test_loader: Loader,
        device: torch.device,
        train: Callable[..., Any] = local.train,
        test: Callable[..., Any] = local.test,
    ) -> None:
        self.net = net
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.device = device
        self.train = train
        self.test = test

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return a copy of the model's state, in the order of its ``state_dict``."""
        return get_weights(self.net, self._names)

    def set_parameters(self, parameters: NDArrays) -> None:
        """Load the model's state, in the order of its ``state_dict``."""
        self._names = list(state_of(self.net))  # a train may register a parameter again, at the end of this order
        set_weights(self.net, parameters)

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from ``parameters``; return the new ones, the number of examples and the mean loss."""
        num_examples, metrics = self.train_from(parameters, config)
        return self.get_parameters({}), num_examples, metrics

    def train_from(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[int, dict[str, Scalar]]:
        """Train from ``parameters`` and leave the new ones in ``net``.

        Returns:
            The number of examples and the metrics, as ``fit`` returns them.

        Raises:
            UnseenStepsError: see ``proximal_term``.
        """
        self.set_parameters(parameters)
        first_loss = self.loss_of(self.train_loader) if config.get("first_loss") else None
        metrics = self.train_net(config)
        if first_loss is not None:
            metrics["first_loss"] = first_loss
        return self.train_loader.num_examples, metrics

    def loader_for(self, config: dict[str, Scalar]) -> Loader:
        """Return the training examples in batches of the size that the server asks for."""
        loader = self.train_loader
        return loader.with_batch_size(int(config["batch_size"])) if "batch_size" in config else loader

    def train_net(self, config: dict[str, Scalar], loader: Any = None, epochs: int | None = None) -> dict[str, Scalar]:
        """Train ``net`` from the weights that it has; return the metrics.

        Args:
            loader, epochs: in the place of those of ``config``.

        Raises:
            UnseenStepsError: see ``proximal_term``.
        """
        loader = self.loader_for(config) if loader is None else loader
        epochs = int(config["local_epochs"]) if epochs is None else epochs
        settings: dict[str, Any] = {key: config[key] for key in TRAIN_SETTINGS if key in config}
        train = self.train
        if train is not local.train and not isinstance(train, BuiltInTrain | OwnTrain):
            train = OwnTrain(train, "train")
        if isinstance(train, OwnTrain):
            most = most_batches(train, config)
            if most:
                epochs = min(epochs, math.ceil(most / max(1, len(loader))))  # an epoch without a batch may divide by 0
                loader = LimitedLoader(loader, most)
            if train.validates is not None:
                settings["validation_loader"] = self.test_loader
        mu = float(settings.get("proximal_mu") or 0.0)
        is_added = mu and isinstance(train, OwnTrain) and not train.takes_proximal_mu
        with proximal_term(self.net, mu) if is_added else nullcontext():
            returned = train(self.net, loader, epochs, self.device, **settings)
        if returned is None:  # no batch, as of a client with fewer examples than a loader with drop_last needs
            return {}
        return dict(returned) if isinstance(returned, dict) else {"loss": float(returned)}

    def loss_of(self, loader: Loader) -> float:
        """Return the mean loss of the weights that the client got on its training examples.

        It is 0 for a client whose loader gives no batch or no label: no step reduces it, so that nothing is to be
        weighted.

        Raises:
            ValueError: ``test`` returns none.
        """
        if len(loader) == 0:
            return 0.0
        with restored():  # the training draws the same random numbers as without it
            measured = self.test(self.net, loader, self.device)
        loss = float(measured[0])
        if math.isnan(loss) and self._has_no_label(measured[1]):
            return 0.0
        if not math.isfinite(loss):
            raise ValueError(f"the strategy needs the loss of each client, but test returned {loss}")
        return loss

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate ``parameters`` on the client's own examples; one that kept none with a label returns 0 examples."""
        num_examples = self.test_loader.num_examples
        if num_examples == 0:
            return 0.0, 0, {}
        self.set_parameters(parameters)
        loss, metrics = self.test_net()
        return (0.0, 0, {}) if math.isnan(loss) and self._has_no_label(metrics) else (loss, num_examples, metrics)

    def _has_no_label(self, metrics: Any) -> bool:
        """Whether the built-in test has measured nothing beside a loss of NaN."""
        return isinstance(self.test, BuiltInTest) and metrics == {}

    def test_net(self) -> tuple[float, dict[str, Scalar]]:
        """Test ``net`` on the client's own examples; return loss and metrics."""
        test = self.test
        if test is not local.test and not isinstance(test, BuiltInTest | OwnTest):
            test = OwnTest(test, "test")
        loss, metrics = test(self.net, self.test_loader, self.device)
        return loss, dict(metrics) if isinstance(metrics, dict) else {"accuracy": float(metrics)}


CifarClient = TorchClient  # the name that Flower's CIFAR-10 tutorial gives it
