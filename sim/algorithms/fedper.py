"""FedPer: the last layers stay with each client, and body and head are trained together.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019, arXiv:1912.00818,
algorithms 1 and 2: each client trains both by SGD; the server averages the bodies, weighted by examples. Which layers
stay is ``--local-parameters``, the classifier by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sim.algorithms.algorithm import Algorithm, argument


@dataclass
class FedPer(Algorithm):
    """FedPer.

    Attributes:
        warm_start_rounds: rounds of federated averaging of the whole model, before anything stays with the clients.
    """

    SOURCE: ClassVar[str] = "Arivazhagan et al. 2019, algorithms 1 and 2"
    LOCAL: ClassVar[Literal["", "classifier", "body", "batchnorm"]] = "classifier"

    warm_start_rounds: int = argument(0, low=0, high=10**9)

    def is_personal(self, server_round: int) -> bool:
        """Return whether the warm start is over."""
        return server_round > self.warm_start_rounds
