"""Builds strategies by name and arguments: those of ``flwr.server.strategy``, unmodified, or the user's own class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import flwr.server.strategy
import flwr.serverapp.strategy
from flwr.common import NDArrays, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import Strategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim import user_code
from sim.algorithms.algorithm import Algorithm, made
from sim.algorithms.by_name import ALGORITHMS
from sim.config.fields import Setting, flag_of
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, PluginError, described
from sim.process_settings import restored_settings
from sim.run_folder.log import quiet
from sim.seeds import Purpose, seeded
from sim.server.async_rules import rule_of
from sim.server.privacy import DELTA
from sim.server.visible_weights import UnknownWeights, VisibleWeights
from sim.training.weights import WeightLayout

EvaluateFn = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]]]


@dataclass(frozen=True)
class Entry:
    """A strategy of Flower.

    Attributes:
        averages: it uses only the weighted mean of the clients, so that one mean can stand for all of them.
        adaptive: it steps from the old weights instead of taking a mean or choosing among clients.
        rate: its argument that is the learning rate of the server; empty if it has none.
        is_newer: it is one of ``flwr.serverapp.strategy``, which sends messages.
        defaults: arguments that Flower requires, or whose default does not train a small CNN.
    """

    class_name: str
    averages: bool
    adaptive: bool = False
    rate: str = ""
    is_newer: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


STRATEGIES = {
    "fedavg": Entry("FedAvg", averages=True),
    "fedprox": Entry("FedProx", averages=True, defaults={"proximal_mu": 0.1}),
    "fedavgm": Entry(
        "FedAvgM", averages=True, adaptive=True, rate="server_learning_rate", defaults={"server_momentum": 0.5}
    ),
    # With Flower's τ = 1e-9 single weights take steps that end in a constant model; these values were seen to learn.
    "fedadam": Entry("FedAdam", averages=True, adaptive=True, rate="eta", defaults={"eta": 0.03, "tau": 0.01}),
    "fedadagrad": Entry("FedAdagrad", averages=True, adaptive=True, rate="eta", defaults={"eta": 0.05, "tau": 0.01}),
    "fedyogi": Entry("FedYogi", averages=True, adaptive=True, rate="eta", defaults={"eta": 0.01}),
    "fedmedian": Entry("FedMedian", averages=False),
    "fedtrimmedavg": Entry("FedTrimmedAvg", averages=False),
    # A client with few classes learns little: average the ten closest clients (multi-Krum, Blanchard et al. 2017).
    "krum": Entry("Krum", averages=False, defaults={"num_clients_to_keep": 10}),
    "multikrum": Entry("MultiKrum", averages=False, is_newer=True, defaults={"num_nodes_to_select": 10}),
    "bulyan": Entry("Bulyan", averages=False, defaults={"to_keep": 0}),
    # The older form weights all clients by one central test loss; this one weights each by its own loss, as the paper
    # does (Li et al. 2020, algorithm 2).
    "qfedavg": Entry("QFedAvg", averages=False, adaptive=True, is_newer=True),
}

# Outside of these, Flower's strategies compute something else than the method whose name they have.
_RANGES: dict[str, Setting] = {
    **dict.fromkeys(("proximal_mu", "q", "num_clients_to_keep"), Setting("", "", low=0)),
    "to_keep": Setting("", "", low=0, high=1),  # Bulyan picks one client after another
    **dict.fromkeys(("num_malicious_clients", "num_malicious_nodes"), Setting("", "", low=0)),
    "num_nodes_to_select": Setting("", "", low=1),
    **dict.fromkeys(("server_learning_rate", "client_learning_rate", "eta", "eta_l", "tau"), Setting("", "", above=0)),
    **dict.fromkeys(("server_momentum", "beta_1", "beta_2"), Setting("", "", low=0, below=1)),
    "beta": Setting("", "", low=0, below=0.5),
}

PRIVACY = {
    "fixed": Entry(
        "DifferentialPrivacyServerSideFixedClipping",
        averages=False,
        defaults={"noise_multiplier": 0.1, "clipping_norm": 1.0},
    ),
    "adaptive": Entry(
        "DifferentialPrivacyServerSideAdaptiveClipping", averages=False, defaults={"noise_multiplier": 0.1}
    ),
}
_OF_TREES = tuple(
    getattr(flwr.server.strategy, name)
    for name in ("FedXgbBagging", "FedXgbCyclic", "FedXgbNnAvg")
    if hasattr(flwr.server.strategy, name)
)
_CLIENT_SIDE = (
    flwr.server.strategy.DifferentialPrivacyClientSideFixedClipping,
    flwr.server.strategy.DifferentialPrivacyClientSideAdaptiveClipping,
)


@dataclass(frozen=True)
class BuiltStrategy:
    """A strategy, whether it needs only the mean of its clients, and which arrays of the model it sees.

    Attributes:
        algorithm: turns what clients sent into the mean that the strategy gets.
        server_lr: the learning rate of the server, where the strategy has none of its own.
        has_clock: clients are chosen in virtual time or by a sampler, which have a state, too.
        clock: that state, as it is before the first round.
        has_validation: the run knows its best round, which is a state, too.
    """

    strategy: Strategy | MessageStrategy
    averages: bool
    view: VisibleWeights
    algorithm: Algorithm | None = None
    server_lr: float = 1.0
    has_clock: bool = False
    clock: dict[str, Any] = field(default_factory=dict)
    has_validation: bool = False

    @property
    def kept(self) -> Any:
        """What belongs to a checkpoint: the strategy, the server part of the algorithm, clock, best round."""
        others: dict[str, Any] = {} if self.algorithm is None else {"algorithm": self.algorithm.state()}
        if self.has_clock:
            others["clock"] = self.clock
        if self.has_validation:
            others["validation"] = {}
        return {"strategy": self.strategy, **others} if others else self.strategy


def build(
    config: RunConfig,
    initial_weights: NDArrays,
    layout: WeightLayout,
    evaluate_fn: EvaluateFn | None,
    given: Any = None,
) -> BuiltStrategy:
    """Make the configured strategy, see ``_build``."""
    server_lr = _server_lr(config, given)
    built = _build(config, initial_weights, layout, evaluate_fn, given)
    check_takes_arrays(built.strategy)
    return replace(built, server_lr=server_lr, has_clock=_has_clock(config), has_validation=config.validation_share > 0)


def check_takes_arrays(strategy: Any) -> None:
    """Check that what clients send to a strategy are arrays.

    Raises:
        PluginError: they are trees of XGBoost as bytes of JSON.
    """
    if isinstance(strategy, _OF_TREES):
        raise PluginError(
            f"--strategy {type(strategy).__name__}: its trees are bytes, which are no arrays; "
            "flwr.serverapp.strategy has FedXgbBagging and FedXgbCyclic for arrays, which sim app runs"
        )


def _server_lr(config: RunConfig, given: Any) -> float:
    """Return the learning rate by which the round loop steps to what a strategy makes; 1 takes that as it is.

    Raises:
        ConfigError: ``server_lr`` has no place in this strategy.
    """
    if config.server_lr is None:
        return 1.0
    name = f"--server-lr {config.server_lr:g}: --strategy {config.strategy}"
    if config.strategy == "fedasync":
        raise ConfigError(f"{name} mixes each update by its own share; use --strategy-args alpha={config.server_lr:g}")
    if config.strategy == "fedbuff":
        return 1.0  # its own argument
    of_server = config.strategy in ALGORITHMS
    used = config.server_strategy if of_server else config.strategy
    entry = STRATEGIES.get(used)
    if entry is None or given is not None:
        raise ConfigError(f"{name} is your own, which takes its own steps; give it an argument for that")
    if used == "qfedavg":
        prefix, flag = ("--server-", "--server-args") if of_server else ("--", "--strategy-args")
        raise ConfigError(
            f"--server-lr {config.server_lr:g}: {prefix}strategy qfedavg steps by {flag} client_learning_rate, which "
            "is --lr if not given"
        )
    return 1.0 if entry.rate else config.server_lr


def _own_rate(config: RunConfig, entry: Entry | None) -> dict[str, Any]:
    """Return ``server_lr`` as an argument of a strategy that has one for it.

    Raises:
        ConfigError: its arguments say the same.
    """
    if entry is None or not entry.rate or config.server_lr is None:
        return {}
    if entry.rate in config.strategy_args:
        raise ConfigError(
            f"--server-lr {config.server_lr:g} and --strategy-args {entry.rate}={config.strategy_args[entry.rate]}: "
            "give one of the two"
        )
    return {entry.rate: config.server_lr}


def _build(
    config: RunConfig,
    initial_weights: NDArrays,
    layout: WeightLayout,
    evaluate_fn: EvaluateFn | None,
    given: Any = None,
) -> BuiltStrategy:
    """Make the configured strategy.

    The user's own class is called with those of Flower's usual arguments that it accepts. It gets the weights of every
    client unless it has an attribute ``averages_clients = True``. What is not trained is the clients' mean in the end
    unless it has an attribute ``aggregates_buffers = True``.

    Args:
        given: the user's own strategy, or its class, instead of the one that the config names.

    Raises:
        ConfigError: ``strategy_args`` has an unknown argument or a wrong value.
        PluginError: the user's class is missing, cannot be made or is not a Strategy.
    """
    if given is None and config.strategy in ALGORITHMS:
        return _with_algorithm(config, initial_weights, layout, evaluate_fn)
    if given is None and config.is_asynchronous:
        rule_of(config)
        return _of_mean(config, initial_weights, layout, evaluate_fn)
    if isinstance(given, Strategy | MessageStrategy):
        return _as_given(config, given, layout, initial_weights)
    entry = STRATEGIES.get(config.strategy) if given is None else None
    own: Any = _class_of(entry) if entry else given or user_code.load(config.strategy, "--strategy")
    view = _view_of(config, layout, entry, own)
    parameters = ndarrays_to_parameters(view.of(initial_weights)) if initial_weights else None
    arguments = _arguments(config, own, entry, {"initial_parameters": parameters, "evaluate_fn": evaluate_fn})
    _check_bulyan(config, arguments)
    if entry is None:
        made = _made_by_user(config, own, arguments)
        return _private(config, BuiltStrategy(made, bool(getattr(made, "averages_clients", False)), view))
    try:
        with quiet("flwr", show=config.verbose):  # it warns of evaluations that nobody asked for
            made = own(**arguments)
    except ValueError as error:
        raise ConfigError(f"--strategy-args of {config.strategy}: {error}") from error
    return _private(config, BuiltStrategy(made, entry.averages, view))


def _view_of(config: RunConfig, layout: WeightLayout, entry: Entry | None, own: Any) -> VisibleWeights:
    """Return which arrays of the model a strategy sees.

    Args:
        entry: None for a strategy of the user's own.
        own: that strategy, or its class.
    """
    if not layout.is_known:
        return UnknownWeights()
    if entry is None:
        # With --dp the clients' mean, to which no noise is added, must not replace what has it.
        own_buffers = config.dp is not None or bool(getattr(own, "aggregates_buffers", False))
        return VisibleWeights.all_of(layout, own_buffers=own_buffers)
    if config.dp is not None:  # what has no noise must not come from the clients
        return VisibleWeights.some_of(layout, layout.trained, averages_others=False)
    return VisibleWeights.some_of(layout, layout.trained if entry.adaptive or entry.averages else layout.averageable)


def _arguments(config: RunConfig, own: Any, entry: Entry | None, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a class of strategies is called.

    Args:
        parts: the arguments of Flower's older form that are no numbers.

    Raises:
        ConfigError: ``strategy_args`` has an unknown argument or one that other settings decide.
    """
    num_fit, num_evaluate = config.num_asked_clients, config.num_evaluate_clients
    # FedAvg samples max(⌊N · fraction⌋, min_clients) clients: the exact number is passed as the minimum.
    older: dict[str, Any] = {
        "fraction_fit": num_fit / config.num_clients,
        "min_fit_clients": num_fit,
        "fraction_evaluate": config.fraction_evaluate,
        "min_evaluate_clients": num_evaluate,
        "min_available_clients": max(num_fit, num_evaluate),
        **parts,
    }
    newer: dict[str, Any] = {
        "fraction_train": num_fit / config.num_clients,
        "fraction_evaluate": config.fraction_evaluate,
        "min_train_nodes": num_fit,
        "min_evaluate_nodes": num_evaluate,
        # It waits for them before it chooses, among the clients of a round where a sampler has drawn these.
        "min_available_nodes": num_fit if _has_clock(config) else max(num_fit, num_evaluate),
    }
    # One that takes any arguments hands them to a class of Flower's, which takes those of its own form only.
    is_newer = isinstance(own, type) and issubclass(own, MessageStrategy)
    where_named = {**(older if is_newer else newer), "client_learning_rate": config.lr or config.BUILT_IN["lr"]}
    named = user_code.parameters_of(own)
    offered = {name: value for name, value in where_named.items() if name in named} | (newer if is_newer else older)
    user_code.check_arguments(own, config.strategy_args, {*older, *newer}, "--strategy-args", config.strategy)
    for name, value in config.strategy_args.items() if entry else ():
        if name in _RANGES and not _RANGES[name].admits(value):
            raise ConfigError(f"--strategy-args {name}={value}: must be {_RANGES[name].valid}")
    return {
        **user_code.accepted(own, offered),
        **(entry.defaults if entry else {}),
        **assumed(config),
        **config.strategy_args,
        **_own_rate(config, entry),
    }


def _made_by_user(config: RunConfig, own: Any, arguments: dict[str, Any]) -> Strategy | MessageStrategy:
    """Call the user's own class.

    Raises:
        PluginError: it raises, or makes no strategy that can be used here.
    """
    try:
        with restored_settings(), seeded(config.seed, Purpose.STRATEGY, repeat=1):
            strategy = own(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"--strategy {config.strategy}: cannot be made: {described(error)}") from error
    if not isinstance(strategy, Strategy | MessageStrategy):
        raise PluginError(
            f"--strategy {config.strategy}: made a {type(strategy).__name__}, not a flwr.server.strategy.Strategy or "
            "flwr.serverapp.strategy.Strategy"
        )
    if isinstance(strategy, _CLIENT_SIDE):
        raise PluginError(
            f"--strategy {config.strategy}: adds noise for updates that clients clip, but no client here uses "
            "Flower's clipping mod; use --dp fixed or adaptive, which clip at the server"
        )
    return strategy


def _with_algorithm(
    config: RunConfig, initial_weights: NDArrays, layout: WeightLayout, evaluate_fn: EvaluateFn | None
) -> BuiltStrategy:
    """Make the strategy by which the server takes its step, with the algorithm in front of it.

    Raises:
        ConfigError: an argument is wrong, or the two do not go together.
    """
    algorithm = made(ALGORITHMS[config.strategy], config.strategy_args, "--strategy-args", config.strategy)
    if config.dp is not None and not algorithm.SENDS_WEIGHTS:
        raise ConfigError(
            f"--dp {config.dp}: its noise is calibrated for weights that clients send and the server averages, but the "
            f"clients of {config.strategy} send something else; use another strategy"
        )
    if config.forges_updates and not algorithm.SENDS_WEIGHTS:
        raise ConfigError(
            f"--attack {config.attack}: replaces the weights that attackers send, but the clients of {config.strategy} "
            "send something else; use --attack label-flip or another strategy"
        )
    built = _of_mean(config, initial_weights, layout, evaluate_fn, needs_mean=not algorithm.SENDS_WEIGHTS)
    algorithm.begin([initial_weights[position] for position in layout.trained])
    return replace(built, algorithm=algorithm)


def _of_mean(
    config: RunConfig,
    initial_weights: NDArrays,
    layout: WeightLayout,
    evaluate_fn: EvaluateFn | None,
    *,
    needs_mean: bool = True,
) -> BuiltStrategy:
    """Make the strategy by which the server takes its step from the mean that an algorithm makes.

    Raises:
        ConfigError: an argument is wrong; or it compares clients, although it ``needs_mean`` only.
    """
    try:
        built = _build(_of_server(config), initial_weights, layout, evaluate_fn)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--strategy-args", "--server-args")) from None
    if needs_mean and not STRATEGIES[config.server_strategy].averages:
        averaging = ", ".join(name for name, entry in STRATEGIES.items() if entry.averages)
        raise ConfigError(
            f"--server-strategy {config.server_strategy}: compares the weights of clients, but there is only one mean "
            f"of those of {config.strategy}; use one of {averaging}"
        )
    return built


def _of_server(config: RunConfig) -> RunConfig:
    """Return the config of the strategy by which the server takes its step after an algorithm."""
    return replace(
        config,
        strategy=config.server_strategy,
        strategy_args=config.server_args,
        server_lr=None if config.is_asynchronous else config.server_lr,
        server_strategy=RunConfig.server_strategy,
        server_args={},
        mode="auto",
        concurrency=None,
        max_staleness=None,
    )


def assumed(config: RunConfig) -> dict[str, Any]:
    """Return what a robust strategy assumes of ``--attack``, apart from what its arguments say.

    It expects as many attackers in a round as their share of the clients, rounded up.
    """
    if not config.num_attackers:
        return {}
    if config.strategy in ALGORITHMS:
        config = _of_server(config)
    clients, share = config.num_fit_clients, config.attack_share
    malicious = min(clients, math.ceil(share * clients - 1e-9))
    kept = max(1, min(10, clients - malicious))  # not more than are honest
    defaults: dict[str, dict[str, Any]] = {
        "krum": {"num_malicious_clients": malicious, "num_clients_to_keep": kept},
        "multikrum": {"num_malicious_nodes": malicious, "num_nodes_to_select": kept},
        "bulyan": {"num_malicious_clients": malicious},
        # Flower cuts off 0.2 at both ends by default, and takes numbers below 0.5.
        "fedtrimmedavg": {"beta": min(share, 0.499)} if share > 0.2 else {},
    }
    found = defaults.get(config.strategy, {})
    return {name: value for name, value in found.items() if name not in config.strategy_args}


def notes_on_krum(config: RunConfig) -> Iterator[str]:
    """Yield what to know of krum and multikrum in rounds of this size; nothing for other strategies.

    They leave out attackers for certain among at least 2·f + 3 clients with f attackers (Blanchard et al. 2017,
    proposition 4.2).
    """
    names = {
        "krum": ("num_malicious_clients", "num_clients_to_keep"),
        "multikrum": ("num_malicious_nodes", "num_nodes_to_select"),
    }
    if config.strategy not in names:
        return
    given = {**STRATEGIES[config.strategy].defaults, **assumed(config), **config.strategy_args}
    malicious, kept = (given.get(name, 0) for name in names[config.strategy])
    clients = config.num_fit_clients
    if clients < 2 * malicious + 3 and malicious:
        yield (
            f"--strategy {config.strategy} with {names[config.strategy][0]}={malicious} needs at least "
            f"{2 * malicious + 3} clients in a round (2·f + 3) to leave out attackers for certain, and a round has "
            f"{clients}"
        )
    if kept >= clients:
        yield (
            f"--strategy {config.strategy} takes the mean of the {kept} clients that are closest to others, and a "
            f"round has {clients}: none is left out; give a smaller --strategy-args {names[config.strategy][1]}"
        )


def note_on_number_of_clients(config: RunConfig, strategy: Any) -> str | None:
    """Return what to know where one of Flower's strategies was made before and asks another number of clients."""
    if not type(strategy).__module__.startswith("flwr."):  # one of the user's may ask as it likes
        return None
    if config.clients_per_round in (None, 1) and config.fraction_fit in (None, 0.2):  # what nobody may have given
        return None
    if isinstance(strategy, flwr.server.strategy.FedAvg):
        asked = strategy.num_fit_clients(config.num_clients)[0]
    elif isinstance(strategy, flwr.serverapp.strategy.FedAvg):
        asked = max(int(strategy.fraction_train * config.num_clients), strategy.min_train_nodes)
    else:
        return None
    if asked == config.num_fit_clients:
        return None
    name = "fraction_fit" if config.clients_per_round is None else "clients_per_round"
    given = f"{flag_of(name)} {getattr(config, name):g}"
    return f"{given} has no effect, because the strategy was made before and asks {asked} clients per round"


def _check_bulyan(config: RunConfig, arguments: dict[str, Any]) -> None:
    """Check what Flower's Bulyan would raise in the first round.

    Raises:
        ConfigError: there are not enough clients in a round.
    """
    malicious = arguments.get("num_malicious_clients", 0)
    clients = config.num_fit_clients
    if config.strategy == "bulyan" and isinstance(malicious, int) and malicious >= 0 and clients < 4 * malicious + 3:
        fewer = f", a smaller --attack-share, or --strategy-args num_malicious_clients={(clients - 3) // 4}"
        raise ConfigError(
            f"--strategy bulyan: needs at least {4 * malicious + 3} clients in a round against {malicious} malicious "
            f"ones (4·f + 3), not {clients}; use more clients{fewer if clients >= 3 else ''}"
        )


def _has_clock(config: RunConfig) -> bool:
    return config.devices is not None or config.sampler != "uniform"


def _class_of(entry: Entry) -> Any:
    return getattr(flwr.serverapp.strategy if entry.is_newer else flwr.server.strategy, entry.class_name)


def _as_given(
    config: RunConfig, strategy: Strategy | MessageStrategy, layout: WeightLayout, initial_weights: NDArrays
) -> BuiltStrategy:
    """Use a strategy that the user has made; one of Flower's own classes averages as it does by its name.

    Raises:
        ConfigError: it begins with the weights of another model, or waits for more clients than there are.
    """
    kind = type(strategy)
    is_flowers = kind.__module__.startswith("flwr.")
    entry = next((e for e in STRATEGIES.values() if is_flowers and kind.__name__ == e.class_name), None)
    averages = bool(getattr(strategy, "averages_clients", False)) if entry is None else entry.averages
    view = _view_of(config, layout, entry, strategy)
    first = getattr(strategy, "initial_parameters", None)
    if isinstance(first, Parameters) and layout.is_known and initial_weights:
        shapes = [array.shape for array in parameters_to_ndarrays(first)]
        models = [[array.shape for array in arrays] for arrays in (view.of(initial_weights), initial_weights)]
        if shapes not in models:
            raise ConfigError(f"strategy: its initial_parameters have the shapes {shapes}, the model has {models[0]}")
    for name in ("min_available_clients", "min_fit_clients") if is_flowers else ():
        least = getattr(strategy, name, 0)
        if least > config.num_clients:
            raise ConfigError(f"strategy: its {name} is {least}, but num_clients is {config.num_clients}")
    return _private(config, BuiltStrategy(strategy, averages, view))


def _private(config: RunConfig, built: BuiltStrategy) -> BuiltStrategy:
    """Put differential privacy around an averaging strategy, if it is configured; attacks need each client.

    Raises:
        ConfigError: ``dp_args`` has a wrong value, or the strategy does not average.
    """
    if config.forges_updates:  # a mean would hide what each attacker sends
        return replace(built, averages=False)
    if config.dp is None:
        return built
    if not built.averages:
        averaging = ", ".join(name for name, entry in STRATEGIES.items() if entry.averages)
        raise ConfigError(
            f"--dp {config.dp}: its noise is calibrated for an average of clients, which {config.strategy} does not "
            f"compute; use one of {averaging}"
        )
    entry = PRIVACY[config.dp]
    is_newer = isinstance(built.strategy, MessageStrategy)
    wrapper = getattr(flwr.serverapp.strategy if is_newer else flwr.server.strategy, entry.class_name)
    given = {name: value for name, value in config.dp_args.items() if name != "target_delta"}
    user_code.check_arguments(wrapper, given, {"strategy", "num_sampled_clients"}, "--dp-args", f"--dp {config.dp}")
    delta = config.dp_args.get("target_delta", DELTA)
    if not (isinstance(delta, float) and 0 < delta < 1):
        raise ConfigError(f"--dp-args target_delta={delta}: must be a number above 0 and below 1")
    arguments = {**entry.defaults, "num_sampled_clients": config.num_fit_clients, **given}
    try:
        private = wrapper(built.strategy, **arguments)
    except ValueError as error:
        raise ConfigError(f"--dp-args of --dp {config.dp}: {error}") from error
    return BuiltStrategy(private, averages=False, view=built.view)
