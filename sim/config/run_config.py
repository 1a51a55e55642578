"""The settings of a federated run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from sim.config.choices import (
    ALGORITHMS,
    ASYNCHRONOUS,
    ATTACKS,
    PARTITIONERS,
    STRATEGIES,
    STRATEGIES_OF_FLOWER,
    WITH_ALPHA,
    WITH_COLUMN,
)
from sim.config.evaluation import EvaluationConfig
from sim.config.fields import MOST, default_of, flag_of, given_as, setting
from sim.config.settings_of_flower_programs import USED_BY
from sim.config.training_config import MACHINE, MODEL, RUN, CentralizedConfig, TrainingConfig
from sim.errors import ConfigError

__all__ = ["AppConfig", "CentralizedConfig", "RunConfig", "TrainingConfig"]

CLIENTS, STRATEGY = "clients", "strategy"

_OF_ROUNDS = ("over_select", "deadline", "deadline_quantile", "partial_work", "min_reports")
_OF_DEVICES = (*_OF_ROUNDS, "availability", "client_steps")


@dataclass(frozen=True, kw_only=True)
class RunConfig(EvaluationConfig):
    """The settings of one federated run.

    After construction, exactly one of ``fraction_fit`` and ``clients_per_round`` has a value, unless an app decides.

    Raises:
        ConfigError: a value has the wrong type, is not valid, or contradicts another value.
    """

    num_clients: int = setting(
        100,
        "number of clients, each with its own partition; where it is left at the default, all natural clients of the "
        "data",
        CLIENTS,
        low=1,
        high=MOST,
    )
    fraction_fit: float | None = setting(
        None,
        "fraction of the clients that train in a round; 0.2, but at least one client, if not given",
        CLIENTS,
        above=0,
        high=1,
        instead_of="clients_per_round",
    )
    clients_per_round: int | None = setting(
        None, "number of clients that train in a round, instead of --fraction-fit", CLIENTS, low=1, high=MOST
    )
    num_rounds: int = setting(30, "number of training rounds", CLIENTS, low=1, high=MOST)
    client_dropout: float = setting(
        0.0,
        "probability with which a client that was chosen for training sends nothing back; drawn for each round and "
        "client",
        CLIENTS,
        low=0,
        below=1,
    )
    sample_seed: int | None = setting(
        None,
        "seed from which the clients of a round are drawn; if not given, --seed; data, partition, first weights and "
        "training always follow from --seed",
        CLIENTS,
        low=0,
        high=2**63 - 1,
    )
    partitioner: str = setting(
        "auto",
        "how examples are assigned to clients; auto takes natural where the data say to which client an example "
        "belongs, dirichlet where they have classes, and iid otherwise",
        CLIENTS,
        choices=PARTITIONERS,
    )
    partition_by: str | None = setting(
        None,
        "column by which examples are assigned to clients; the target, or the natural clients, if not given",
        CLIENTS,
        belongs_to=("partitioner", WITH_COLUMN),
    )
    partitioner_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of the partitioner in flwr-datasets, e.g. num_classes_per_partition=3 or self_balancing=true",
        CLIENTS,
        argument_of="partitioner",
    )
    alpha: float = setting(
        0.5,
        "concentration of the Dirichlet distribution; with a small value, each client has few classes, or, by "
        "--partitioner quantity, few clients have most examples",
        CLIENTS,
        above=0,
        belongs_to=("partitioner", WITH_ALPHA),
    )
    feature_noise: float = setting(
        0.0,
        "standard deviation of the Gaussian noise that the last client adds to its training inputs; client i of 0 to "
        "N-1 adds i/(N-1) of it; for images, pixels are from 0 to 1",
        CLIENTS,
        low=0,
        high=1e6,
    )
    min_partition_size: int = setting(
        1, "smallest number of examples that a client may have", CLIENTS, unit="examples", low=1, high=MOST
    )
    local_epochs: int = setting(5, "passes over a client's examples per round", MODEL, unit="epochs", low=1, high=MOST)
    stragglers: float = setting(
        0.0,
        "fraction of a round's clients that are slow: each has time for 1 to --local-epochs passes only, at random",
        CLIENTS,
        low=0,
        high=1,
    )
    straggler_policy: str = setting(
        "keep",
        "what becomes of slow clients: their passes are averaged as FedProx does it, or they are dropped as in FedAvg",
        CLIENTS,
        choices=("keep", "drop"),
    )
    max_local_steps: int | None = setting(
        None,
        "largest number of training steps of a client per round; no limit if not given",
        MODEL,
        unit="steps",
        low=1,
        high=MOST,
    )
    local_training: str = setting(
        "auto",
        "vectorized trains several clients in one computation; auto does so if the model and the training function "
        "allow it: on a GPU, and on CPUs where a model has few weights",
        MODEL,
        choices=("sequential", "vectorized", "auto"),
    )
    vectorized_clients: int | None = setting(
        None,
        "number of clients in one computation; if not given, it follows from the clients per round and, on a GPU, from "
        "the number of processes and the memory",
        MODEL,
        low=1,
        high=1_000_000,  # as many batches stand in one array
        belongs_to=("local_training", ("vectorized", "auto")),
    )
    client: str | None = setting(
        None, "your own flwr NumPyClient or Client, as package.module:Class", MODEL, importable=True
    )
    client_fn: str | None = setting(
        None,
        "your own client_fn(context) or client_fn(cid) of a Flower program, whose clients bring their own data and "
        "model; a --model gives the first weights",
        MODEL,
        importable=True,
    )
    app: str | None = setting(None, "folder of a Flower app, with its pyproject.toml; sim app DIR does the same", MODEL)
    run_config: dict[str, bool | int | float | str] = setting(
        {},
        'run config of a Flower program, as for flwr run, e.g. "lr=0.1 local-epochs=2", or a file as FILE.toml',
        MODEL,
    )
    strategy: str = setting(
        "fedavg",
        "strategy of Flower; an algorithm that also changes what clients do: scaffold (Karimireddy et al. 2020, "
        "algorithm 1), fednova (Wang et al. 2020, algorithm 1), feddyn (Acar et al. 2021, algorithm 1), moon (Li, He, "
        "Song 2021, algorithm 1), ditto (Li et al. 2021, algorithm 1), fedper (Arivazhagan et al. 2019, algorithms 1 "
        "and 2), fedrep (Collins et al. 2021, algorithm 1), fedbn (Li et al. 2021, algorithm 1), lg-fedavg (Liang et "
        "al. 2020, algorithm 1), fedbabu (Oh et al. 2022, algorithm 1), apfl (Deng et al. 2020, algorithm 1), pfedme "
        "(Dinh et al. 2020, algorithm 1); fedasync (Xie et al. 2019, algorithm 1) and fedbuff (Nguyen et al. 2022, "
        "algorithm 1), which are asynchronous; or your own class, of flwr.server.strategy or flwr.serverapp.strategy",
        STRATEGY,
        choices=STRATEGIES,
        importable=True,
    )
    strategy_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of the strategy, e.g. proximal_mu=0.1 or eta=0.01 tau=0.001",
        STRATEGY,
        argument_of="strategy",
    )
    server_lr: float | None = setting(
        None,
        "learning rate η of the server: w + η · (w' - w), where w' is what the strategy makes of the clients; eta of "
        "fedadam, fedadagrad and fedyogi, server_learning_rate of fedavgm, server_lr of fedbuff; "
        "1 or theirs if not given",
        STRATEGY,
        above=0,
        high=1e6,
    )
    local_parameters: str | None = setting(
        None,
        "parameters that stay with each client, as names or patterns of the state_dict separated by commas, e.g. "
        "'fc3.*'; if not given, what the strategy says: the classifier for fedper, fedrep and fedbabu, all but it for "
        "lg-fedavg, BatchNorm layers for fedbn, and nothing for the others; empty for nothing",
        STRATEGY,
    )
    server_strategy: str = setting(
        "fedavg",
        "strategy of Flower by which the server of fedbuff, scaffold, fedrep and the like takes its step, e.g. fedadam",
        STRATEGY,
        choices=STRATEGIES_OF_FLOWER,
        belongs_to=("strategy", (*ALGORITHMS, "fedbuff")),
    )
    server_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of --server-strategy, e.g. eta=0.01",
        STRATEGY,
        argument_of="server_strategy",
    )
    dp: str | None = setting(
        None,
        "differential privacy for a strategy that averages: the server clips each client's update and adds noise to "
        "the average",
        STRATEGY,
        choices=("fixed", "adaptive"),
    )
    dp_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of --dp, e.g. noise_multiplier=1.0 clipping_norm=0.5",
        STRATEGY,
        argument_of="dp",
    )
    attack: str | None = setting(
        None,
        "what attackers do: train on flipped classes, or send something else than they have trained",
        STRATEGY,
        choices=ATTACKS,
    )
    attack_share: float = setting(
        0.2,
        "fraction of the clients (rounded down) that are attackers; 0 for none",
        STRATEGY,
        low=0,
        below=1,
        belongs_to=("attack", ATTACKS),
    )
    attack_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of --attack: scale of sign-flip, sigma of gaussian, z and knowledge=all of alie, epsilon of ipm",
        STRATEGY,
        argument_of="attack",
    )
    num_cpus: float = setting(1.0, "CPUs per client, as in Flower's client_resources", MACHINE, low=0.01)
    num_gpus: float | Literal["auto"] = setting(
        0.0,
        "GPUs per client; with 0.1, ten clients share a GPU if there are enough CPUs; auto first measures one client",
        MACHINE,
        low=0,
        auto=True,
    )
    engine: str = setting(
        "ray",
        "ray runs clients in several processes, one per num_cpus CPUs; inline runs them in this process, so that an "
        "error shows the stack trace of your own code",
        MACHINE,
        choices=("ray", "inline"),
    )
    ray_address: str | None = setting(
        None,
        "running Ray cluster to use instead of starting one: host:port, or auto for one on this machine",
        MACHINE,
        belongs_to=("engine", ("ray",)),
    )
    niceness: int = setting(
        0,
        "how far the processes of clients step back behind other programs, from 0 to 19, as in the command nice",
        MACHINE,
        low=0,
        high=19,
        belongs_to=("engine", ("ray",)),
    )
    on_client_error: str = setting(
        "stop",
        "what happens if a client raises: the run stops, or the client is dropped from the round",
        RUN,
        choices=("stop", "drop"),
    )
    checkpoint_every: int = setting(
        1,
        "rounds between the checkpoints from which --resume continues; 0 for no checkpoints (not in sim server, "
        "which cannot save the state of its clients)",
        RUN,
        unit="rounds",
        low=0,
        high=MOST,
    )
    keep_checkpoints: int = setting(
        2,
        "number of checkpoints that are kept; with 1, a run whose checkpoint is damaged cannot be resumed",
        RUN,
        low=1,
        high=MOST,
    )
    max_retries: int = setting(
        2,
        "number of retries of a client whose process died, before it counts as a client that raised",
        RUN,
        low=0,
        high=MOST,
    )
    client_timeout: float | None = setting(
        None,
        "time limit of a client; a client that takes longer counts as a client that raised, and its process is "
        "replaced; no limit if not given",
        RUN,
        unit="seconds",
        above=0,
        high=10_000_000,  # four months; the clocks of the operating system and of Ray end far above
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server_args and self.strategy not in (*ALGORITHMS, "fedbuff"):
            names = ", ".join((*ALGORITHMS, "fedbuff"))
            raise ConfigError(f"--server-args {', '.join(self.server_args)}: belong to --strategy {names}")
        if self.client_fn is not None and self.model == "auto" and (self.args or self.model_args):
            name, given = ("args", self.args) if self.args else ("model_args", self.model_args)
            raise ConfigError(
                f"{given_as(name, given)}: has no effect with --client-fn without --model; --run-config gives values "
                "to a Flower program"
            )
        if self.client_fn is not None and self.strategy in ALGORITHMS:
            raise ConfigError(
                f"--strategy {self.strategy}: changes what clients do, but those of --client-fn {self.client_fn} are "
                "whole already; use --program with its model and data"
            )
        if self.app is None:
            self._check_warmup(self.num_rounds, "--num-rounds")
        self._check_clients()

    def _check_clients(self) -> None:
        if self.app is not None and self.client_fn is not None:
            raise ConfigError(f"--app {self.app} and --client-fn {self.client_fn}: give one of the two")
        if self.run_config and not (self.app or self.client_fn or self.client):
            raise ConfigError(f"--run-config {', '.join(self.run_config)}: belongs to --app or --client-fn")
        if self.fraction_fit is None and self.clients_per_round is None and self.app is None:
            if _share_of(self.num_clients, 0.2):
                object.__setattr__(self, "fraction_fit", 0.2)
            else:
                object.__setattr__(self, "clients_per_round", 1)
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
            ("attack_share", self.num_attackers),
        ):
            fraction = getattr(self, name) if self.is_used(name) else None
            if fraction and not count:
                raise ConfigError(
                    f"{flag_of(name)} {fraction:g}: picks none of {self.num_clients} clients; "
                    f"at least {1 / self.num_clients:g} picks one"
                )
        if self.straggler_policy != "keep" and not self.stragglers:
            raise ConfigError(f"--straggler-policy {self.straggler_policy}: belongs to --stragglers above 0")
        if self.dp_args and self.dp is None:
            raise ConfigError(f"--dp-args {', '.join(self.dp_args)}: belong to --dp fixed or adaptive")
        self._check_attack()
        self._check_virtual_time()
        self._check_evaluation()

    def _check_attack(self) -> None:
        if self.attack_args and self.attack is None:
            raise ConfigError(f"--attack-args {', '.join(self.attack_args)}: belong to --attack {', '.join(ATTACKS)}")
        if self.attack is not None and self.dp is not None:
            raise ConfigError(
                f"--attack {self.attack} and --dp {self.dp}: give one of the two; --dp clips and blurs what attackers "
                "send, so that a run would measure neither"
            )

    def _check_virtual_time(self) -> None:
        if self.mode == "async" and not self.is_asynchronous:
            raise ConfigError(
                f"--mode async: belongs to --strategy {' or '.join(ASYNCHRONOUS)}, not to {self.strategy}"
            )
        if self.mode == "sync" and self.is_asynchronous:
            raise ConfigError(f"--mode sync: --strategy {self.strategy} is asynchronous; use --mode async, or auto")
        if self.is_asynchronous and self.devices is None:
            object.__setattr__(self, "devices", "uniform")
        given = {name: getattr(self, name) for name in _OF_DEVICES if getattr(self, name) != getattr(RunConfig, name)}
        for name, value in given.items():
            if self.devices is None:
                raise ConfigError(f"{given_as(name, value)}: needs the virtual seconds of --devices, e.g. uniform")
            if self.is_asynchronous and name in _OF_ROUNDS:
                raise ConfigError(f"{given_as(name, value)}: belongs to --mode sync, in which clients wait for others")
        if self.availability_args and self.availability is None:
            names = ", ".join(self.availability_args)
            raise ConfigError(f"--availability-args {names}: belong to --availability")
        if self.device_args and self.devices is None:
            raise ConfigError(f"--device-args {', '.join(self.device_args)}: belong to --devices")
        if self.sampler_args and self.sampler == RunConfig.sampler:
            raise ConfigError(f"--sampler-args {', '.join(self.sampler_args)}: --sampler uniform takes no arguments")
        if self.deadline is not None and self.deadline_quantile is not None:
            raise ConfigError(
                f"--deadline {self.deadline:g} and --deadline-quantile {self.deadline_quantile:g}: give one of the two"
            )
        if self.partial_work and self.deadline is None and self.deadline_quantile is None:
            raise ConfigError("--partial-work: needs --deadline or --deadline-quantile, which clients would miss")
        self._check_numbers_of_clients()

    def _check_numbers_of_clients(self) -> None:
        if self.over_select > 1 and self.num_asked_clients > self.num_clients:
            raise ConfigError(
                f"--over-select {self.over_select:g}: asks {self.num_asked_clients} clients in a round, but there are "
                f"{self.num_clients}; at most {self.num_clients / self.num_fit_clients:g}"
            )
        if self.app is None and self.min_reports > self.num_fit_clients:
            raise ConfigError(
                f"--min-reports {self.min_reports}: must be at most {self.num_fit_clients}, the number of clients that "
                "train per round"
            )
        if self.num_concurrent > self.num_clients:
            raise ConfigError(f"--concurrency {self.num_concurrent}: at most --num-clients {self.num_clients}")

    @classmethod
    def _check_places(cls, values: dict[str, Any], *, but_defaults: bool = False) -> None:
        super()._check_places(values, but_defaults=but_defaults)
        for program, used in USED_BY.items():
            if values.get(program) is None:
                continue
            for config_field in fields(cls):
                name = config_field.name
                value = values.get(name)
                is_default = value in (None, {}) or (but_defaults and value == default_of(config_field))
                if name not in used and name not in USED_BY and not is_default:
                    reason = "a Flower program has its own data, training and tests"
                    raise ConfigError(f"{given_as(name, value)}: has no effect with {flag_of(program)}; {reason}")

    def is_used(self, name: str) -> bool:
        """Return whether a setting has an effect, beside the other settings."""
        for program, used in USED_BY.items():
            if getattr(self, program) is not None:
                return name in used and super().is_used(name)
        return super().is_used(name)

    @property
    def has_own_data(self) -> bool:
        """Whether the clients are those of a Flower program, which bring their own data."""
        return self.app is not None or self.client_fn is not None

    @property
    def gpus_of_a_client(self) -> float:
        """Return ``num_gpus`` as a number; it is 0 while ``auto`` is not resolved."""
        return 0.0 if self.num_gpus == "auto" else self.num_gpus

    @property
    def client_resources(self) -> dict[str, float]:
        """Return the CPUs and GPUs that Ray reserves for one actor.

        A share of a GPU cannot be spread over two GPUs, so it is rounded up to 1/n of a GPU.
        """
        share = self.gpus_of_a_client
        return {"num_cpus": self.num_cpus, "num_gpus": 1 / int(1 / share + 1e-9) if 0 < share < 1 else share}

    @property
    def num_fit_clients(self) -> int:
        """Return the number of clients that train in a round."""
        if self.clients_per_round is not None:
            return self.clients_per_round
        return _share_of(self.num_clients, self.fraction_fit or 0.0)

    @property
    def num_asked_clients(self) -> int:
        """Return the number of clients that are asked to train in a round, of which the first ones are taken."""
        return math.ceil(self.num_fit_clients * self.over_select - 1e-9)

    @property
    def is_asynchronous(self) -> bool:
        """Whether a round is a version of the model that is made while other clients train."""
        return self.strategy in ASYNCHRONOUS

    @property
    def num_concurrent(self) -> int:
        """Return the number of clients that train at the same time, where rounds are asynchronous."""
        return self.concurrency or self.num_fit_clients

    @property
    def num_attackers(self) -> int:
        """Return the number of clients that are attackers."""
        return 0 if self.attack is None else _share_of(self.num_clients, self.attack_share)

    @property
    def forges_updates(self) -> bool:
        """Whether attackers send something else than they have trained, for which each client's weights are needed."""
        return self.num_attackers > 0 and self.attack != "label-flip"

    @property
    def seed_of_samples(self) -> int:
        """Return the seed from which the clients of a round are drawn."""
        return self.seed if self.sample_seed is None else self.sample_seed

    @property
    def num_evaluate_clients(self) -> int:
        """Return the number of clients that evaluate in a round."""
        return _share_of(self.num_clients, self.fraction_evaluate)


@dataclass(frozen=True, kw_only=True)
class AppConfig(RunConfig):
    """The settings of a run of a Flower app, which decides its own number of rounds and strategy."""

    num_clients: int = setting(10, "number of clients (supernodes)", CLIENTS, low=1, high=MOST)
    num_rounds: int = setting(
        0, "number of rounds instead of the one that the app asks for; 0 for the app's own", CLIENTS, low=0, high=MOST
    )

    def is_used(self, name: str) -> bool:
        """Return whether a setting has an effect."""
        return super().is_used(name) and (name != "num_rounds" or self.num_rounds > 0)


def config_type_of(values: Mapping[str, Any]) -> type[RunConfig]:
    """Return the class of the config that has these settings."""
    return AppConfig if values.get("app") is not None else RunConfig


def _share_of(num_clients: int, fraction: float) -> int:
    # 100 × 0.29 is 28.999999999999996: without the margin, 29 % of 100 clients would be 28.
    return math.floor(num_clients * fraction + 1e-9)
