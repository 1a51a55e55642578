"""What a client says of itself when it joins, and whether the server takes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Self

import numpy as np
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from sim.client.runtime import ClientSpec
from sim.config.run_config import RunConfig
from sim.data import examples, partition
from sim.data.examples import Dataset
from sim.data.partition import Partition
from sim.setup.prepare import fresh_weights, make_program

PROTOCOL_VERSION = 1

# Keys of GetPropertiesIns.config: how the server says why a client is not wanted, or that the run ended early.
REFUSED, STOPPED = "refused", "stopped"


@dataclass(frozen=True)
class Shape:
    """What the data and the model of all clients of a run have in common.

    Attributes:
        image_shape: of one image, as ``3×32×32`` (channels, height, width).
        num_parameters: numbers in the model's state, of which ``arrays`` is a fingerprint of shapes and dtypes.
    """

    image_shape: str
    num_classes: int
    num_parameters: int
    arrays: str

    @classmethod
    def of(cls, dataset: Dataset, weights: NDArrays) -> Self:
        """Return the shape of these data and this model."""
        arrays = json.dumps([[list(w.shape), w.dtype.str] for w in weights])
        return cls(
            image_shape="×".join(str(size) for size in dataset.image_shape),
            num_classes=len(dataset.classes),
            num_parameters=sum(w.size for w in weights),
            arrays=hashlib.sha256(arrays.encode()).hexdigest(),
        )


@dataclass(frozen=True)
class Identity(Shape):
    """A client as it introduces itself, in the properties that the server asks for.

    Attributes:
        examples: a fingerprint of their positions in the data set.
    """

    client_id: int
    num_clients: int
    num_examples: int
    examples: str
    protocol_version: int = PROTOCOL_VERSION

    def to_properties(self) -> dict[str, Scalar]:
        """Return it as ``GetPropertiesRes.properties``."""
        return asdict(self)

    @classmethod
    def from_properties(cls, properties: dict[str, Scalar]) -> Self:
        """Read ``GetPropertiesRes.properties``.

        Raises:
            ValueError: something is missing or of another type: not a client of sim.
        """
        if properties.get("protocol_version") != PROTOCOL_VERSION:
            raise ValueError(
                f"it speaks version {str(properties.get('protocol_version'))[:20]} of the protocol, the server "
                f"{PROTOCOL_VERSION}; both must run the same sim"
            )
        values = {field.name: properties.get(field.name) for field in fields(cls)}
        for field in fields(cls):
            if type(values[field.name]).__name__ != field.type:
                raise ValueError(f"its {field.name} is {str(values[field.name])[:80]!r}, not of type {field.type}")
        return cls(**values)  # type: ignore[arg-type]

    def mismatch(self, expected: Shape, num_clients: int | None) -> str | None:
        """Say why this client cannot be part of a run; None if it can.

        Args:
            num_clients: of the run; None as long as nobody said so.
        """
        if num_clients is not None and self.num_clients != num_clients:
            return f"--num-clients {self.num_clients}: the run has {num_clients}"
        if not 0 <= self.client_id < self.num_clients:
            return f"--client-id {self.client_id}: must be from 0 to {self.num_clients - 1}"
        if self.num_examples < 1:
            return f"it has {self.num_examples} training examples"
        if (self.image_shape, self.num_classes) != (expected.image_shape, expected.num_classes):
            return (
                f"its images are {self.image_shape[:40]} in {self.num_classes} classes, those of the run "
                f"{expected.image_shape} in {expected.num_classes}"
            )
        if self.arrays != expected.arrays:
            return (
                f"its model has {self.num_parameters} parameters, that of the run {expected.num_parameters}, or they "
                "are arranged otherwise"
            )
        return None


@dataclass(frozen=True)
class Member:
    """What one config makes of any of its clients."""

    program: ClientSpec
    shape: Shape
    partition: Partition

    def identity(self, client_id: int) -> Identity:
        """Return how a client presents itself."""
        return Identity(
            **vars(self.shape),
            client_id=client_id,
            num_clients=self.partition.num_clients,
            num_examples=int(self.partition.sizes[client_id]),
            examples=fingerprint(self.partition.of(client_id)),
        )


def fingerprint(indices: NDArray[np.int64]) -> str:
    """Return a hash of positions in a data set."""
    return hashlib.sha256(np.ascontiguousarray(indices).tobytes()).hexdigest()


def introduce(config: RunConfig) -> Member:
    """Load the data, deal them and build the model.

    Raises:
        UsageError: something does not work.
    """
    dataset = examples.load(config)
    dealt = partition.assign(dataset.train.labels, config)
    program = make_program(config, dataset, dealt, alone=True)
    return Member(program, Shape.of(dataset, fresh_weights(program)), dealt)
