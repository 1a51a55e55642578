"""Every knob of a run, once: name, type, unit, default, help and valid range.

Flags, config files and ``RunConfig(...)`` in Python are three ways to fill the same frozen dataclass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sim.config.fields import flag_of, knob, other_default
from sim.config.training_config import MACHINE, MODEL, RUN, TrainingConfig
from sim.errors import ConfigError

CLIENTS, STRATEGY = "clients", "strategy"

_PARTITIONERS = (
    "iid",
    "dirichlet",
    "inner-dirichlet",
    "shard",
    "pathological",
    "linear",
    "square",
    "exponential",
)
_STRATEGIES = (
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedadagrad",
    "fedyogi",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "bulyan",
    "qfedavg",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """One federated run. Resolved at construction: exactly one of ``fraction_fit`` and
    ``clients_per_round`` has a value afterwards.

    Raises:
        ConfigError: a value of the wrong type, out of its range, or at odds with another.
    """

    num_clients: int = knob(100, "clients, each with a partition of its own", CLIENTS, low=1)
    fraction_fit: float | None = knob(
        None,
        "share of the clients that train in a round; 0.2 unless given",
        CLIENTS,
        above=0,
        high=1,
        instead_of="clients_per_round",
    )
    clients_per_round: int | None = knob(
        None, "how many clients train in a round, instead of --fraction-fit", CLIENTS, low=1
    )
    fraction_evaluate: float = knob(
        0.0, "share of the clients that evaluate the new model in a round", CLIENTS, low=0, high=1
    )
    num_rounds: int = knob(30, "rounds of training", CLIENTS, low=1)
    target_accuracy: float | None = knob(
        None, "end when the test accuracy reaches this", CLIENTS, unit="fraction", above=0, high=1
    )
    partitioner: str = knob("dirichlet", "how examples are dealt to clients", CLIENTS, choices=_PARTITIONERS)
    partitioner_args: dict[str, bool | int | float | str] = knob(
        {},
        "arguments of the partitioner in flwr-datasets, e.g. num_classes_per_partition=3 or self_balancing=true",
        CLIENTS,
        argument_of="partitioner",
    )
    alpha: float = knob(
        0.5, "concentration of the Dirichlet distribution; small: few classes a client", CLIENTS, above=0
    )
    min_partition_size: int = knob(1, "fewest examples a client may get", CLIENTS, unit="examples", low=1)
    eval_share: float = knob(
        0.2,
        "share of a client's examples (rounded down) kept for its own evaluation; taken only when "
        "--fraction-evaluate is above 0",
        CLIENTS,
        low=0,
        below=1,
    )
    local_epochs: int = knob(5, "passes over a client's examples in a round", MODEL, unit="epochs", low=1)
    max_local_steps: int | None = knob(None, "most training steps of a client in a round", MODEL, unit="steps", low=1)
    local_training: str = knob(
        "auto",
        "vectorized trains many clients in one computation; auto does so on a GPU where model and program allow it",
        MODEL,
        choices=("sequential", "vectorized", "auto"),
    )
    vectorized_clients: int | None = knob(
        None, "how many at a time; as many as a GPU's memory holds unless given", MODEL, low=1
    )
    client: str | None = knob(
        None, "your own flwr NumPyClient or Client, as package.module:Class", MODEL, importable=True
    )
    strategy: str = knob(
        "fedavg",
        "Flower's strategy, or your own class; qfedavg weighs all clients by one central loss, not by each "
        "client's own as its paper does",
        STRATEGY,
        choices=_STRATEGIES,
        importable=True,
    )
    strategy_args: dict[str, bool | int | float | str] = knob(
        {},
        "arguments of the strategy, e.g. proximal_mu=0.1 or eta=0.01 tau=0.001",
        STRATEGY,
        argument_of="strategy",
    )
    dp: str | None = knob(
        None,
        "differential privacy around an averaging strategy: each client's update is clipped at the server, "
        "the average gets noise",
        STRATEGY,
        choices=("fixed", "adaptive"),
    )
    dp_args: dict[str, bool | int | float | str] = knob(
        {},
        "arguments of --dp, e.g. noise_multiplier=1.0 clipping_norm=0.5",
        STRATEGY,
        argument_of="dp",
    )
    num_cpus: float = knob(1.0, "CPUs of one client, as in Flower's client_resources", MACHINE, low=0.01)
    num_gpus: float | Literal["auto"] = knob(
        0.0,
        "GPUs of one client; 0.1 lets ten share one where the CPUs allow; auto measures one client first",
        MACHINE,
        low=0,
        auto=True,
    )
    engine: str = knob(
        "ray",
        "ray: a process for every num_cpus; inline: this process, with your own stack trace",
        MACHINE,
        choices=("ray", "inline"),
    )
    ray_address: str | None = knob(
        None, "join this Ray cluster (host:port, or auto for one on this machine) instead of starting one", MACHINE
    )
    on_client_error: str = knob(
        "stop", "what a client that raises does: end the run, or be left out", RUN, choices=("stop", "drop")
    )
    checkpoint_every: int = knob(
        1,
        "rounds between checkpoints that --resume goes on from; 0 for none (sim run only: what clients elsewhere "
        "hold cannot be kept)",
        RUN,
        unit="rounds",
        low=0,
    )
    max_retries: int = knob(
        2, "how often a client whose process died is trained again before it counts as one that raised", RUN, low=0
    )
    client_timeout: float | None = knob(
        None,
        "a client that takes longer counts as one that raised, and its process is replaced; no limit unless given",
        RUN,
        unit="seconds",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction_fit is None and self.clients_per_round is None:
            object.__setattr__(self, "fraction_fit", 0.2)
        if self.fraction_fit is not None and self.clients_per_round is not None:
            raise ConfigError(
                f"--fraction-fit {self.fraction_fit:g} and --clients-per-round {self.clients_per_round}: "
                "give one of the two"
            )
        if self.clients_per_round is not None and self.clients_per_round > self.num_clients:
            raise ConfigError(
                f"--clients-per-round {self.clients_per_round}: must be at most --num-clients {self.num_clients}"
            )
        for name, count in (
            ("fraction_fit", self.num_fit_clients),
            ("fraction_evaluate", self.num_evaluate_clients),
        ):
            fraction = getattr(self, name)
            if fraction and not count:
                raise ConfigError(
                    f"{flag_of(name)} {fraction:g}: picks none of {self.num_clients} clients; "
                    f"at least {1 / self.num_clients:g} picks one"
                )
        if self.vectorized_clients is not None and self.local_training == "sequential":
            raise ConfigError(
                f"--vectorized-clients {self.vectorized_clients}: belongs to --local-training vectorized or auto"
            )
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError(f"--ray-address {self.ray_address}: belongs to --engine ray, not to {self.engine}")
        if self.dp_args and self.dp is None:
            raise ConfigError(f"--dp-args {', '.join(self.dp_args)}: belong to --dp fixed or adaptive")
        if self.fraction_evaluate and not self.eval_share:
            raise ConfigError(
                f"--eval-share 0: --fraction-evaluate {self.fraction_evaluate:g} needs examples to evaluate on; above 0"
            )

    @property
    def gpus_of_a_client(self) -> float:
        """``num_gpus`` as a number; 0 while ``auto`` is not resolved."""
        return 0.0 if self.num_gpus == "auto" else self.num_gpus

    @property
    def client_resources(self) -> dict[str, float]:
        """What Ray reserves for one actor; as no share lies on two GPUs, as much as makes equal shares of one."""
        share = self.gpus_of_a_client
        return {"num_cpus": self.num_cpus, "num_gpus": 1 / int(1 / share + 1e-9) if 0 < share < 1 else share}

    @property
    def num_fit_clients(self) -> int:
        """How many clients train in a round."""
        if self.clients_per_round is not None:
            return self.clients_per_round
        return _share_of(self.num_clients, self.fraction_fit or 0.0)

    @property
    def num_evaluate_clients(self) -> int:
        """How many clients evaluate in a round."""
        return _share_of(self.num_clients, self.fraction_evaluate)


@dataclass(frozen=True, kw_only=True)
class CentralizedConfig(TrainingConfig):
    """Training of the same model on all the data in one place, with the tutorial's settings as defaults."""

    epochs: int = knob(2, "passes over the training data", MODEL, unit="epochs", low=1)
    batch_size: int = other_default(TrainingConfig, "batch_size", 32)
    lr: float = other_default(TrainingConfig, "lr", 0.001)
    momentum: float = other_default(TrainingConfig, "momentum", 0.9)


def _share_of(num_clients: int, fraction: float) -> int:
    # 100 × 0.29 is 28.999999999999996: without the margin, 29 % of 100 clients were 28.
    return math.floor(num_clients * fraction + 1e-9)
