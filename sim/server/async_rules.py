"""How asynchronous strategies make a new version of the model from the updates that have arrived.

x_t is the newest version, τ ≤ t the version that a client began with, x_new what it trained, and t − τ its staleness.
The factor s(t − τ) makes old updates count less:

    constant    s = 1
    polynomial  s = (1 + t − τ)^(−a)
    hinge       s = 1 if t − τ ≤ b, else 1 ÷ (a · (t − τ − b) + 1)

Sources:

- fedasync: Xie, Koyejo, Gupta 2019, "Asynchronous Federated Optimization" (arXiv:1903.03934), algorithm 1 and section
  5.2. Each update makes a version: x_{t+1} = (1 − α_t) · x_t + α_t · x_new with α_t = α · s(t − τ). Clients minimise
  f(x) + ρ ÷ 2 · ‖x − x_τ‖². Algorithm 1 writes t for the version that is made, x_t from x_{t−1}, so that its t − τ is
  at least 1; here an update during which no version was made has the staleness 0, as in fedbuff, and the share α.
- fedbuff: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (AISTATS), algorithm 1. K
  updates Δ_i = x_new − x_τ make a version: x_{t+1} = x_t + η_g · (1 ÷ K) · Σ s(t − τ_i) · Δ_i with a = 1/2, so that
  s = 1 ÷ √(1 + t − τ) (section 4). The paper subtracts x_τ − x_new, which is the same. ``--server-strategy`` takes the
  step with momentum or as Adam instead.

What is not trained (running statistics, counters) is the mean of what the K clients sent, and mixed by α_t in fedasync.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from flwr.common import NDArray, NDArrays

from sim.config.fields import MOST, arguments_of, setting
from sim.config.run_config import RunConfig
from sim.errors import ConfigError

# Of the functions of the staleness.
PARAMETERS: dict[str, tuple[str, ...]] = {"constant": (), "polynomial": ("a",), "hinge": ("a", "b")}
STALENESS = tuple(PARAMETERS)


class Arrived(NamedTuple):
    """One client's update.

    Attributes:
        trained: the weights that it returned.
        begun: the version that it began with.
        staleness: versions that were made meanwhile.
    """

    trained: NDArrays
    begun: NDArrays
    staleness: int
    num_examples: int


class AsyncRule(Protocol):
    """Makes a version."""

    @property
    def num_arrivals(self) -> int:
        """How many updates make a version."""

    @property
    def client_settings(self) -> Mapping[str, Any]:
        """Settings that clients get in ``FitIns.config``."""

    def mean(self, newest: NDArrays, arrived: Sequence[Arrived], untrained: Collection[int]) -> NDArrays:
        """Return what the server's strategy takes as the mean of the clients, in float64.

        Args:
            untrained: positions of the arrays that are not trained.
        """


def staleness_factor(function: str, staleness: int, a: float, b: float) -> float:
    """Return s(staleness)."""
    if function == "constant":
        return 1.0
    if function == "polynomial":
        return float((1 + staleness) ** -a)
    return 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)


@dataclass(frozen=True)
class FedAsync:
    """Each update makes a version; the defaults are those of the paper's experiments."""

    alpha: float = setting(0.6, "share of a fresh update in the new version", "fedasync", above=0, high=1)
    staleness: str = setting("polynomial", "how old updates count less", "fedasync", choices=STALENESS)
    a: float = setting(0.5, "exponent of polynomial, or slope of hinge", "fedasync", low=0, high=1e6)
    b: float = setting(4.0, "staleness up to which hinge does not count less", "fedasync", low=0, high=1e9)
    rho: float = setting(0.0, "strength of the proximal term of the clients", "fedasync", low=0, high=1e6)

    @property
    def num_arrivals(self) -> int:
        """See ``AsyncRule``."""
        return 1

    @property
    def client_settings(self) -> Mapping[str, Any]:
        """See ``AsyncRule``."""
        return {"proximal_mu": self.rho} if self.rho else {}

    def mean(self, newest: NDArrays, arrived: Sequence[Arrived], untrained: Collection[int]) -> NDArrays:
        """Return (1 − α_t) · x_t + α_t · x_new, for each update in turn."""
        mixed = [_wide(array) for array in newest]
        for each in arrived:
            share = self.alpha * staleness_factor(self.staleness, each.staleness, self.a, self.b)
            mixed = [(1 - share) * x + share * _wide(w) for x, w in zip(mixed, each.trained, strict=True)]
        return _with_infinite(mixed, newest)


@dataclass(frozen=True)
class FedBuff:
    """K updates make a version."""

    buffer_size: int = setting(10, "updates that make a version, K", "fedbuff", low=1, high=MOST)
    server_lr: float = setting(1.0, "learning rate of the server, η_g", "fedbuff", above=0, high=1e6)
    staleness: str = setting("polynomial", "how old updates count less", "fedbuff", choices=STALENESS)
    a: float = setting(0.5, "exponent of polynomial, or slope of hinge", "fedbuff", low=0, high=1e6)
    b: float = setting(4.0, "staleness up to which hinge does not count less", "fedbuff", low=0, high=1e9)
    weighting: str = setting(
        "uniform", "updates count alike, or by their examples", "fedbuff", choices=("uniform", "examples")
    )

    @property
    def num_arrivals(self) -> int:
        """See ``AsyncRule``."""
        return self.buffer_size

    @property
    def client_settings(self) -> Mapping[str, Any]:
        """See ``AsyncRule``."""
        return {}

    def mean(self, newest: NDArrays, arrived: Sequence[Arrived], untrained: Collection[int]) -> NDArrays:
        """Return x_t + η_g · Σ n_i · s(t − τ_i) · Δ_i ÷ Σ n_i, where n_i is 1 for uniform."""
        counts = [each.num_examples if self.weighting == "examples" else 1 for each in arrived]
        total = sum(counts)
        if not total:
            return [_wide(array) for array in newest]
        steps = [np.zeros(array.shape) for array in newest]
        for each, count in zip(arrived, counts, strict=True):
            factor = self.server_lr * staleness_factor(self.staleness, each.staleness, self.a, self.b)
            for position, (w, begun) in enumerate(zip(each.trained, each.begun, strict=True)):
                if position in untrained:
                    with np.errstate(invalid="ignore"):
                        steps[position] += count / total * (_wide(w) - newest[position])
                else:
                    steps[position] += factor * count / total * (_wide(w) - _wide(begun))
        with np.errstate(invalid="ignore"):
            return _with_infinite([_wide(x) + step for x, step in zip(newest, steps, strict=True)], newest)


RULES: dict[str, type[FedAsync] | type[FedBuff]] = {"fedasync": FedAsync, "fedbuff": FedBuff}


def rule_of(config: RunConfig) -> FedAsync | FedBuff:
    """Make the rule of an asynchronous strategy.

    Raises:
        ConfigError: it has no such argument, or a value is not valid.
    """
    given = config.strategy_args
    if config.server_lr is not None and config.strategy == "fedbuff":
        if "server_lr" in given:
            raise ConfigError(
                f"--server-lr {config.server_lr:g} and --strategy-args server_lr={given['server_lr']}: give one of the "
                "two"
            )
        given = {**given, "server_lr": config.server_lr}
    return arguments_of(RULES[config.strategy], given, "--strategy", config.strategy)


def _wide(array: NDArray) -> NDArray:
    return np.asarray(array, np.float64)


def _with_infinite(made: NDArrays, newest: NDArrays) -> NDArrays:
    """Put back what is no number in the newest version, such as a mask of −∞, with which nothing can be computed."""
    for position, (array, before) in enumerate(zip(made, newest, strict=True)):
        if before.dtype.kind == "f" and not np.isfinite(before).all():
            made[position] = np.where(np.isfinite(before), array, before)
    return made
