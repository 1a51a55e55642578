"""Attacks by name: what attackers send to the server instead of what they have trained (``--attack``).

Each client i of a round begins with the global weights w, trains, and has w_i; its update is Δ_i = w_i − w. The round
has n clients, of which m are attackers, and an attacker sends w + Δ' instead of w + Δ_i:

    sign-flip   Δ' = −scale · Δ_i
    gaussian    Δ' ~ N(0, sigma²), for each weight
    alie        Δ' = μ + z · σ, with mean and standard deviation of each weight over the updates that the attackers know
    ipm         Δ' = −epsilon · mean of Δ_j over the honest clients j
    label-flip  the attacker trains as the others do, on examples whose class c is C − 1 − c

Sources:

- label-flip: Fang, Cao, Jia, Gong 2020, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning" (USENIX
  Security), section 4; Tolpegin et al. 2020, "Data Poisoning Attacks Against Federated Learning Systems", flips single
  pairs of classes.
- sign-flip: Li, Xu, Chen, Giannakis, Ling 2019, "RSA: Byzantine-Robust Stochastic Aggregation Methods" (AAAI).
- gaussian: Blanchard et al. 2017, "Machine Learning with Adversaries" (NeurIPS), draw gradients from N(0, 200²). Here
  sigma is in units of the weights, because there are no gradients to replace.
- alie: Baruch, Baruch, Goldberg 2019, "A Little Is Enough" (NeurIPS), algorithm 3. The authors' code
  (github.com/moranant/attacking_distributed_learning) takes μ − z · σ of gradients, which is μ + z · σ of updates, and
  a standard deviation that divides by the number of attackers.
- ipm: Xie, Koyejo, Gupta 2019, "Fall of Empires" (UAI), which tries several epsilon; 0.5 is the default of Blades
  (github.com/lishenghui/blades), a benchmark of attacks.

All but label-flip happen in the server's process, after the round's clients have trained and before the strategy sees
them, on trained parameters only. What else a model holds (running statistics, counters) is sent as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from flwr.common import NDArrays
from numpy.typing import NDArray

from sim.config.fields import arguments_of, setting
from sim.config.run_config import RunConfig
from sim.data.columns import TARGET_KEYS
from sim.data.load_dataset import Dataset
from sim.engine.aggregation import cast
from sim.engine.interface import ClientResult
from sim.errors import ConfigError
from sim.seeds import Purpose, generator
from sim.training.weights import WeightLayout

Update = NDArray[np.float64]  # of one array of the model


class Attack(Protocol):
    """What attackers send; its fields are the arguments of ``--attack-args``."""

    def forged(
        self, own: Sequence[Update], honest: Sequence[Update], noise: Sequence[np.random.Generator]
    ) -> list[Update]:
        """Return Δ' of each attacker.

        Args:
            own: Δ of the attackers, in client order.
            honest: Δ of the other clients of the round, in client order.
            noise: random numbers of each attacker.
        """


@dataclass(frozen=True)
class SignFlip:
    """Δ' = −scale · Δ_i."""

    scale: float = setting(1.0, "factor", "sign-flip", above=0, high=1e38)

    def forged(
        self, own: Sequence[Update], honest: Sequence[Update], noise: Sequence[np.random.Generator]
    ) -> list[Update]:
        """See ``Attack``."""
        return [-self.scale * update for update in own]


@dataclass(frozen=True)
class Gaussian:
    """Δ' ~ N(0, sigma²), for each weight."""

    sigma: float = setting(1.0, "standard deviation", "gaussian", above=0, high=1e38)

    def forged(
        self, own: Sequence[Update], honest: Sequence[Update], noise: Sequence[np.random.Generator]
    ) -> list[Update]:
        """See ``Attack``."""
        return [drawn.normal(0.0, self.sigma, update.shape) for drawn, update in zip(noise, own, strict=True)]


@dataclass(frozen=True)
class Alie:
    """Δ' = μ + z · σ, the same of every attacker; one that is alone in a round and knows only itself is honest."""

    z: float | None = setting(None, "deviations from the mean; z_max of the paper if not given", "alie", high=1e38)
    knowledge: str = setting("attackers", "whose updates are known", "alie", choices=("attackers", "all"))

    def forged(
        self, own: Sequence[Update], honest: Sequence[Update], noise: Sequence[np.random.Generator]
    ) -> list[Update]:
        """See ``Attack``."""
        known = np.stack([*own, *honest] if self.knowledge == "all" else own)
        z = z_max(len(own) + len(honest), len(own)) if self.z is None else self.z
        return [known.mean(0) + z * known.std(0)] * len(own)


def z_max(n: int, m: int) -> float:
    """Return the largest z at which enough honest clients are expected to be farther from the mean than the attackers.

    Algorithm 3: s = ⌊n/2 + 1⌋ − m clients must be won for a majority, and z_max is the largest z with
    φ(z) < (n − m − s) / (n − m), where φ is the cumulative standard normal distribution. The paper's attackers are a
    minority; more of them than ⌊n/2⌋, with whom z_max would be infinite, count as ⌊n/2⌋. With n < 3 it is 0.
    """
    m = min(m, n // 2)
    s = n // 2 + 1 - m
    return NormalDist().inv_cdf((n - m - s) / (n - m)) if n > 2 else 0.0


@dataclass(frozen=True)
class Ipm:
    """Δ' = −epsilon · mean of the honest updates, the same of every attacker.

    In a round without an honest client it is the mean of the attackers' own updates.
    """

    epsilon: float = setting(0.5, "factor", "ipm", above=0, high=1e38)

    def forged(
        self, own: Sequence[Update], honest: Sequence[Update], noise: Sequence[np.random.Generator]
    ) -> list[Update]:
        """See ``Attack``."""
        return [-self.epsilon * np.stack(honest or own).mean(0)] * len(own)


@dataclass(frozen=True)
class LabelFlip:
    """Flips labels in ``ClientRuntime``; what it sends is what it has trained."""


ATTACKS: dict[str, type[Any]] = {
    "label-flip": LabelFlip,
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "alie": Alie,
    "ipm": Ipm,
}


def attackers_of(config: RunConfig) -> tuple[int, ...]:
    """Return the ids of the attackers, ascending; those of a smaller share are among those of a larger one."""
    if not config.num_attackers:
        return ()
    order = generator(config.seed, Purpose.ATTACKERS).permutation(config.num_clients)
    return tuple(sorted(order[: config.num_attackers].tolist()))


def check(config: RunConfig, dataset: Dataset) -> None:
    """Check the arguments of the attack, and that it can be done to these data.

    Raises:
        ConfigError: there is no such argument, a value is not valid, or there are no classes to flip.
    """
    if config.attack is None:
        return
    arguments_of(ATTACKS[config.attack], config.attack_args, "--attack", config.attack)
    if config.attack != "label-flip":
        return
    if dataset.source.num_clients is not None:
        raise ConfigError(
            "--attack label-flip: the program gives the data of each client, so that nobody knows how many classes "
            "there are"
        )
    if dataset.labels is None or len(dataset.classes) < 2:
        raise ConfigError(
            f"--attack label-flip: needs one class for each example, which --dataset {config.dataset} does not have "
            f"(a dict has it under {', '.join(TARGET_KEYS)}); the other attacks work with any targets"
        )


@dataclass(frozen=True)
class Attackers:
    """The attackers of a run, as the round loop calls them.

    Attributes:
        layout: which arrays are trained.
    """

    ids: frozenset[int]
    attack: Attack
    layout: WeightLayout
    seed: int

    @classmethod
    def of(cls, config: RunConfig, layout: WeightLayout) -> Attackers | None:
        """Return the attackers that send something else than they have trained; None if there are none."""
        if not config.forges_updates:
            return None
        assert config.attack is not None
        attack = arguments_of(ATTACKS[config.attack], config.attack_args, "--attack", config.attack)
        return cls(frozenset(attackers_of(config)), attack, layout, config.seed)

    def forge(self, server_round: int, before: NDArrays, results: Sequence[ClientResult]) -> None:
        """Replace the weights that the attackers of a round have trained by those that they send.

        Args:
            before: the global weights, with which the round began.
            results: of the clients that did not fail, in client order.
        """
        own = [result for result in results if result.client_id in self.ids]
        honest = [result for result in results if result.client_id not in self.ids]
        noise = [generator(self.seed, Purpose.ATTACK, server_round, result.client_id) for result in own]
        sent = [list(result.weights or []) for result in own]
        for position in self.layout.trained if own else ():
            w = before[position].astype(np.float64)
            forged = self.attack.forged(
                [(result.weights or [])[position] - w for result in own],
                [(result.weights or [])[position] - w for result in honest],
                noise,
            )
            for weights, update in zip(sent, forged, strict=True):
                with np.errstate(over="ignore"):  # the round loop says it when infinite weights become the global ones
                    weights[position] = cast(w + update, weights[position].dtype)
        for result, weights in zip(own, sent, strict=True):
            for position, first in self.layout.tied.items():
                weights[position] = weights[first]
            result.weights = weights
