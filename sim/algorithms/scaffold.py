"""SCAFFOLD: control variates that correct the drift of clients.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020, arXiv:1910.06378, algorithm 1:

    client i, K local steps:  y ← y − η (g(y) − cᵢ + c),   y begins at x
    option I:                 cᵢ⁺ = gᵢ(x), the gradient of the client's data at x
    option II:                cᵢ⁺ = cᵢ − c + (x − y) / (K η)
    server:                   x ← x + η_g · mean(yᵢ − x),   c ← c + |S|/N · mean(cᵢ⁺ − cᵢ)

Both means count each client of the round alike; ``weighting=examples`` weights the first by examples, as NIID-Bench
does. All variates begin at zero. K η is the sum of the learning rates of all steps, which is the same where the rate
does not change. With momentum it is the distance by which a constant gradient of 1 moves a parameter, so that a variate
is a mean gradient, as it is for plain SGD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sim.algorithms.algorithm import (
    Aggregation,
    Arrays,
    Correction,
    Exchange,
    GradientCorrection,
    LocalTraining,
    Update,
    argument,
    zeros,
)
from sim.training.step_hooks import Steps


@dataclass
class Scaffold(GradientCorrection):
    """SCAFFOLD.

    Attributes:
        option: how a client's variate is renewed: 1 for a gradient at the global model, which costs one more pass over
            its examples, or 2 for the mean gradient of its steps.
        eta_g: step size of the server, η_g.
    """

    SOURCE: ClassVar[str] = "Karimireddy et al. 2020, algorithm 1"
    KEEPS_STATE: ClassVar[bool] = True
    SENDS_WEIGHTS: ClassVar[bool] = False
    DIVIDES_BY_STEPS: ClassVar[bool] = True
    FOR_SGD: ClassVar[str] = "its control variates are then no gradients, but mean updates divided by learning rates"

    weighting: str = argument("uniform", choices=("examples", "uniform"))
    option: int = argument(2, low=1, high=2)
    eta_g: float = argument(1.0, above=0)

    @property
    def can_be_vectorized(self) -> bool:
        """Whether no gradient is taken before."""
        return self.option == 2

    def begin(self, shared: Arrays) -> None:
        """Begin with a variate of zeros."""
        self.c = [np.zeros_like(array) for array in shared]

    def sent(self) -> Arrays:
        """Send c."""
        return self.c

    def aggregate(self, aggregation: Aggregation) -> Arrays:
        """Step from x, and renew c."""
        share, changes = aggregation.share, aggregation.extras
        self.c = [(c + share * change).astype(c.dtype) for c, change in zip(self.c, changes, strict=True)]
        if self.eta_g == 1:
            return aggregation.mean
        pairs = zip(aggregation.before, aggregation.mean, strict=True)
        return [(x + self.eta_g * (y - x)).astype(x.dtype) for x, y in pairs]

    def state(self) -> dict[str, Arrays]:
        """Return c."""
        return {"c": self.c}

    def correction(self, exchange: Exchange) -> Correction:
        """Return c − cᵢ."""
        if "c" not in exchange.state:
            return Correction(exchange.sent)
        return Correction([c - c_i for c, c_i in zip(exchange.sent, exchange.state["c"], strict=True)])

    def finish(self, exchange: Exchange, trained: Sequence[Tensor], steps: Steps) -> Update:
        """Renew the client's variate by option II; return its change."""
        changes = []
        for index, (c, x, y) in enumerate(zip(exchange.sent, exchange.start, trained, strict=True)):
            total = steps.total_rate(index)
            changes.append(torch.sub(x, y).div_(total).sub_(c) if total else torch.zeros_like(x))
        own = exchange.state.get("c")  # None for zeros, which a client of its first round need not add
        renewed = changes if own is None else [c_i + change for c_i, change in zip(own, changes, strict=True)]
        exchange.state["c"] = renewed
        return Update(extras=changes)

    def fit(self, local: LocalTraining) -> Update:
        """Train; with option I, take the gradient at x before."""
        if self.option == 2 or not len(local.loader):  # without a batch there is no gradient, and a variate stays
            return super().fit(local)
        gradient = _gradient_at_start(local)
        self.train(local)
        state = local.exchange.state
        own, state["c"] = state.get("c") or zeros(gradient), gradient
        return Update(extras=[new - old for new, old in zip(gradient, own, strict=True)])


@torch.no_grad()
def _gradient_at_start(local: LocalTraining) -> list[Tensor]:
    """Return the gradient of the client's mean loss at the global model: one epoch, whose steps are taken back."""
    before = local.weights()
    sums, last = zeros(local.parameters), zeros(local.parameters)

    def collect(index: int, parameter: Tensor, rate: float) -> None:
        assert parameter.grad is not None
        last[index] = parameter.grad.clone()
        sums[index] += parameter.grad

    def take_back(indices: Sequence[int]) -> None:  # what stays with the client as well
        local.load(before)

    with torch.enable_grad():
        steps = local.train(epochs=1, before=collect, after=take_back, prefix=None, must_step=True)
    local.load(before)
    num_examples, batch_size = local.loader.num_examples, local.loader.batch_size or 0
    last_size = num_examples - batch_size * (steps.count - 1)
    if not 0 < last_size <= batch_size:  # batches of other sizes, or not all examples
        return [total / steps.count for total in sums]
    return [(batch_size * (total - g) + last_size * g) / num_examples for total, g in zip(sums, last, strict=True)]
