"""All that a run needs, found and checked before anything is started or written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.common import NDArrays
from numpy.typing import NDArray

from sim.client.flower_program import FlowerSpec
from sim.client.runtime import ClientSpec, test_slices, tests_whole
from sim.config.run_config import RunConfig
from sim.data.load_dataset import Dataset
from sim.data.partition import Partition
from sim.devices.by_name import Devices
from sim.run_folder.checkpoint import Checkpoint
from sim.run_folder.folder import Run
from sim.server.strategy import BuiltStrategy
from sim.training.weights import WeightLayout


@dataclass(frozen=True)
class ResumePoint:
    """A run that continues after its last checkpoint.

    Attributes:
        notes: what the user should know, one line each.
    """

    run: Run
    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProgramObjects:
    """The parts of a program that were given as objects from Python, instead of import paths; None where none was."""

    model: Any = None
    train: Any = None
    test: Any = None
    load_data: Any = None
    client: Any = None
    loss: Any = None
    strategy: Any = None
    client_fn: Any = None
    client_app: Any = None
    server_app: Any = None
    client_manager: Any = None


@dataclass(frozen=True)
class Prepared:
    """All that a run needs. What ``config`` left open is decided.

    Attributes:
        dataset: None for a Flower program, whose clients bring their own data.
        objects: parts of the program that were given from Python.
        layout: what the arrays of ``initial_weights`` are.
        strategy: built once to see that it can be; the round loop builds its own with the central test. None for an
            app, which brings it later.
        server_app: the ServerApp of a Flower app.
        devices: of the clients; None without virtual time.
        notes: what the user should know, one line each.
    """

    config: RunConfig
    dataset: Dataset | None
    partition: Partition
    spec: ClientSpec | FlowerSpec
    initial_weights: NDArrays
    layout: WeightLayout
    strategy: BuiltStrategy | None
    objects: ProgramObjects = field(default_factory=ProgramObjects)
    resume_point: ResumePoint | None = None
    server_app: Any = None
    devices: Devices | None = None
    notes: tuple[str, ...] = ()

    @property
    def known_sizes(self) -> NDArray[np.int64]:
        """Examples of each client, int64 [num_clients]; empty where only the clients know."""
        return self.partition.sizes if self.partition.is_known else np.zeros(0, np.int64)

    @property
    def averages(self) -> bool:
        """Whether the strategy needs only the mean of its clients."""
        return self.strategy is not None and self.strategy.averages and not self.config.is_asynchronous

    @property
    def data(self) -> Dataset:
        """The data set of a PyTorch program."""
        assert self.dataset is not None, "a Flower program has its own data"
        return self.dataset

    @property
    def torch_spec(self) -> ClientSpec:
        """The spec of a PyTorch program."""
        assert isinstance(self.spec, ClientSpec), "a Flower program has its own data"
        return self.spec

    @property
    def test_slices(self) -> list[tuple[int, int]]:
        """The slices of the central test; none without test examples."""
        if self.dataset is None:
            return []
        return test_slices(self.dataset.num_test_examples, whole=tests_whole(self.torch_spec))

    @property
    def validation_slices(self) -> list[tuple[int, int]]:
        """The slices of the examples that are held out for validation; none without such examples."""
        count = len(self.partition.validation)
        return test_slices(count, whole=tests_whole(self.torch_spec)) if count else []
