"""One virtual client: the plain PyTorch program behind Flower's NumPyClient."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.common import Context, NDArrays, Scalar
from torch import nn

from sim import user_code
from sim.data import examples, partition
from sim.data.examples import Dataset
from sim.data.loader import Batches, Resident
from sim.data.partition import Partition
from sim.errors import RunError
from sim.seeds import Purpose, seeded
from sim.training import late_compiler, local, models
from sim.training.local import TestSums
from sim.training.vectorized import Trainer

Train = Callable[..., float | None]
Test = Callable[..., tuple[float, float]]

TEST_BATCH_SIZE = 500
_TEST_SLICES = 16  # whatever the number of processes: float sums depend on it
TRAIN_SETTINGS = ("lr", "momentum", "weight_decay", "proximal_mu", "optimizer", "max_steps", "precision")


class CifarClient(NumPyClient):
    """Trains and evaluates ``net`` on one partition.

    What it trains with (``local_epochs``, ``batch_size``, ``lr``, …) comes from the server with each call,
    in ``FitIns.config``.
    """

    def __init__(
        self,
        net: nn.Module,
        train_loader: Batches,
        test_loader: Batches,
        device: torch.device,
        train: Train = local.train,
        test: Test = local.test,
    ) -> None:
        self.net = net
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.device = device
        self.train = train
        self.test = test

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return a copy of the model's state, in state_dict order."""
        return get_weights(self.net)

    def set_parameters(self, parameters: NDArrays) -> None:
        """Load the model's state, in state_dict order."""
        set_weights(self.net, parameters)

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from ``parameters``; return the new ones, the number of examples and the mean loss."""
        num_examples, metrics = self.train_from(parameters, config)
        return self.get_parameters({}), num_examples, metrics

    def train_from(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[int, dict[str, Scalar]]:
        """Train from ``parameters`` and leave the new ones in ``net``; return as ``fit`` does without them."""
        self.set_parameters(parameters)
        self.train_loader.batch_size = int(config["batch_size"])
        settings: dict[str, Any] = {key: config[key] for key in TRAIN_SETTINGS if key in config}
        taken = user_code.accepted(self.train, settings)
        if config.get("proximal_mu") and "proximal_mu" not in taken:
            raise TypeError("the strategy sends proximal_mu, which this train() does not take")
        loss = self.train(self.net, self.train_loader, int(config["local_epochs"]), self.device, **taken)
        return self.train_loader.num_examples, {} if loss is None else {"loss": float(loss)}

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate ``parameters`` on the client's own examples; 0 examples if it has kept none."""
        num_examples = self.test_loader.num_examples
        if num_examples == 0:
            return 0.0, 0, {}
        self.set_parameters(parameters)
        loss, accuracy = self.test(self.net, self.test_loader, self.device)
        return float(loss), num_examples, {"accuracy": float(accuracy)}


def get_weights(net: nn.Module) -> NDArrays:
    """Return a copy of every array of ``net``'s state_dict, in its order."""
    return [array.copy() for array in view_weights(net)]


def view_weights(net: nn.Module) -> NDArrays:
    """Return the arrays of ``net``'s state_dict, in its order; on a CPU they change when ``net`` does."""
    return [tensor.detach().cpu().numpy() for tensor in net.state_dict().values()]


@torch.no_grad()
def set_weights(net: nn.Module, weights: NDArrays) -> None:
    """Copy arrays into ``net``'s state_dict, in its order.

    Raises:
        ValueError: their number or a shape does not fit.
    """
    state = net.state_dict()
    if len(state) != len(weights):
        raise ValueError(f"{len(weights)} arrays for a model of {len(state)}")
    for (name, tensor), array in zip(state.items(), weights, strict=True):
        if tensor.shape != array.shape:
            raise ValueError(f"{name}: shape {array.shape}, the model has {tuple(tensor.shape)}")
        if tensor.device.type == "cpu":
            np.copyto(tensor.numpy(), array)
        else:
            tensor.copy_(torch.tensor(array))


@dataclass(frozen=True)
class ClientSpec:
    """What a process needs to make any client of a run: names and paths, no data and no model."""

    data_folder: Path
    model: str
    train: str | None
    test: str | None
    device: str
    torch_threads: int
    import_folder: Path
    batch_size: int  # of the loaders that a client is made with; CifarClient takes what the server sends
    augment: str
    seed: int
    partition_folder: Path | None = None
    client: str | None = None
    eval_share: float = 0.0
    vectorized_clients: int = 1  # clients that one computation trains


class ClientRuntime:
    """A ``ClientSpec`` set up in this process: one model, the mapped data, the functions. Clients share it."""

    def __init__(self, program: ClientSpec) -> None:
        """Import, map and build what ``program`` names.

        Raises:
            PluginError, DataError: it cannot be.
        """
        # Seeded, so that all processes start from the same weights; and apart from the stream of the
        # client during whose call a process sets itself up.
        with seeded(program.seed, Purpose.INITIAL_WEIGHTS):
            self._set_up(program)

    def _set_up(self, program: ClientSpec) -> None:
        if str(program.import_folder) not in sys.path:
            sys.path.insert(0, str(program.import_folder))
        torch.set_num_threads(program.torch_threads)
        late_compiler.put_off()
        self.program = program
        self.dataset: Dataset = examples.open_cached(program.data_folder)
        self.partition: Partition | None = (
            partition.open_cached(program.partition_folder) if program.partition_folder else None
        )
        self.device = local.pick_device(program.device)
        self.train_split, self.test_split = (
            Resident.of(examples, self.device) for examples in (self.dataset.train, self.dataset.test)
        )
        # A user's model may call x.view(-1, …), which a channels_last tensor refuses.
        self.channels_last = program.model in models.MODELS
        self.net = models.build(program.model, self.dataset.image_shape, len(self.dataset.classes))
        self.net.to(self.device)
        self._modules, self._parameters = list(self.net.modules()), list(self.net.parameters())
        self._trainers: dict[int, Trainer] = {}
        if self.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.train: Train = user_code.load(program.train, "--train") if program.train else local.train
        self.test: Test = user_code.load(program.test, "--test") if program.test else local.test
        self.client_class = user_code.load(program.client, "--client") if program.client else CifarClient

    def renew(self) -> None:
        """Put the net into the state of a new one but for its weights, so that no caller sees what another left."""
        # As net.train() and net.zero_grad() do, which look through the net anew for every client.
        for module in self._modules:
            if not module.training:
                module.training = True
        for parameter in self._parameters:
            parameter.grad = None

    def training_batches(self, indices: Any, batch_size: int) -> Batches:
        """Make a loader over training examples: shuffled, and augmented as the program says."""
        loader = self.batches(self.train_split, indices, batch_size, shuffle=True)
        loader.augment = self.program.augment
        return loader

    def train_indices(self, client_id: int) -> Any:
        """Positions int64 [N] of the examples that a client trains on."""
        return self._dealt().split(client_id, self.program.eval_share)[0]

    def _dealt(self) -> Partition:
        if self.partition is None:
            raise ValueError("this program has no partition, so it has no clients")
        return self.partition

    def trainer(self, batch_size: int) -> Trainer:
        """Return what trains many copies of the net at once.

        Raises:
            ValueError: this model cannot be trained so.
        """
        if batch_size not in self._trainers:
            self._trainers[batch_size] = Trainer(
                self.net, self.train_split, batch_size, channels_last=self.channels_last
            )
        return self._trainers[batch_size]

    def batches(
        self, examples: examples.Examples | Resident, indices: Any, batch_size: int, *, shuffle: bool
    ) -> Batches:
        """Make a loader in the memory order that the model likes."""
        return Batches(examples, indices, batch_size, self.device, shuffle=shuffle, channels_last=self.channels_last)

    def test_slices(self) -> list[tuple[int, int]]:
        """Cut the central test into parts for many processes; a ``test`` of the user's own stays whole."""
        num_examples = len(self.dataset.test)
        num_slices = 1 if self.program.test else min(_TEST_SLICES, math.ceil(num_examples / TEST_BATCH_SIZE))
        edges = [num_examples * i // num_slices for i in range(num_slices + 1)]
        return list(pairwise(edges))

    def central_test(self, first: int = 0, last: int | None = None) -> TestSums:
        """Test the net on examples ``first`` … ``last`` − 1 of the central test split, in large batches.

        Raises:
            RunError: the user's ``test`` raises or returns something else.
        """
        positions = np.arange(first, len(self.dataset.test) if last is None else last)
        loader = self.batches(self.test_split, positions, TEST_BATCH_SIZE, shuffle=False)
        self.renew()
        if self.program.test is None:
            return local.test_sums(self.net, loader, self.device)
        try:
            loss, accuracy = self.test(self.net, loader, self.device)
        except Exception as error:
            raise RunError(f"the central test raised {type(error).__name__}: {error}") from error
        if not 0 <= accuracy <= 1:
            raise RunError(f"the central test returned accuracy {accuracy}; a fraction 0–1 is expected")
        return TestSums(float(loss) * len(positions), float(accuracy) * len(positions), len(positions))

    def client(self, context: Context) -> Client:
        """Make the client of ``partition-id``.

        The user's own class is called with those of ``net, train_loader, test_loader, device, train, test,
        client_id, context`` that it takes (``trainloader`` and ``testloader`` are the same loaders). What it
        puts into ``context.state`` is there the next time.
        """
        client_id = int(context.node_config["partition-id"])
        train_indices, eval_indices = self._dealt().split(client_id, self.program.eval_share)
        return self.client_over(
            self.training_batches(train_indices, self.program.batch_size),
            self.batches(self.train_split, eval_indices, TEST_BATCH_SIZE, shuffle=False),
            context,
        )

    def client_over(self, train_loader: Batches, test_loader: Batches, context: Context) -> Client:
        """Make a client over these loaders."""
        self.renew()
        offered = {
            "net": self.net,
            "train_loader": train_loader,
            "trainloader": train_loader,
            "test_loader": test_loader,
            "testloader": test_loader,
            "device": self.device,
            "train": self.train,
            "test": self.test,
            "client_id": int(context.node_config["partition-id"]),
            "context": context,
        }
        made: Client | NumPyClient = self.client_class(**user_code.accepted(self.client_class, offered))
        return made.to_client()


@lru_cache(maxsize=1)
def workbench(program: ClientSpec) -> ClientRuntime:
    """Return this process's workbench for ``program``; built at the first call."""
    return ClientRuntime(program)


@dataclass(frozen=True)
class ClientFn:
    """A ``client_fn(context)`` for Flower that makes the client of ``partition-id``.

    It holds the program's names and paths only, so it is cheap to send to another process.
    """

    program: ClientSpec

    def __call__(self, context: Context) -> Client:
        """Make the client of a context."""
        return workbench(self.program).client(context)
