"""Devices, availability, sampler and deadline of a run: made once and checked, so that nothing of it fails later."""

from __future__ import annotations

from dataclasses import replace

from flwr.server.strategy import Strategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim.algorithms.algorithm import Algorithm
from sim.client.torch_client import fit_settings
from sim.config.run_config import RunConfig
from sim.devices.by_name import Devices, devices_of
from sim.errors import ConfigError
from sim.server.prepared_run import Prepared
from sim.server.run_sampler import RunSampler
from sim.server.samplers import sampler_of
from sim.server.strategy import BuiltStrategy
from sim.server.virtual_rounds import check_deadline, num_waited_for, time_of

_NEED_RESULTS = ("power-of-choice", "oort")  # of earlier rounds


def with_devices(prepared: Prepared) -> Prepared:
    """Return what is prepared with its devices, if it has some.

    Raises:
        UsageError: a setting does not work, or does not go with another one.
    """
    config, strategy = prepared.config, prepared.strategy
    if strategy is None or not strategy.has_clock:
        return prepared
    if prepared.objects.client_manager is not None:
        raise ConfigError("client_manager: chooses the clients itself, so that --devices and --sampler have no place")
    _check_sampler(prepared, strategy)
    if not config.is_asynchronous:  # whose schedule is made anew in a resumed run
        clock = {"sampler": RunSampler(config, prepared.known_sizes).state()}
        prepared = replace(prepared, strategy=replace(strategy, clock=clock))
    if config.devices is None:
        return prepared
    if config.client_steps is not None and len(prepared.known_sizes):
        raise ConfigError(
            f"--client-steps {config.client_steps}: belongs to --client-fn, and to a program that partitions its data "
            "itself; the steps of other clients follow from their examples"
        )
    prepared = replace(prepared, devices=devices_of(config))
    if config.is_asynchronous:
        _check_asynchronous(config)
    if config.partial_work:
        _check_partial_work(prepared)
    if config.dp is not None:
        _check_privacy(config, prepared.devices)
    time = time_of(prepared)
    assert time is not None
    settings = fit_settings(config, 1) if prepared.dataset is not None else {}
    check_deadline(config, time, settings)
    return prepared


def check_real_time(config: RunConfig) -> None:
    """Check that nothing of virtual time is asked of clients that take the time that they take.

    Raises:
        ConfigError: something is.
    """
    sampler = config.sampler if config.sampler != RunConfig.sampler else None
    asynchronous = config.strategy if config.is_asynchronous else None
    compressed = " ".join(f"{key}={value}" for key, value in config.compress.items()) or None
    for flag, value in (
        ("--strategy", asynchronous),
        ("--devices", config.devices),
        ("--sampler", sampler),
        ("--compress", compressed),
    ):
        if value is not None:
            raise ConfigError(f"{flag} {value}: is simulated by sim run only; the clients of a network take real time")


def _check_sampler(prepared: Prepared, strategy: BuiltStrategy) -> None:
    """Check that the sampler can be made, and that the strategy goes with it.

    Raises:
        UsageError: it cannot, or does not.
    """
    config = prepared.config
    sampler = sampler_of(config, prepared.known_sizes)
    if config.is_asynchronous and hasattr(sampler, "observe") and ":" in config.sampler:
        raise ConfigError(
            f"--sampler {config.sampler}: has a method observe, but in mode async clients are chosen before anything "
            "is computed, so that nobody would call it"
        )
    if config.over_select != 1 and isinstance(prepared.objects.strategy, Strategy | MessageStrategy):
        raise ConfigError(
            f"--over-select {config.over_select:g}: the strategy was made before, so that it decides itself how many "
            "clients it asks; give its class, or a name"
        )
    compared = config.sampler_args.get("candidates") if config.sampler == "power-of-choice" else None
    if compared is not None and not config.num_asked_clients <= int(compared) <= config.num_clients:
        raise ConfigError(
            f"--sampler-args candidates={compared}: must be at least {config.num_asked_clients}, the clients that a "
            f"round asks, and at most --num-clients {config.num_clients}"
        )
    waited_for = num_waited_for(config, strategy)
    there = config.num_clients if config.sampler == "uniform" else config.num_asked_clients
    if waited_for > there:
        raise ConfigError(
            f"--strategy {config.strategy}: waits for {waited_for} clients, but there are {there} that "
            f"--sampler {config.sampler} offers it in a round; lower its min_available_nodes and min_train_nodes"
        )
    used = getattr(strategy.strategy, "strategy", strategy.strategy)  # in a wrapper for privacy
    taken = max(int(there * getattr(used, "fraction_train", 1.0)), getattr(used, "min_train_nodes", 0))
    if config.sampler != "uniform" and isinstance(used, MessageStrategy) and taken != there:
        raise ConfigError(
            f"--strategy {config.strategy}: draws {taken} of the {there} clients that --sampler {config.sampler} has "
            "chosen; give it fraction_train=1.0, or give its class"
        )


def _check_asynchronous(config: RunConfig) -> None:
    if config.sampler in _NEED_RESULTS:
        raise ConfigError(
            f"--sampler {config.sampler}: needs the results of a round before the next one; in mode async use uniform, "
            "by-size or round-robin"
        )
    for flag, value in (("--dp", config.dp), ("--attack", config.attack if config.forges_updates else None)):
        if value is not None:
            raise ConfigError(f"{flag} {value}: needs all clients of a round at once, and mode async has none")
    if config.stragglers:
        raise ConfigError(f"--stragglers {config.stragglers:g}: belongs to --mode sync; use slow --devices instead")


def _check_privacy(config: RunConfig, devices: Devices | None) -> None:
    """Check that a mean is never that of fewer clients than its noise was calibrated for.

    Raises:
        ConfigError: it may be.
    """
    has_deadline = config.deadline is not None or config.deadline_quantile is not None
    always = devices is None or devices.availability.is_always
    if config.min_reports < config.num_fit_clients and (has_deadline or not always):
        why = "clients that are late" if has_deadline else "clients that are offline"
        raise ConfigError(
            f"--dp {config.dp}: its noise is calibrated for the mean of {config.num_fit_clients} clients, of which "
            f"{why} are left out; add --min-reports {config.num_fit_clients}"
        )


def _check_partial_work(prepared: Prepared) -> None:
    config = prepared.config
    if prepared.dataset is None:
        raise ConfigError("--partial-work: the clients of --client-fn decide themselves how many steps they take")
    train = prepared.torch_spec.own_train()
    if train is not None and not train.takes_max_steps:
        raise ConfigError(f"--partial-work: {train.place} makes its own batches, so that it cannot be ended early")
    algorithm = prepared.strategy.algorithm if prepared.strategy is not None else None
    if algorithm is not None and type(algorithm).num_steps is not Algorithm.num_steps:
        raise ConfigError(
            f"--partial-work: clients of {config.strategy} take steps with several models, and nothing says which of "
            "them are left out"
        )
