"""APFL: each client mixes a model of its own with the global one.

Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, arXiv:2003.13461, algorithm 1. Step t of client
i, on one batch, from the values of step t − 1:

    w ← w − η ∇f(w)
    v ← v − η ∇ᵥf(v̄) = v − η α ∇f(v̄),   v̄ = α v + (1 − α) w
    α ← α − η ⟨∇f(v̄), v − w⟩, kept in 0–1, if it is adaptive
    server: w ← mean(wᵢ), each client of the round counted alike

v begins at the first global model that the client gets. The program's ``train`` is called twice with the same random
numbers, and so with the same batches: for w, whose values after each step are kept in memory until the call for v̄.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sim.algorithms.algorithm import Algorithm, LocalTraining, Update, argument, limited


@dataclass
class Apfl(Algorithm):
    """APFL.

    Attributes:
        alpha: share α of the client's own model in its mixture; with ``adaptive``, at the beginning.
        adaptive: whether α is trained, too.
    """

    SOURCE: ClassVar[str] = "Deng et al. 2020, algorithm 1"
    KEEPS_STATE: ClassVar[bool] = True
    HAS_PERSONAL_MODEL: ClassVar[bool] = True
    FOR_SGD: ClassVar[str] = "its two models then take steps of different scale"

    weighting: str = argument("uniform", choices=("examples", "uniform"))
    alpha: float = argument(0.5, low=0, high=1)
    adaptive: bool = argument(False)

    def num_steps(self, batches: int, epochs: int, most: int, server_round: int) -> int:
        """Return the steps of both models."""
        return 2 * limited(batches * epochs, most)

    def fit(self, local: LocalTraining) -> Update:
        """Train w, then v along the way that w took."""
        state, parameters = local.exchange.state, local.parameters
        own = state.get("v") or [start.clone() for start in local.exchange.start]
        alpha = float(state["alpha"][0]) if "alpha" in state else self.alpha
        way = [local.exchange.start]
        before, rewind = local.weights(), local.rewindable()
        local.train(after=lambda _: way.append([p.detach().clone() for p in parameters]), must_step=True)
        trained = local.weights()
        rewind()
        local.load(before)
        mixture = _Mixture(parameters, own, alpha, way, adaptive=self.adaptive)
        mixture.load()
        local.train(before=mixture.scale, after=mixture.advance, prefix="personal_", must_step=True)
        state["v"], state["alpha"] = mixture.own, [torch.tensor(mixture.alpha, dtype=torch.float64)]
        state["mixture"] = local.weights()
        local.load(trained)
        return Update(metrics={"alpha": mixture.alpha})

    def personalize(self, local: LocalTraining) -> bool:
        """Mix v with the global model; a client that never trained has no v."""
        state = local.exchange.state
        if "v" not in state:
            return False
        shared = [p.detach().clone() for p in local.parameters]
        local.load(state["mixture"])  # for its buffers; the parameters are mixed anew
        _Mixture(local.parameters, state["v"], float(state["alpha"][0]), [shared], adaptive=False).load()
        return True


class _Mixture:
    """v̄ in the place of the parameters that ``train`` trains."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        own: list[Tensor],
        alpha: float,
        way: list[list[Tensor]],
        *,
        adaptive: bool,
    ) -> None:
        """
        Args:
            way: w before the first step and after each.
        """
        self.own, self.alpha = own, alpha
        self._parameters, self._way, self._adaptive = parameters, way, adaptive
        self._number = 0  # of the step
        self._mixed: list[Tensor] = []  # v̄ before the step
        self._slope = self._rate = 0.0

    @property
    def _w(self) -> list[Tensor]:
        return self._way[min(self._number, len(self._way) - 1)]

    @torch.no_grad()
    def load(self) -> None:
        """Put v̄ into the net."""
        self._mixed = [self.alpha * v + (1 - self.alpha) * w for v, w in zip(self.own, self._w, strict=True)]
        for parameter, mixed in zip(self._parameters, self._mixed, strict=True):
            parameter.copy_(mixed)

    @torch.no_grad()
    def scale(self, index: int, parameter: Tensor, rate: float) -> None:
        """Turn ∇f(v̄) into ∇ᵥf(v̄)."""
        assert parameter.grad is not None
        if self._adaptive:
            self._rate = rate
            self._slope += float((parameter.grad * (self.own[index] - self._w[index])).sum())
        parameter.grad.mul_(self.alpha)

    @torch.no_grad()
    def advance(self, indices: Sequence[int]) -> None:
        """Give v the step that the optimizer took."""
        pairs = zip(self.own, self._parameters, self._mixed, strict=True)
        self.own = [v + (after - before) for v, after, before in pairs]
        self.alpha = min(1.0, max(0.0, self.alpha - self._rate * self._slope))
        self._slope = 0.0
        self._number += 1
        self.load()
