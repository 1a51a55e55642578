"""The identity that a client sends when it joins, and the check whether it matches the run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Self, get_type_hints

import numpy as np
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from sim.client.runtime import ClientSpec, build_net
from sim.config.run_config import RunConfig
from sim.data import partition
from sim.data.defaults import decided
from sim.data.load_dataset import Dataset, load_dataset, open_client
from sim.data.partition import Partition
from sim.engine.client_calls import MOST_EXAMPLES
from sim.errors import one_line
from sim.setup.prepare import client_spec
from sim.training.weights import get_weights

PROTOCOL_VERSION = 1

# Keys of GetPropertiesIns.config. The value is the reason why the server refuses the client, or stopped the run early.
REFUSED, STOPPED = "refused", "stopped"


@dataclass(frozen=True)
class Shape:
    """The properties of data and model that all clients of a run must have in common.

    Attributes:
        image_shape: shape of one input as text; of an image: channels, height and width, e.g. ``3×32×32``.
        num_parameters: number of values in the model's state_dict.
        arrays: sha256 of the shapes and dtypes of the arrays in the state_dict.
    """

    image_shape: str
    num_classes: int
    num_parameters: int
    arrays: str

    @classmethod
    def of(cls, dataset: Dataset, weights: NDArrays) -> Self:
        """Return the shape of a data set and the arrays of a model's state_dict."""
        arrays = json.dumps([[list(w.shape), w.dtype.str] for w in weights])
        return cls(
            image_shape="×".join(str(size) for size in dataset.input_shape or ()),
            num_classes=len(dataset.classes),
            num_parameters=sum(w.size for w in weights),
            arrays=hashlib.sha256(arrays.encode()).hexdigest(),
        )


@dataclass(frozen=True)
class Identity(Shape):
    """What a client reports about itself in the properties that the server asks for.

    Attributes:
        num_clients: number of clients in the config of this client.
        num_examples: number of its training examples.
        examples: sha256 of the positions of these examples in the data set; of none if the program partitions itself.
    """

    client_id: int
    num_clients: int
    num_examples: int
    examples: str
    protocol_version: int = PROTOCOL_VERSION

    def to_properties(self) -> dict[str, Scalar]:
        """Return the identity as ``GetPropertiesRes.properties``."""
        return asdict(self)

    @classmethod
    def from_properties(cls, properties: dict[str, Scalar]) -> Self:
        """Read an identity from ``GetPropertiesRes.properties``.

        Raises:
            ValueError: a property is missing or has another type, so it was not sent by this version of sim.
        """
        version = properties.get("protocol_version")
        if version != PROTOCOL_VERSION:
            raise ValueError(
                f"the client uses version {one_line(str(version), 20)} of the protocol, the server version "
                f"{PROTOCOL_VERSION}; both must run the same version of sim"
            )
        types: dict[str, type] = get_type_hints(cls)
        values: dict[str, Any] = {name: properties.get(name) for name in types}
        for name, expected in types.items():
            if type(values[name]) is not expected:
                shown = one_line(str(values[name]), 80)
                raise ValueError(f"the client's {name} is '{shown}', not of type {expected.__name__}")
        return cls(**values)

    def mismatch(self, expected: Shape, num_clients: int | None) -> str | None:
        """Return the reason why this client cannot take part in a run; None if it can.

        Args:
            num_clients: number of clients of the run; None while it is not known.
        """
        if num_clients is not None and self.num_clients != num_clients:
            return f"--num-clients {self.num_clients}: the run has {num_clients}"
        if not 0 <= self.client_id < self.num_clients:
            return f"--client-id {self.client_id}: must be from 0 to {self.num_clients - 1}"
        if not 1 <= self.num_examples <= MOST_EXAMPLES:
            return f"it has {self.num_examples} training examples; the number must be from 1 to 2**53"
        if (self.image_shape, self.num_classes) != (expected.image_shape, expected.num_classes):
            return (
                f"its inputs are {one_line(self.image_shape, 40)} with {self.num_classes} classes, but those of the "
                f"run are {expected.image_shape} with {expected.num_classes} classes"
            )
        if self.arrays != expected.arrays:
            return (
                f"its model has {self.num_parameters} parameters, that of the run has {expected.num_parameters}, or "
                "their shapes or dtypes differ"
            )
        return None


@dataclass(frozen=True)
class ClientProgram:
    """What all clients with the same config have in common."""

    spec: ClientSpec
    initial_weights: NDArrays
    shape: Shape
    partition: Partition

    def identity(self, client_id: int) -> Identity:
        """Return the identity of one client.

        Raises:
            DataError: the program that partitions itself does not give the data of this client.
        """
        num_examples = int(self.partition.sizes[client_id])
        if not self.partition.is_known:
            num_examples = len(open_client(self.spec.data, client_id)[0])
        return Identity(
            **vars(self.shape),
            client_id=client_id,
            num_clients=self.partition.num_clients,
            num_examples=num_examples,
            examples=fingerprint(self.partition.of(client_id)),
        )


def fingerprint(indices: NDArray[np.int64]) -> str:
    """Return the sha256 of positions int64 [N] in a data set."""
    return hashlib.sha256(np.ascontiguousarray(indices).tobytes()).hexdigest()


def prepare_client(config: RunConfig) -> ClientProgram:
    """Load the data, assign them to clients and build the model.

    Raises:
        UsageError: the data, the partition or the model does not work.
    """
    dataset = load_dataset(config)
    config, _ = decided(config, dataset)
    assigned = partition.assign(dataset, config)
    spec = client_spec(config, dataset, assigned, alone=True)
    weights = get_weights(build_net(spec, dataset))
    return ClientProgram(spec, weights, Shape.of(dataset, weights), assigned)
