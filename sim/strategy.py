"""Name + arguments → a strategy of ``flwr.server.strategy``, unmodified, or the user's own class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flwr.server.strategy
from flwr.common import NDArrays, Scalar, ndarrays_to_parameters
from flwr.server.strategy import Strategy

from sim import plugins
from sim.config import RunConfig
from sim.errors import ConfigError, PluginError

EvaluateFn = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]]]


@dataclass(frozen=True)
class Entry:
    """A strategy of Flower's.

    Attributes:
        averages: it uses the weighted mean of the clients only, so one mean can stand for all of them.
        defaults: arguments that Flower asks for, or whose default does not train a small CNN.
    """

    class_name: str
    averages: bool
    defaults: dict[str, Any] = field(default_factory=dict)


STRATEGIES = {
    "fedavg": Entry("FedAvg", averages=True),
    "fedprox": Entry("FedProx", averages=True, defaults={"proximal_mu": 0.1}),
    # Flower's τ = 1e-9 lets the first steps blow up; 1e-3 is what Reddi et al. (2021) settle on.
    "fedadam": Entry("FedAdam", averages=True, defaults={"eta": 0.01, "tau": 1e-3}),
}


@dataclass(frozen=True)
class Chosen:
    """A strategy and whether it needs only the mean of its clients."""

    strategy: Strategy
    averages: bool


def build(config: RunConfig, initial_weights: NDArrays, evaluate_fn: EvaluateFn) -> Chosen:
    """Make the configured strategy.

    The user's own class is called with those of Flower's usual arguments that it takes. It gets every
    client's weights unless it has an attribute ``averages_clients = True``.

    Raises:
        ConfigError: an unknown or unfit ``strategy_args``.
        PluginError: the user's class is missing, cannot be made or is no Strategy.
    """
    num_fit, num_evaluate = config.num_fit_clients, config.num_evaluate_clients
    # FedAvg takes max(⌊N · fraction⌋, min_clients): the exact number goes in as the minimum.
    offered: dict[str, Any] = {
        "fraction_fit": num_fit / config.num_clients,
        "min_fit_clients": num_fit,
        "fraction_evaluate": config.fraction_evaluate,
        "min_evaluate_clients": num_evaluate,
        "min_available_clients": max(num_fit, num_evaluate),
        "initial_parameters": ndarrays_to_parameters(initial_weights),
        "evaluate_fn": evaluate_fn,
    }
    entry = STRATEGIES.get(config.strategy)
    own: type[Strategy] = (
        getattr(flwr.server.strategy, entry.class_name) if entry else plugins.load(config.strategy, "--strategy")
    )
    _check_arguments(own, config, set(offered))
    arguments = {
        **plugins.accepted(own, offered),
        **(entry.defaults if entry else {}),
        **config.strategy_args,
    }
    if entry:
        return Chosen(own(**arguments), entry.averages)
    try:
        strategy = own(**arguments)
    except Exception as error:
        raise PluginError(
            f"--strategy {config.strategy}: cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(strategy, Strategy):
        raise PluginError(
            f"--strategy {config.strategy}: made a {type(strategy).__name__}, not a flwr.server.strategy.Strategy"
        )
    return Chosen(strategy, bool(getattr(strategy, "averages_clients", False)))


def _check_arguments(own: Callable[..., Any], config: RunConfig, reserved: set[str]) -> None:
    parameters = plugins.parameters_of(own)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [
        name
        for name, p in parameters.items()
        if name not in reserved and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    plain = [name for name in names if parameters[name].annotation in _PLAIN]
    for name, value in config.strategy_args.items():
        place = f"--strategy-args {name}={value}"
        if name in reserved or (name not in names and not open_ended):
            valid = ", ".join(plain) or "none"
            raise ConfigError(f"{place}: {config.strategy} takes these arguments: {valid}")
        wanted = _PLAIN.get(parameters[name].annotation) if name in parameters else None
        if wanted and type(value) not in wanted[0]:
            raise ConfigError(f"{place}: must be {wanted[1]}")


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    int: ((int,), "a whole number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
}
