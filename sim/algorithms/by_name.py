"""The algorithms by the names that ``--strategy`` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.algorithms.algorithm import Algorithm, made
from sim.algorithms.apfl import Apfl
from sim.algorithms.ditto import Ditto
from sim.algorithms.fedbabu import FedBabu
from sim.algorithms.fedbn import FedBn
from sim.algorithms.feddyn import FedDyn
from sim.algorithms.fednova import FedNova
from sim.algorithms.fedper import FedPer
from sim.algorithms.fedrep import FedRep
from sim.algorithms.lg_fedavg import LgFedAvg
from sim.algorithms.moon import Moon
from sim.algorithms.pfedme import PFedMe
from sim.algorithms.scaffold import Scaffold

ALGORITHMS: dict[str, type[Algorithm]] = {
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "moon": Moon,
    "ditto": Ditto,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbn": FedBn,
    "lg-fedavg": LgFedAvg,
    "fedbabu": FedBabu,
    "apfl": Apfl,
    "pfedme": PFedMe,
}


@dataclass(frozen=True)
class AlgorithmSpec:
    """What a process needs to execute the client part of an algorithm.

    Attributes:
        name: in ``ALGORITHMS``, or another strategy, whose clients train as in federated averaging.
        local_names: names in the ``state_dict`` of what stays with the clients.
    """

    name: str
    arguments: Mapping[str, Any]
    local_names: tuple[str, ...]

    def made(self) -> Algorithm:
        """Make the algorithm.

        Raises:
            ConfigError: an argument is unknown or wrong.
        """
        if self.name not in ALGORITHMS:
            return Algorithm()
        return made(ALGORITHMS[self.name], self.arguments, "--strategy-args", self.name)

    def to_text(self) -> str:
        """Return all of it as JSON, in which it travels over a network."""
        return json.dumps([self.name, dict(self.arguments), self.local_names])

    @classmethod
    def from_text(cls, text: str) -> AlgorithmSpec:
        """Read what ``to_text`` has returned."""
        name, arguments, local_names = json.loads(text)
        return cls(name, arguments, tuple(local_names))

    def kept_positions(self, names: Sequence[str], server_round: int) -> frozenset[int]:
        """Return the positions of the arrays that stay with the clients in a round, so that they are not sent.

        Args:
            names: the keys of the ``state_dict``, in its order.
        """
        if not self.local_names or self.made().sends_local(server_round):
            return frozenset()
        return frozenset(position for position, name in enumerate(names) if name in self.local_names)

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep something from round to round."""
        return bool(self.local_names) or (self.name in ALGORITHMS and ALGORITHMS[self.name].KEEPS_STATE)
