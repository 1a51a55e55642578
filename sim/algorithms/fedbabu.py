"""FedBABU: only the body is trained and averaged; the head keeps its initial weights, and is fine-tuned for evaluation.

Oh, Kim, Yun, "FedBABU: Towards Enhanced Representation for Federated Image Classification", ICLR 2022,
arXiv:2106.06042, algorithm 1. All clients have the same random head, which is never updated in a round; the server
averages the bodies, weighted by examples. A client's own model is the global one with its head fine-tuned on the
client's training examples (the abstract), or its body, or the whole. The head is ``--local-parameters``, the classifier
by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sim.algorithms.algorithm import Algorithm, LocalTraining, Update, argument
from sim.algorithms.fedrep import frozen


@dataclass
class FedBabu(Algorithm):
    """FedBABU.

    Attributes:
        fine_tune_epochs: passes over the client's training examples before it evaluates its own model; 0 for none.
        fine_tune: the part that is fine-tuned: head, body or whole.
    """

    SOURCE: ClassVar[str] = "Oh et al. 2022, algorithm 1"
    LOCAL: ClassVar[Literal["", "classifier", "body", "batchnorm"]] = "classifier"

    fine_tune_epochs: int = argument(5, low=0, high=10**9)

    fine_tune: str = argument("head", choices=("head", "body", "whole"))

    def is_personal(self, server_round: int) -> bool:
        """Return that nothing is kept: the head is the same for all."""
        return False

    def sends_local(self, server_round: int) -> bool:
        """Return that the head is never sent: every client has its initial weights."""
        return False

    def fit(self, local: LocalTraining) -> Update:
        """Train the body."""
        with frozen(local.local_parameters):
            local.train()
        return Update()

    def personalize(self, local: LocalTraining) -> bool:
        """Fine-tune the global model."""
        if not self.fine_tune_epochs:
            return False
        others = {"head": local.parameters, "body": local.local_parameters, "whole": []}[self.fine_tune]
        with frozen(others):
            local.train(epochs=self.fine_tune_epochs, prefix=None)
        return True
