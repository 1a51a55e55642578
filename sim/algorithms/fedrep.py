"""FedRep: each client first trains its own head on the shared body, then the body.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, arXiv:2102.07078, algorithm 1 (general form): in each round, a client makes several updates of its head with the
body fixed, then updates of the body with the head fixed; the server averages the bodies, each client counted alike. The
paper trains for 10 epochs of the head and 1 of the body on CIFAR-10. The head is ``--local-parameters``, the classifier
by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sim.algorithms.algorithm import LocalTraining, Update, argument, limited
from sim.algorithms.fedper import FedPer


@dataclass
class FedRep(FedPer):
    """FedRep.

    Attributes:
        head_epochs: passes over the client's examples for its head.
        body_epochs: passes for the body, after those; together they replace ``--local-epochs``.
    """

    SOURCE: ClassVar[str] = "Collins et al. 2021, algorithm 1"
    USES_LOCAL_EPOCHS: ClassVar[bool] = False

    weighting: str = argument("uniform", choices=("examples", "uniform"))
    head_epochs: int = argument(10, low=0, high=10**9)
    body_epochs: int = argument(1, low=0, high=10**9)

    def note(self, lr: float | None, local_epochs: int) -> str | None:
        """Say which epochs count."""
        epochs = f"head_epochs = {self.head_epochs} and body_epochs = {self.body_epochs}"
        return f"{epochs} replace --local-epochs {local_epochs}"

    def num_steps(self, batches: int, epochs: int, most: int, server_round: int) -> int:
        """Return the steps of head and body; in a warm start, those of the whole model."""
        if not self.is_personal(server_round):
            return limited(batches * (self.body_epochs or self.head_epochs), most)
        return limited(batches * self.head_epochs, most) + limited(batches * self.body_epochs, most)

    def fit(self, local: LocalTraining) -> Update:
        """Train the head, then the body."""
        if not local.is_personal:  # a warm start
            local.train(epochs=self.body_epochs or self.head_epochs)
            return Update()
        if not local.local_parameters:
            raise ValueError("nothing of what stays with the clients is trained, so that there is no head")
        if self.head_epochs:
            with frozen(local.parameters):
                local.train(epochs=self.head_epochs, prefix="" if not self.body_epochs else "head_")
        if self.body_epochs:
            with frozen(local.local_parameters):
                local.train(epochs=self.body_epochs)
        return Update()


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let no gradient reach these parameters inside the block."""
    chosen = [p for p in parameters if p.requires_grad]
    for parameter in chosen:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)
