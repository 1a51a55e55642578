"""FedBN: BatchNorm layers, with their statistics, stay with each client.

Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021,
arXiv:2102.07623, algorithm 1: federated averaging of all other layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sim.algorithms.fedper import FedPer


@dataclass
class FedBn(FedPer):
    """FedBN."""

    SOURCE: ClassVar[str] = "Li et al. 2021 (FedBN), algorithm 1"
    LOCAL: ClassVar[Literal["", "classifier", "body", "batchnorm"]] = "batchnorm"
