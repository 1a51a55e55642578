"""Which of the clients that are online take part in a round, by name or the user's own.

- uniform: each client alike, without replacement (McMahan et al. 2017, algorithm 1).
- by-size: with a probability in proportion to a client's examples, without replacement.
- round-robin: in the order of their ids, after those of the round before.
- power-of-choice: of some candidates, drawn in proportion to their examples, the ones with the highest loss (Cho, Wang,
  Joshi 2020, "Client Selection in Federated Learning"). This is the variant of section 5 that costs nothing, rpow-d:
  the loss is the training loss that the client had the last time; one that never trained comes first.
- oort: clients with a high loss that are fast enough (Lai, Zhu, Madhyastha, Chowdhury 2021, "Oort: Efficient Federated
  Learning via Guided Participant Selection", algorithm 1), see ``Oort``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sim import user_code
from sim.config.fields import MOST, arguments_of, setting
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, PluginError, described
from sim.process_settings import restored_settings
from sim.seeds import Purpose, seeded

ClientIds = NDArray[np.int64]
Sizes = NDArray[np.int64]


class Report(NamedTuple):
    """What the server knows of a client after it has trained.

    Attributes:
        loss: mean training loss; None if the client did not measure one.
        seconds: virtual seconds from the start of the download to the end of the upload; 0 without devices.
    """

    client_id: int
    num_examples: int
    loss: float | None
    seconds: float


class Sampler(Protocol):
    """Chooses the clients of a round. What it keeps in its attributes belongs to the checkpoints of a run."""

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, rng: np.random.Generator
    ) -> Sequence[int]:
        """Return the ids of clients.

        Args:
            candidates: those that are online, in ascending order, int64 [C].
            num_clients: how many different ones are wanted, at most C.
            rng: the random numbers of this round.
        """

    def observe(self, server_round: int, reports: Sequence[Report]) -> None:
        """Take what clients reported after a round."""


@dataclass
class Uniform:
    """Each client alike."""

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, rng: np.random.Generator
    ) -> Sequence[int]:
        """See ``Sampler``."""
        chosen: list[int] = rng.choice(candidates, num_clients, replace=False).tolist()
        return chosen

    def observe(self, server_round: int, reports: Sequence[Report]) -> None:
        """Nothing is kept."""


class BySize(Uniform):
    """In proportion to the examples."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, rng: np.random.Generator
    ) -> Sequence[int]:
        """See ``Sampler``."""
        return _in_proportion(self._sizes, candidates, num_clients, rng)


class RoundRobin(Uniform):
    """In the order of the ids.

    Attributes:
        next_client: the smallest id that comes next.
    """

    def __init__(self) -> None:
        self.next_client = 0

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, rng: np.random.Generator
    ) -> Sequence[int]:
        """See ``Sampler``."""
        first = int(np.searchsorted(candidates, self.next_client))
        chosen: list[int] = np.roll(candidates, -first)[:num_clients].tolist()
        self.next_client = chosen[-1] + 1
        return chosen


@dataclass(frozen=True)
class PowerOfChoiceArguments:
    """The arguments of power-of-choice."""

    candidates: int | None = setting(
        None, "clients that are compared, d; twice the clients of a round if not given", "sampler", low=1, high=MOST
    )


class PowerOfChoice:
    """The candidates with the highest loss.

    Attributes:
        losses: client_id → its last training loss.
    """

    def __init__(self, sizes: Sizes, arguments: PowerOfChoiceArguments) -> None:
        self.losses: dict[int, float] = {}
        self._sizes, self._count = sizes, arguments.candidates

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, rng: np.random.Generator
    ) -> Sequence[int]:
        """See ``Sampler``."""
        count = min(len(candidates), max(num_clients, self._count or 2 * num_clients))
        compared = _in_proportion(self._sizes, candidates, count, rng)
        return sorted(compared, key=lambda c: -self.losses.get(c, math.inf))[:num_clients]

    def observe(self, server_round: int, reports: Sequence[Report]) -> None:
        """Take the losses."""
        self.losses = {**self.losses, **{r.client_id: r.loss for r in reports if r.loss is not None}}


@dataclass(frozen=True)
class OortArguments:
    """The arguments of oort; the defaults are those of the paper (section 7.1) and the authors' code."""

    exploration: float = setting(0.9, "share of the clients that have never trained", "sampler", low=0, high=1)
    exploration_decay: float = setting(0.98, "factor of exploration per round", "sampler", above=0, high=1)
    least_exploration: float = setting(0.2, "smallest share", "sampler", low=0, high=1)
    alpha: float = setting(2.0, "exponent of the penalty for clients that take longer", "sampler", low=0, high=1e3)
    cutoff: float = setting(0.95, "share of the utility that the last one must have", "sampler", above=0, high=1)
    window: int = setting(20, "rounds between two changes of the preferred duration", "sampler", low=1, high=MOST)
    step: float = setting(0.05, "quantile by which the preferred duration grows", "sampler", above=0, high=1)


class Oort:
    """Guided participant selection (Lai et al. 2021, algorithm 1).

    A client that has trained has the utility

        U = |B| · loss + √(0.1 · ln R ÷ L), times (T ÷ t)^α if it took longer than T

    with its number of examples |B|, the present round R, the round L in which it trained last, its virtual seconds t,
    and the preferred duration T. The paper takes the root of the mean of the squared losses of its examples; clients
    report their mean, which stands for it. The first part is scaled to 0…1 over the clients, as the authors' code does.
    ``exploration`` of the clients are drawn among those that have never trained. T is a quantile of the durations,
    which begins at ``step`` and grows by ``step`` whenever the utility of a window of rounds falls below that before.

    Attributes:
        utilities, seconds, last_rounds: client_id → |B| · loss, t and L.
        gains: the utility that each round has brought.
    """

    def __init__(self, arguments: OortArguments) -> None:
        self._arguments = arguments
        self.exploration = arguments.exploration
        self.quantile = arguments.step
        self.utilities: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        self.last_rounds: dict[int, int] = {}
        self.gains: list[float] = []

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, rng: np.random.Generator
    ) -> Sequence[int]:
        """See ``Sampler``."""
        known = [c for c in candidates.tolist() if c in self.utilities]
        new = [c for c in candidates.tolist() if c not in self.utilities]
        num_new = min(len(new), max(num_clients - len(known), round(self.exploration * num_clients)))
        explored: list[int] = rng.choice(new, num_new, replace=False).tolist() if num_new else []
        return [*self._best(known, num_clients - num_new, server_round, rng), *explored]

    def _best(self, known: list[int], count: int, server_round: int, rng: np.random.Generator) -> list[int]:
        if not count:
            return []
        scores = self._scores(known, server_round)
        order = sorted(known, key=lambda c: (-scores[c], c))
        least = self._arguments.cutoff * scores[order[count - 1]]
        good = [c for c in order if scores[c] >= least]
        weights = np.array([scores[c] for c in good])
        if not np.all(weights > 0):
            return order[:count]
        chosen: list[int] = rng.choice(good, count, replace=False, p=weights / weights.sum()).tolist()
        return chosen

    def _scores(self, known: list[int], server_round: int) -> dict[int, float]:
        values = np.array([self.utilities[c] for c in known])
        span = float(values.max() - values.min()) or 1.0
        preferred = float(np.quantile(list(self.seconds.values()), min(1.0, self.quantile), method="inverted_cdf"))
        found = {}
        for client_id, value in zip(known, values.tolist(), strict=True):
            score = (value - float(values.min())) / span
            score += math.sqrt(0.1 * math.log(max(1, server_round)) / self.last_rounds[client_id])
            took = self.seconds[client_id]
            found[client_id] = score * (preferred / took) ** self._arguments.alpha if took > preferred else score
        return found

    def observe(self, server_round: int, reports: Sequence[Report]) -> None:
        """Take utilities and durations; explore less; let T grow if rounds bring less than before."""
        measured = [r for r in reports if r.loss is not None and math.isfinite(r.loss)]
        self.utilities = {**self.utilities, **{r.client_id: r.num_examples * (r.loss or 0.0) for r in measured}}
        self.seconds = {**self.seconds, **{r.client_id: r.seconds for r in measured}}
        self.last_rounds = {**self.last_rounds, **{r.client_id: server_round for r in measured}}
        decayed = self.exploration * self._arguments.exploration_decay
        self.exploration = max(min(self.exploration, self._arguments.least_exploration), decayed)
        self.gains = [*self.gains, sum(self.utilities[r.client_id] for r in measured)]
        window = self._arguments.window
        if len(self.gains) >= 2 * window and len(self.gains) % window == 0:
            before, last = sum(self.gains[-2 * window : -window]), sum(self.gains[-window:])
            if last < before:
                self.quantile = min(1.0, self.quantile + self._arguments.step)


def sampler_of(config: RunConfig, sizes: Sequence[int] | Sizes) -> Sampler:
    """Make the sampler that a config names.

    Args:
        sizes: examples of each client; empty where nobody knows.

    Raises:
        ConfigError: it takes no such argument, or needs the examples of the clients.
        PluginError: the user's own cannot be imported or made.
    """
    name, counts = config.sampler, np.asarray(sizes, np.int64)
    if name in ("by-size", "power-of-choice") and not len(counts):
        raise ConfigError(f"--sampler {name}: nobody knows how many examples these clients have; use another sampler")
    if name == "power-of-choice":
        return PowerOfChoice(counts, arguments_of(PowerOfChoiceArguments, config.sampler_args, "--sampler", name))
    if name == "oort":
        if config.devices is None:
            raise ConfigError("--sampler oort: needs the virtual seconds of --devices, e.g. uniform")
        return Oort(arguments_of(OortArguments, config.sampler_args, "--sampler", name))
    if ":" in name:
        return _own(config, counts)
    if config.sampler_args:
        raise ConfigError(f"--sampler-args {', '.join(config.sampler_args)}: --sampler {name} takes no arguments")
    return {"uniform": Uniform, "by-size": lambda: BySize(counts), "round-robin": RoundRobin}[name]()


def _own(config: RunConfig, sizes: Sizes) -> Sampler:
    loaded: Any = user_code.load(config.sampler, "--sampler")
    seed = config.seed_of_samples
    offered = {"num_clients": config.num_clients, "sizes": sizes, "seed": seed}
    user_code.check_arguments(loaded, config.sampler_args, set(offered), "--sampler-args", config.sampler)
    try:
        with restored_settings(), seeded(seed, Purpose.SAMPLER):  # it may draw from the global generators
            sampler: Sampler = loaded(**{**user_code.accepted(loaded, offered), **config.sampler_args})
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"--sampler {config.sampler}: cannot be made: {described(error)}") from error
    if not callable(getattr(sampler, "sample", None)):
        raise PluginError(f"--sampler {config.sampler}: made a {type(sampler).__name__} without a method sample")
    if not hasattr(sampler, "__dict__") or any("__slots__" in vars(kind) for kind in type(sampler).__mro__):
        raise PluginError(
            f"--sampler {config.sampler}: has __slots__, but what checkpoints keep of a sampler is its __dict__"
        )
    return sampler


def _in_proportion(sizes: Sizes, candidates: ClientIds, count: int, rng: np.random.Generator) -> list[int]:
    """Draw clients without replacement; those without examples come only where no others are left."""
    weights = sizes[candidates].astype(np.float64)
    some = np.flatnonzero(weights)
    if len(some) < count:
        rest = np.flatnonzero(weights == 0)
        more = rng.choice(candidates[rest], count - len(some), replace=False).tolist()
        return [*candidates[some].tolist(), *more]
    chosen: list[int] = rng.choice(candidates, count, replace=False, p=weights / weights.sum()).tolist()
    return chosen
