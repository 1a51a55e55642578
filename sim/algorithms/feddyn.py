"""FedDyn: dynamic regularisation, which makes the clients' optima agree with that of the federation.

Acar, Zhao, Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR 2021,
arXiv:2111.04263, algorithm 1:

    client k:  θₖ = argmin  Lₖ(θ) − ⟨gₖ, θ⟩ + α/2 ‖θ − θᵗ‖²,   then gₖ ← gₖ − α (θₖ − θᵗ)
    server:    h ← h − α · (1/m) Σ (θₖ − θᵗ) over the round's clients,   θ ← mean(θₖ) − h/α

m is the number of all clients, the mean counts each client of the round alike, and gₖ and h begin at zero. The
minimisation is the program's own training with the gradient corrected by −gₖ + α (θ − θᵗ).

h/α does not depend on α, so that with α → 0 the clients train as in federated averaging, but the server does not
average: it goes further by the sum of all mean updates so far, each times the share of the clients that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sim.algorithms.algorithm import Aggregation, Arrays, Correction, Exchange, GradientCorrection, Update, argument
from sim.training.step_hooks import Steps


@dataclass
class FedDyn(GradientCorrection):
    """FedDyn.

    Attributes:
        alpha: α, the strength of the regularisation.
    """

    SOURCE: ClassVar[str] = "Acar et al. 2021, algorithm 1"
    KEEPS_STATE: ClassVar[bool] = True
    SENDS_WEIGHTS: ClassVar[bool] = False
    FOR_SGD: ClassVar[str] = "its regulariser then passes through the optimizer's scaling, like any gradient"

    weighting: str = argument("uniform", choices=("examples", "uniform"))
    alpha: float = argument(0.01, above=0)

    def begin(self, shared: Arrays) -> None:
        """Begin with h = 0."""
        self.h = [np.zeros_like(array) for array in shared]

    def aggregate(self, aggregation: Aggregation) -> Arrays:
        """Renew h, and step away from the mean by it."""
        scale = self.alpha * aggregation.share
        triples = zip(self.h, aggregation.before, aggregation.mean, strict=True)
        self.h = [(h - scale * (mean - theta)).astype(h.dtype) for h, theta, mean in triples]
        return [(m - h / self.alpha).astype(m.dtype) for m, h in zip(aggregation.mean, self.h, strict=True)]

    def state(self) -> dict[str, Arrays]:
        """Return h."""
        return {"h": self.h}

    def correction(self, exchange: Exchange) -> Correction:
        """Return −gₖ + α (θ − θᵗ)."""
        own = exchange.state.get("g")
        return Correction(None if own is None else [-g for g in own], self.alpha)

    def finish(self, exchange: Exchange, trained: Sequence[Tensor], steps: Steps) -> Update:
        """Renew gₖ."""
        moved = [theta_k - theta for theta_k, theta in zip(trained, exchange.start, strict=True)]
        own = exchange.state.get("g")
        exchange.state["g"] = [
            move.mul(-self.alpha) if own is None else own[index].sub(move, alpha=self.alpha)
            for index, move in enumerate(moved)
        ]
        return Update()
