"""pFedMe: personal models as the Moreau envelopes of the global one.

Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv:2006.08848, algorithm
1. Client i, for each of R batches, w beginning at the global model:

    θ ≈ argmin  f(θ; batch) + λ/2 ‖θ − w‖², here by K steps of the program's optimizer on that batch, from the θ before
    w ← w − η λ (w − θ)
    server: w ← (1 − β) w + β mean(wᵢ), each client of the round counted alike

θ begins at w in each round and is the client's personal model in the end. R is the number of batches in the local
epochs, at most ``--max-local-steps``, and ``--lr`` the learning rate of the K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sim.algorithms.algorithm import Aggregation, Algorithm, Arrays, LocalTraining, Update, argument, limited


@dataclass
class PFedMe(Algorithm):
    """pFedMe.

    Attributes:
        lambda_: λ, how strongly w attracts θ.
        K: number of steps by which θ is found for each batch.
        eta: η, the step size of w.
        beta: β, the step size of the server.
    """

    SOURCE: ClassVar[str] = "Dinh et al. 2020, algorithm 1"
    KEEPS_STATE: ClassVar[bool] = True
    HAS_PERSONAL_MODEL: ClassVar[bool] = True
    SENDS_WEIGHTS: ClassVar[bool] = False
    FOR_SGD: ClassVar[str] = "any optimizer may find θ"

    weighting: str = argument("uniform", choices=("examples", "uniform"))
    lambda_: float = argument(15.0, low=0)
    K: int = argument(5, low=1, high=10_000)
    eta: float = argument(0.005, above=0)
    beta: float = argument(1.0, above=0)

    def note(self, lr: float | None, local_epochs: int) -> str | None:
        """Say where the steps to θ are too long."""
        if lr is None or lr * self.lambda_ <= 1:
            return None
        product = f"--lr {lr:g} times lambda {self.lambda_:g} is {lr * self.lambda_:g}"
        return f"{product}; above 1 the steps to a personal model overshoot, and from 2 on they diverge"

    def aggregate(self, aggregation: Aggregation) -> Arrays:
        """Step to the mean by β."""
        if self.beta == 1:
            return aggregation.mean
        pairs = zip(aggregation.before, aggregation.mean, strict=True)
        return [((1 - self.beta) * w + self.beta * mean).astype(w.dtype) for w, mean in pairs]

    def num_steps(self, batches: int, epochs: int, most: int, server_round: int) -> int:
        """Return the K steps for each batch."""
        return self.K * limited(batches * epochs, most)

    def fit(self, local: LocalTraining) -> Update:
        """Find θ for each batch, and let w follow."""
        outer = [start.clone() for start in local.exchange.start]
        counts = [0] * len(outer)  # steps of each parameter, because body and head may have an optimizer each

        @torch.no_grad()
        def attract(index: int, parameter: Tensor, rate: float) -> None:
            assert parameter.grad is not None
            parameter.grad.add_(parameter - outer[index], alpha=self.lambda_)

        @torch.no_grad()
        def follow(indices: Sequence[int]) -> None:
            for index in indices:
                counts[index] += 1
                if counts[index] % self.K == 0:
                    w, theta = outer[index], local.parameters[index]
                    w.sub_(w - theta, alpha=self.eta * self.lambda_)

        steps = local.train(repeats=self.K, before=attract, after=follow, must_step=True)
        if 0 < steps.count < self.K:
            raise ValueError(f"train took {steps.count} steps, fewer than K = {self.K}, so that w would never follow θ")
        local.exchange.state["personal"] = local.weights()
        return Update(outer)

    def personalize(self, local: LocalTraining) -> bool:
        """Take θ; a client that never trained has none."""
        if "personal" not in local.exchange.state:
            return False
        local.load(local.exchange.state["personal"])
        return True
