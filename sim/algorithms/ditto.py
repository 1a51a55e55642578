"""Ditto: a personal model beside the global one, which the global one attracts.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv:2012.04221, algorithm 1:

    client k, global part:    wₖ from wᵗ by the solver of federated averaging
    client k, personal part:  v ← v − η (∇Fₖ(v) + λ (v − wᵗ)),   v begins at the first global model that it gets
    server:                   w ← wᵗ + mean(wₖ − wᵗ), each client of the round counted alike
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sim.algorithms.algorithm import Algorithm, LocalTraining, Update, argument, limited


@dataclass
class Ditto(Algorithm):
    """Ditto.

    Attributes:
        lambda_: λ, how strongly the global model attracts the personal one.
        personal_epochs: passes over the client's examples for its personal model; 0 for as many as for the global one.
    """

    SOURCE: ClassVar[str] = "Li et al. 2021 (Ditto), algorithm 1"
    KEEPS_STATE: ClassVar[bool] = True
    HAS_PERSONAL_MODEL: ClassVar[bool] = True
    FOR_SGD: ClassVar[str] = "its attraction then passes through the optimizer's scaling, like any gradient"

    weighting: str = argument("uniform", choices=("examples", "uniform"))
    lambda_: float = argument(0.1, low=0)
    personal_epochs: int = argument(0, low=0, high=10**9)

    def num_steps(self, batches: int, epochs: int, most: int, server_round: int) -> int:
        """Return the steps of both models."""
        return limited(batches * epochs, most) + limited(batches * (self.personal_epochs or epochs), most)

    def fit(self, local: LocalTraining) -> Update:
        """Train the model that is sent, then the personal one."""
        start, state = local.exchange.start, local.exchange.state
        personal = state.get("personal") or local.weights()
        local.train()
        trained = local.weights()
        local.load(personal)

        @torch.no_grad()
        def attract(index: int, parameter: Tensor, rate: float) -> None:
            assert parameter.grad is not None
            parameter.grad.add_(parameter - start[index], alpha=self.lambda_)

        local.train(epochs=self.personal_epochs or None, before=attract, prefix="personal_", must_step=True)
        state["personal"] = local.weights()
        local.load(trained)
        return Update()

    def personalize(self, local: LocalTraining) -> bool:
        """Take v; a client that never trained has none."""
        if "personal" not in local.exchange.state:
            return False
        local.load(local.exchange.state["personal"])
        return True
