"""FedNova: updates are divided by the work behind them, so that clients with more steps do not bend the objective.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, arXiv:2007.07481, algorithm 1 and section 4.1:

    client i, τᵢ steps:  x − yᵢ = η Gᵢ aᵢ,   dᵢ = Gᵢ aᵢ / ‖aᵢ‖₁
    server:              x ← x − τ_eff · Σ pᵢ η dᵢ,   τ_eff = Σ pᵢ ‖aᵢ‖₁,   pᵢ = nᵢ / n over the round's clients

The weights aᵢ of a client's gradients follow from its optimizer: ones for SGD; with momentum ρ the sums of its powers;
with a proximal term μ (``mu``) powers of 1 − η μ; with rates that change within a round, these in units of the largest.
‖aᵢ‖₁ is how far gradients of 1 would have led by the same steps, so that all of them combine; the gradient of the
proximal term is part of what momentum collects. Clients send −η dᵢ in the place of their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sim.algorithms.algorithm import Aggregation, Arrays, Correction, Exchange, GradientCorrection, Update, argument
from sim.training.step_hooks import Steps


@dataclass
class FedNova(GradientCorrection):
    """FedNova. The momentum is that of the client's SGD.

    Attributes:
        mu: μ of a proximal term μ/2 ‖y − x‖² of the clients.
    """

    SOURCE: ClassVar[str] = "Wang et al. 2020, algorithm 1"
    SENDS_WEIGHTS: ClassVar[bool] = False
    SENDS_UPDATES: ClassVar[bool] = True
    DIVIDES_BY_STEPS: ClassVar[bool] = True
    FOR_SGD: ClassVar[str] = "its updates are then divided by the number of steps, as if each step counted alike"

    mu: float = argument(0.0, low=0)

    def aggregate(self, aggregation: Aggregation) -> Arrays:
        """Take τ_eff mean steps."""
        uniform = self.weighting == "uniform"
        counts = [1 if uniform else num_examples for num_examples, _ in aggregation.clients]
        norms = [float(metrics["a_norm"]) for _, metrics in aggregation.clients]
        tau_eff = sum(n * norm for n, norm in zip(counts, norms, strict=True)) / sum(counts)
        pairs = zip(aggregation.before, aggregation.mean, strict=True)
        return [(x + tau_eff * d).astype(x.dtype) for x, d in pairs]

    def correction(self, exchange: Exchange) -> Correction:
        """Return the proximal term."""
        return Correction(pull=self.mu)

    def finish(self, exchange: Exchange, trained: Sequence[Tensor], steps: Steps) -> Update:
        """Send the normalised update."""
        if not steps.count:  # no batch of examples: τᵢ = 0
            return Update([torch.zeros_like(x) for x in exchange.start], metrics={"a_norm": 0.0})
        most = max(range(len(steps.taken)), key=lambda index: len(steps.taken[index]))
        largest = max(step.rate for step in steps.taken[most])
        norm = steps.total_rate(most, self.mu) / largest if largest else 1.0  # a rate of 0 moves nothing
        return Update(
            [torch.sub(y, x).div_(norm) for x, y in zip(exchange.start, trained, strict=True)], metrics={"a_norm": norm}
        )
