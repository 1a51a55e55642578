"""What one process needs to be any client of a run: the model, the mapped data and the user's functions.

A ``ClientSpec`` names them and travels to other processes; a ``ClientRuntime`` holds them in one process. The object
that executes clients owns the runtime: there is no runtime that belongs to a whole process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.common import Context
from torch import nn

from sim import user_code
from sim.algorithms.by_name import AlgorithmSpec
from sim.client.algorithm_client import AlgorithmClient
from sim.client.built_in_functions import BuiltInTest, BuiltInTrain
from sim.client.flower_program import FlowerRuntime, FlowerSpec
from sim.client.own_evaluation import OwnTest
from sim.client.own_files import new_files_noted
from sim.client.own_folder import OwnFolder, OwnFolderSpec
from sim.client.own_function import OwnFunction, SourceFacts
from sim.client.own_returns import OwnReturnError
from sim.client.own_training import OwnTrain
from sim.client.torch_client import TorchClient
from sim.client.unused_net import UnusedNet
from sim.compression.by_name import Compression
from sim.compression.message import Message
from sim.data import partition
from sim.data.batches import Batches, Resident
from sim.data.load_dataset import Dataset, DataSource, Examples, open_client, open_dataset
from sim.data.loaders import (
    ExampleLoader,
    Loader,
    ResidentColumns,
    Split,
    example_batch,
    resident,
    with_flipped_classes,
)
from sim.data.partition import Partition
from sim.errors import RunError, described
from sim.method_binding import load_function
from sim.process_settings import in_own_context, restored_settings
from sim.run_folder.client_states import ClientState, ClientStates, states_in
from sim.seeds import Purpose, seeded
from sim.training import local, models
from sim.training.device import compute_repeatably, pick_device
from sim.training.local import TestSums
from sim.training.losses import LOSSES, METRICS, inputs_and_target
from sim.training.models import DataFacts
from sim.training.vectorized import Trainer
from sim.training.weights import WeightLayout, state_of
from sim.used_variables import set_arguments
from sim.user_variables import OF_THIS_PROCESS, isolated

# A batch of a test has this many examples, or fewer if they need more memory as float32 (in colour above 74×74 pixels).
TEST_BATCH_SIZE, _TEST_BATCH_BYTES = 500, 2**25
_MOST_TEST_SLICES = 16  # independent of the number of processes, because float sums depend on the grouping


@dataclass(frozen=True)
class ClientSpec:
    """The names and paths from which a process makes any client of a run; it holds no data and no model.

    Where a name of the user's may stand, the object itself may stand, too.

    Attributes:
        loss: name of a loss, or the user's own function; None for the one that suits the targets.
        loss_of_batches: the one that suits what the user's own ``collate_fn`` makes of the targets; None for theirs.
        metrics: names of metrics, ``package.module:name``, or functions; none for the one that suits the targets.
        batch_size: of the loaders that a client is made with; ``TorchClient`` uses the one that the server sends.
        facts_of_train, facts_of_test: what their source says; None if each process is to read it.
        noise_step: client i adds noise with i times this standard deviation to the inputs that it trains on.
        vectorized_clients: how many clients one computation trains.
        vectorized_only: clients are not trained one after another where that fails.
        algorithm: what clients do beside training; None for nothing.
        states_folder: where clients keep what they need again; None for in this process.
        flipped_clients: those that train on class C − 1 − c instead of c, see ``sim.server.attacks``.
        compression: of what clients send.
        own_folder: how the folder is made in which each client finds the files of the current one; None if clients work
            in that itself.
        batches_on_cpu: user code gets its batches from the memory of the CPU although the model is on a GPU.
    """

    data: DataSource
    model: Any
    train: Any
    test: Any
    device: str
    torch_threads: int
    import_folder: Path
    batch_size: int | None
    augment: str
    seed: int
    partition_folder: Path | None = None
    client: Any = None
    eval_share: float = 0.0
    vectorized_clients: int = 1
    vectorized_only: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    loss: Any = None
    loss_of_batches: str | None = None
    metrics: tuple[Any, ...] = ()
    accuracy_in_percent: bool = False
    facts_of_train: SourceFacts | None = None
    facts_of_test: SourceFacts | None = None
    noise_step: float = 0.0
    algorithm: AlgorithmSpec | None = None
    states_folder: Path | None = None
    flipped_clients: frozenset[int] = frozenset()
    compression: Compression = field(default_factory=Compression)
    own_folder: OwnFolderSpec | None = None
    batches_on_cpu: bool = False

    def open(self) -> ClientRuntime:
        """Set up in this process what the spec names."""
        return ClientRuntime(self)

    @property
    def imported(self) -> list[Any]:
        """The parts that may be the user's own."""
        load_data = None if self.data.program is None else self.data.program.function
        return [self.model, self.train, self.test, self.client, self.loss, *self.metrics, load_data]

    def own_train(self, loss: str | Callable[..., Any] = "cross_entropy", score: str = "accuracy") -> OwnTrain | None:
        """Import the user's ``train``; None if there is none.

        Args:
            loss, score: see ``OwnTrain``.

        Raises:
            PluginError: it cannot be imported.
        """
        if self.train is None:
            return None
        return OwnTrain(**self._own("--train", self.train, loss, score), facts=self.facts_of_train)

    def own_test(self, loss: str | Callable[..., Any], score: str, instead: BuiltInTest) -> OwnTest | None:
        """Import the user's ``test``; None if there is none.

        Args:
            loss, score, instead: see ``OwnTest``.

        Raises:
            PluginError: it cannot be imported.
        """
        if self.test is None:
            return None
        return OwnTest(**self._own("--test", self.test, loss, score), facts=self.facts_of_test, instead=instead)

    def _own(
        self, flag: str, part: str | Callable[..., Any], loss: str | Callable[..., Any], score: str
    ) -> dict[str, Any]:
        owner, function = load_function(part, flag)
        arguments = user_code.arguments(self.args, *filter(None, (owner, function)))
        set_arguments(function, arguments)
        return {
            "function": function,
            "place": f"{flag} {user_code.shown_name(part if isinstance(part, str) else function)}",
            "loss": loss,
            "args": arguments,
            "score": score,
            "in_percent": self.accuracy_in_percent,
            "owner": owner,
            "loss_is_given": self.loss is not None,
        }

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep something from round to round."""
        return self.compression.error_feedback or (self.algorithm is not None and self.algorithm.keeps_state)


def facts_of(dataset: Dataset) -> DataFacts:
    """Return what a model may be told of the data."""
    return DataFacts(dataset.input_shape, dataset.num_outputs, dataset.vocab_size, dataset.target_shape)


def build_net(spec: ClientSpec, dataset: Dataset) -> nn.Module:
    """Build the model of a run on the CPU; its weights follow from the seed, in every process.

    Raises:
        PluginError: the user's model cannot be imported or built.
    """
    with restored_settings() if is_own(spec.model) else nullcontext(), seeded(spec.seed, Purpose.INITIAL_WEIGHTS):
        net = models.build(spec.model, facts_of(dataset), spec.model_args, spec.args)
        if models.is_lazy(net):
            inputs, named, _ = inputs_and_target(example_batch(dataset.train, 2))
            models.try_out(net, inputs, named, f"--model {user_code.shown_name(spec.model)}")
        return net


def message_of(
    spec: ClientSpec | FlowerSpec, layout: WeightLayout, server_round: int, untrained: frozenset[int]
) -> Message:
    """Return which arrays of a model are sent, and how; of a Flower program's, which its own client sends, all are.

    Args:
        untrained: positions of the arrays that are not trained.
    """
    if isinstance(spec, FlowerSpec):
        return Message(untrained)
    kept = frozenset() if spec.algorithm is None else spec.algorithm.kept_positions(layout.names, server_round)
    return Message(untrained, kept, layout.tied)


def is_own(model: Any) -> bool:
    """Return whether a model is the user's own."""
    return not (isinstance(model, str) and model in models.MODELS)


def loss_of(spec: ClientSpec, dataset: Dataset) -> str | Callable[..., Any]:
    """Return the loss of a run: the one that was asked for, or the one that suits the targets."""
    if isinstance(spec.loss, str) and spec.loss in LOSSES:
        return spec.loss
    if spec.loss is not None:
        function: Callable[..., Any] = user_code.load(spec.loss, "--loss")
        return function
    if spec.loss_of_batches is not None:
        return spec.loss_of_batches
    if not dataset.has_classes:
        return "mse"
    target = dataset.target
    return "bce" if target is not None and target.dtype.kind == "f" else "cross_entropy"


def metrics_of(spec: ClientSpec, dataset: Dataset) -> list[str | tuple[str, Callable[..., Any]]]:
    """Return the metrics of the built-in test: those that were asked for, or the one that suits the targets."""
    names = spec.metrics or (("accuracy",) if dataset.has_classes else ("mae",))
    return [
        name if name in METRICS else (user_code.shown_name(name).rpartition(":")[2], user_code.load(name, "--metric"))
        for name in names
    ]


def test_slices(num_test_examples: int, *, whole: bool) -> list[tuple[int, int]]:
    """Cut the central test split into slices (first, last + 1) that several processes can share.

    Args:
        whole: the test is called once with all examples.
    """
    most = 1 if whole else _MOST_TEST_SLICES
    num_slices = min(most, math.ceil(num_test_examples / TEST_BATCH_SIZE))
    edges = [num_test_examples * i // num_slices for i in range(num_slices + 1)] if num_slices else []
    return list(pairwise(edges))


def tests_whole(spec: ClientSpec) -> bool:
    """Return whether the central test cannot be cut into slices: the user's own, or a metric that is no mean."""
    return spec.test is not None or any(name not in METRICS or METRICS[name].whole for name in spec.metrics)


def _built(spec: ClientSpec, dataset: Dataset, device: torch.device, *, channels_last: bool) -> nn.Module:
    net = build_net(spec, dataset).to(device)
    return net.to(memory_format=torch.channels_last) if channels_last else net


class ClientRuntime:
    """A ``ClientSpec`` set up in this process, in which its clients are executed one after another.

    Clients without user code share one net. User code gets a copy of a net that nobody has used.
    """

    def __init__(self, spec: ClientSpec) -> None:
        """Import, map and build what ``spec`` names.

        Raises:
            PluginError: the user's model or functions cannot be imported or built.
            DataError: the cached data set or partition is damaged.
        """
        # Seeded, so that nothing here shifts the random numbers of the client in whose call it happens.
        with seeded(spec.seed, Purpose.INITIAL_WEIGHTS):
            self._set_up(spec)

    def _set_up(self, spec: ClientSpec) -> None:
        self.spec = spec
        self.vectorized_clients = spec.vectorized_clients  # fewer once the GPU's memory did not suffice
        self.dataset: Dataset = open_dataset(spec.data)
        self.partition: Partition | None = (
            partition.open_cached(spec.partition_folder) if spec.partition_folder else None
        )
        self.device = pick_device(spec.device)
        self.batch_device = torch.device("cpu") if spec.batches_on_cpu else self.device
        # A user's model may call x.view(-1, …), which a channels_last tensor refuses.
        self.channels_last = not is_own(spec.model) and isinstance(self.dataset.train, Examples)
        self.loss = loss_of(spec, self.dataset)
        # A method would refer to this object, which would keep its files until Python searches for garbage.
        build = partial(_built, spec, self.dataset, self.device, channels_last=self.channels_last)
        self.net = build()
        self.weight_names: Sequence[str] = list(state_of(self.net))  # now, because user code may change their order
        self._modes = [(module, module.training) for module in self.net.modules()]
        self._parameters = list(self.net.parameters())
        # User code may change more of a net than its weights, so each client gets a copy of one that nobody has used.
        self._unused_net = UnusedNet(self.net, build) if self.has_user_code else None
        self._own_folder = OwnFolder(spec.own_folder) if spec.own_folder is not None else None
        self._trainers: dict[int, Trainer] = {}
        built_in_train = local.train if self.loss == "cross_entropy" else BuiltInTrain(self.loss)
        built_in_test = BuiltInTest(self.loss, metrics_of(spec, self.dataset))
        score = "accuracy" if self.dataset.has_classes else "score"
        self.train: Any = spec.own_train(self.loss, score) or built_in_train
        self.test: Any = spec.own_test(self.loss, score, built_in_test) or built_in_test
        self.client_class = user_code.load(spec.client, "--client") if spec.client else TorchClient
        self.algorithm = spec.algorithm.made() if spec.algorithm is not None else None
        self.states: ClientStates = states_in(spec.states_folder)
        if self.has_user_code:
            splits = self.dataset.train, self.dataset.test
            settings = [own.args for own in (self.train, self.test) if isinstance(own, OwnFunction)]
            OF_THIS_PROCESS.renew(self.train, self.test, self.loss, self.client_class, *settings, *splits)
        # After the imports, because a module is imported once in a process, but several runtimes may be made in it.
        compute_repeatably(spec.torch_threads, spec.device, user_code=self.has_user_code)

    @cached_property
    def has_user_code(self) -> bool:
        """Whether anything that a client executes is not this package's own."""
        spec = self.spec
        own = spec.train, spec.test, spec.client, spec.data.program
        return is_own(spec.model) or callable(self.loss) or any(each is not None for each in own)

    @cached_property
    def train_split(self) -> Split:
        """All training examples, on the device of the batches."""
        return resident(self.dataset.train, self.batch_device)

    @cached_property
    def flipped_split(self) -> Split:
        """All training examples as attackers see them, see ``ClientSpec.flipped_clients``."""
        return with_flipped_classes(self.train_split, len(self.dataset.classes))

    def is_flipped(self, client_id: int) -> bool:
        """Return whether a client is an attacker that trains on flipped classes."""
        return client_id in self.spec.flipped_clients

    @cached_property
    def test_split(self) -> Split:
        """All examples of the central test, on the device of the batches."""
        return resident(self.dataset.test, self.batch_device)

    @property
    def test_batch_size(self) -> int:
        """The number of examples in a batch of the central test and of a client's evaluation."""
        image_bytes = 4 * math.prod(self.dataset.input_shape or (1,))  # as float32
        return min(TEST_BATCH_SIZE, max(1, _TEST_BATCH_BYTES // image_bytes))

    @cached_property
    def shared_layout(self) -> WeightLayout:
        """What the arrays of the model are, without those that stay with clients."""
        layout = WeightLayout.of(self.net)
        return layout if self.spec.algorithm is None else layout.without(self.spec.algorithm.local_names)

    def algorithm_client(
        self,
        client: TorchClient,
        received: Any,
        config: dict[str, Any],
        server_round: int,
        state: ClientState,
    ) -> AlgorithmClient:
        """Make what executes the client part of the algorithm.

        Args:
            state: what the algorithm kept of the client; empty if it never trained.
        """
        assert self.spec.algorithm is not None
        assert self.algorithm is not None
        return AlgorithmClient(
            client, self.algorithm, self.spec.algorithm, self.shared_layout, received, config, server_round, state
        )

    def renew_net(self) -> None:
        """Let ``net`` be one in which no client has left anything but weights, which the next one replaces."""
        if self._unused_net is None:
            self.reset_net()
        else:
            self.net = self._unused_net.copy()

    def own_run_config(self) -> dict[str, Any]:
        """Return a ``Context.run_config`` for one client: it is empty, because settings come with the instructions."""
        return {}

    def isolated(self, stream: np.random.SeedSequence) -> AbstractContextManager[None]:
        """Let the block, a client, find the process as the first client would, if user code may change it."""
        if not self.has_user_code:
            return nullcontext()
        return self._in_folder(stream)

    @contextmanager
    def _in_folder(self, stream: np.random.SeedSequence) -> Iterator[None]:
        with self._own_folder.entered() if self._own_folder else new_files_noted(), isolated(stream):
            yield

    def reset_net(self) -> None:
        """Put the modules of the first net into the mode in which it was made, and drop its gradients."""
        # As net.train() and net.zero_grad() do, which search the net anew for every client.
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        for parameter in self._parameters:
            parameter.grad = None

    def training_batches(self, indices: Any, batch_size: int | None, *, flipped: bool = False) -> Loader:
        """Make a loader over training examples: shuffled, and augmented as the spec says."""
        split = self.flipped_split if flipped else self.train_split
        loader = self.batches(split, indices, batch_size, shuffle=True)
        if isinstance(loader, Batches):
            loader.augment = self.spec.augment
        return loader

    def train_indices(self, client_id: int) -> Any:
        """Positions int64 [N] of the examples that a client trains on."""
        return self._split_of(client_id)[0]

    def _split_of(self, client_id: int) -> tuple[Any, Any]:
        if self.partition is None:
            raise ValueError("this spec has no partition, so it has no clients")
        return self.partition.split(client_id, self.spec.eval_share)

    def trainer(self, batch_size: int) -> Trainer:
        """Return what trains many copies of the net in one computation.

        Raises:
            ValueError: this model cannot be trained so.
        """
        if batch_size not in self._trainers:
            split = resident(self.dataset.train, self.device) if self.spec.batches_on_cpu else self.train_split
            assert isinstance(split, Resident | ResidentColumns), "items are drawn for one client at a time"
            assert isinstance(self.loss, str), "a function of the user's gives the mean of a batch alone"
            self._trainers[batch_size] = Trainer(
                self.net, split, batch_size, channels_last=self.channels_last, loss=LOSSES[self.loss]
            )
        return self._trainers[batch_size]

    def batches(self, split: Split, indices: Any, batch_size: int | None, *, shuffle: bool) -> Loader:
        """Make a loader; of images, in the memory order that suits the model.

        Args:
            shuffle: whether it is for training: in the order of the user's loader, or shuffled.
        """
        if isinstance(split, Examples | Resident):
            assert batch_size is not None, "images have no loader of the user's"
            device, channels_last = self.batch_device, self.channels_last
            return Batches(split, indices, batch_size, device, shuffle=shuffle, channels_last=channels_last)
        positions = None if indices is None else np.sort(indices)
        return ExampleLoader(split, positions, batch_size, training=shuffle, device=self.batch_device)

    def test_slices(self) -> list[tuple[int, int]]:
        """Return the slices of the central test, see ``test_slices``."""
        return test_slices(self.dataset.num_test_examples, whole=tests_whole(self.spec))

    def test_batches(self, positions: Any = None) -> Loader:
        """Make a loader over examples of the central test split, or over all of them."""
        return self.batches(self.test_split, positions, self._test_batch_size(self.test_split), shuffle=False)

    @in_own_context
    def central_test(
        self, stream: np.random.SeedSequence, first: int = 0, last: int | None = None, *, validates: bool = False
    ) -> TestSums:
        """Test the net on examples ``first`` … ``last`` − 1 of the central test split, in large batches.

        Args:
            stream: what random generators of user code draw from.
            validates: of the training examples that are held out for validation, instead of the test split.

        Raises:
            RunError: the user's ``test`` raises or returns something else.
        """
        if validates:
            assert self.partition is not None, "without a partition, nothing is held out"
            positions = self.partition.validation[first:last]
            loader = self.batches(self.train_split, positions, self.test_batch_size, shuffle=False)
        else:
            positions = np.arange(first, self.dataset.num_test_examples if last is None else last)
            loader = self.test_batches(positions)
        if isinstance(self.test, BuiltInTest) and not self.has_user_code:
            return self.test.sums(self.net, loader, self.device)
        try:
            with self.isolated(stream) if self.has_user_code else nullcontext():
                if isinstance(self.test, BuiltInTest):
                    return self.test.sums(self.net, loader, self.device)
                loss, metrics = self.test(self.net, loader, self.device)
        except OwnReturnError as error:
            raise RunError(f"the central {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RunError(f"the central test raised {described(error)}") from error
        return TestSums(loss, metrics, len(positions))

    def _test_batch_size(self, split: Split) -> int:
        own = None if isinstance(split, Examples | Resident) else split.loader.batch_size
        return own or self.test_batch_size

    def client(self, context: Context) -> Client:
        """Make the client of ``partition-id``.

        The user's own class is called with those of ``net, train_loader, test_loader, device, train, test,
        client_id, context`` that it accepts (``trainloader`` and ``testloader`` are the same loaders). What it
        puts into ``context.state`` is there the next time.
        """
        client_id = int(context.node_config["partition-id"])
        if self.spec.data.num_clients is not None:
            train, test = open_client(self.spec.data, client_id)
            train_split = resident(train, self.batch_device)
            test_split = resident(train if test is None else test, self.batch_device)
            return self.client_over(
                self.batches(train_split, None, self.spec.batch_size, shuffle=True),
                self.batches(
                    test_split,
                    None if test is not None else np.arange(0),
                    self._test_batch_size(test_split),
                    shuffle=False,
                ),
                context,
            )
        train_indices, eval_indices = self._split_of(client_id)
        return self.client_over(
            self.training_batches(train_indices, self.spec.batch_size, flipped=self.is_flipped(client_id)),
            self.batches(self.train_split, eval_indices, self.test_batch_size, shuffle=False),
            context,
        )

    def client_over(self, train_loader: Loader, test_loader: Loader, context: Context) -> Client:
        """Make a client over these loaders."""
        if user_code.takes(self.client_class, "net"):
            self.renew_net()
        train_loader.noise = self.spec.noise_step * int(context.node_config["partition-id"])
        is_ours = isinstance(self.client_class, type) and issubclass(self.client_class, TorchClient)
        offered = {
            "net": self.net,
            "train_loader": train_loader,
            "trainloader": train_loader,
            "test_loader": test_loader,
            "testloader": test_loader,
            "device": self.device,
            "train": self.train if is_ours else getattr(self.train, "function", self.train),
            "test": self.test if is_ours else getattr(self.test, "function", self.test),
            "client_id": int(context.node_config["partition-id"]),
            "context": context,
        }
        made: Client | NumPyClient = self.client_class(**user_code.accepted(self.client_class, offered))
        return made.to_client()


class ClientFn:
    """A ``client_fn(context)`` as Flower calls it, which makes the client of ``partition-id``.

    Only its spec travels to another process; the runtime is set up there at the first call.
    """

    def __init__(self, spec: ClientSpec | FlowerSpec) -> None:
        self.spec = spec

    def __reduce__(self) -> tuple[type[ClientFn], tuple[ClientSpec | FlowerSpec]]:
        return ClientFn, (self.spec,)

    @cached_property
    def _runtime(self) -> ClientRuntime | FlowerRuntime:
        return self.spec.open()

    def __call__(self, context: Context) -> Client:
        """Make the client of a context."""
        return self._runtime.client(context)
