"""LG-FedAvg: the lower layers stay with each client, and the upper ones are averaged.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act Globally: Federated Learning with
Local and Global Representations", 2020, arXiv:2001.01523, algorithm 1: each client trains its local representation and
its copy of the global model together; the server averages the global part, weighted by examples. Which layers stay is
``--local-parameters``, all but the classifier by default. The paper begins with a model of federated averaging, which
``warm_start_rounds`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sim.algorithms.fedper import FedPer


@dataclass
class LgFedAvg(FedPer):
    """LG-FedAvg: FedPer with the opposite share."""

    SOURCE: ClassVar[str] = "Liang et al. 2020, algorithm 1"
    LOCAL: ClassVar[Literal["", "classifier", "body", "batchnorm"]] = "body"
