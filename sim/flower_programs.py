"""Flower programs from Python: an app in a folder or two app objects, and scripts that call Flower's own functions.

``start_simulation`` and ``run_simulation`` have the signatures of ``flwr.simulation``: a script changes one import.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.config.fields import shown
from sim.config.run_config import AppConfig, RunConfig
from sim.errors import ConfigError
from sim.run_folder.folder import Run
from sim.simulation import simulate

if TYPE_CHECKING:
    from flwr.client import Client
    from flwr.clientapp import ClientApp
    from flwr.server import History, Server, ServerConfig
    from flwr.server.client_manager import ClientManager
    from flwr.server.strategy import Strategy
    from flwr.serverapp import ServerApp

    from sim.run_folder.callbacks import Callback, OnRecord


def run_app(
    folder: str | Path,
    *,
    ray_init_args: dict[str, Any] | None = None,
    on_record: OnRecord | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Run the Flower app in a folder as it is, and return its run folder.

    Args:
        ray_init_args, on_record, callbacks: as for ``simulate``.
        settings: of ``AppConfig``, e.g. ``num_clients=100`` and ``run_config={"lr": 0.1}``.

    Raises:
        UsageError: there is no app, or it cannot be imported; nothing was written.
        RunError: the run stopped; the rounds that were done are on disk.
    """
    config = AppConfig(app=str(folder), **settings)
    return simulate(config, ray_init_args=ray_init_args, on_record=on_record, callbacks=callbacks)


def run_simulation(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    backend_name: str = "ray",
    backend_config: Mapping[str, Any] | None = None,
    enable_tf_gpu_growth: bool = False,
    verbose_logging: bool = False,
    **settings: Any,
) -> Run:
    """Run a ServerApp and a ClientApp of a script or notebook, as ``flwr.simulation.run_simulation`` does.

    Args:
        num_supernodes: number of clients.
        backend_name: only ray.
        backend_config: ``client_resources`` are CPUs and GPUs of a client, ``init_args`` go to ``ray.init``; ``actor``
            is not used.
        enable_tf_gpu_growth: must be False; TensorFlow reads TF_FORCE_GPU_ALLOW_GROWTH instead.
        verbose_logging: also show the log messages of Flower and Ray.
        settings: more of ``AppConfig``, e.g. ``seed=1``, ``engine="inline"`` and ``name="trial"``.

    Raises:
        UsageError, RunError: as ``run_app``.
    """
    if backend_name != "ray":
        raise ConfigError(f"backend_name {backend_name}: only ray is known; engine='inline' needs no other process")
    if enable_tf_gpu_growth:
        raise ConfigError("enable_tf_gpu_growth: set TF_FORCE_GPU_ALLOW_GROWTH=true in the environment instead")
    given = _table("backend_config", backend_config, "client_resources and init_args")
    backend = {str(key).replace("-", "_"): value for key, value in given.items()}
    unknown = sorted(backend.keys() - {"client_resources", "init_args", "actor"})
    if unknown:
        raise ConfigError(f"backend_config: unknown key {', '.join(unknown)}; client_resources and init_args are known")
    _check_settings("run_simulation", settings, AppConfig)
    _note_unused("backend_config", actor=backend.get("actor"))
    config = AppConfig(
        app=_script(),
        num_clients=num_supernodes,
        **{**_resources(backend.get("client_resources")), "verbose": verbose_logging, **settings},
    )
    init_args = dict(_table("backend_config init_args", backend.get("init_args"), "arguments of ray.init"))
    return simulate(config, client_app=client_app, server_app=server_app, ray_init_args=init_args)


def start_simulation(
    *,
    client_fn: Callable[..., Client],
    num_clients: int | None = None,
    clients_ids: Sequence[str] | None = None,
    client_resources: Mapping[str, float] | None = None,
    server: Server | None = None,
    config: ServerConfig | None = None,
    strategy: Strategy | None = None,
    client_manager: ClientManager | None = None,
    ray_init_args: Mapping[str, Any] | None = None,
    keep_initialised: bool | None = False,
    actor_type: Any = None,
    actor_kwargs: Mapping[str, Any] | None = None,
    actor_scheduling: Any = "DEFAULT",
    **settings: Any,
) -> History:
    """Run clients of a ``client_fn``, as ``flwr.simulation.start_simulation`` does, and return Flower's ``History``.

    A run folder is written beside it. A client that raises stops the run; ``on_client_error="drop"`` leaves it out.

    Args:
        client_fn: of a ``Context``, or of a ``cid`` as in older scripts.
        num_clients: number of clients.
        clients_ids: must be "0" to "N-1", if it is given.
        client_resources: CPUs and GPUs of a client.
        server: a ``flwr.server.Server``, whose strategy and client manager are used.
        config: ``num_rounds``; a ``round_timeout`` is the time limit of each client.
        strategy: FedAvg if it is not given.
        client_manager: the user's own, to which the clients are added.
        ray_init_args: for ``ray.init``.
        keep_initialised: must be False, because each run has a Ray of its own.
        actor_type, actor_kwargs, actor_scheduling: not used; the actors are this package's own.
        settings: more of ``RunConfig``, e.g. ``seed=1``, ``engine="inline"`` and ``name="trial"``.

    Raises:
        UsageError: something does not work; nothing was written.
        RunError: the run stopped; the rounds that were done are on disk.
    """
    from flwr.server import History, Server, ServerConfig
    from flwr.server.strategy import FedAvg

    if isinstance(strategy, type):
        raise ConfigError(f"strategy: {strategy.__name__} is a class; give an object of it, e.g. {strategy.__name__}()")
    if not isinstance(config, ServerConfig | None):
        raise ConfigError(f"config: must be a ServerConfig, not {type(config).__name__}")
    _check_settings("start_simulation", settings, RunConfig)
    if server is not None and type(server) is not Server:
        raise ConfigError(
            f"server: a {type(server).__name__} has rounds of its own; put what it changes into a strategy, or use it "
            "in a ServerApp, which sim app runs"
        )
    if server is not None:
        strategy = strategy or server.strategy
        client_manager = server.client_manager() if client_manager is None else client_manager
    count = num_clients if num_clients is not None else len(clients_ids or ())
    if clients_ids is not None and list(clients_ids) != [str(number) for number in range(count)]:
        raise ConfigError(f"clients_ids: must be '0' to '{count - 1}', as many as num_clients")
    if keep_initialised:
        raise ConfigError("keep_initialised: must be False; each run has a Ray of its own")
    scheduling = None if actor_scheduling == "DEFAULT" else actor_scheduling
    _note_unused("start_simulation", actor_type=actor_type, actor_kwargs=actor_kwargs, actor_scheduling=scheduling)
    plan = config or ServerConfig()
    given: dict[str, Any] = {
        "num_clients": count,
        "num_rounds": plan.num_rounds,
        "client_timeout": plan.round_timeout,
        **_resources(client_resources),
        **settings,
    }
    history = History()
    simulate(
        RunConfig(**given, client_fn="__main__:client_fn"),
        client_fn=client_fn,
        strategy=strategy if strategy is not None else FedAvg(),
        client_manager=client_manager,
        ray_init_args=dict(_table("ray_init_args", ray_init_args, "arguments of ray.init")),
        history=history,
    )
    return history


def _check_settings(place: str, settings: Mapping[str, Any], config_type: type[RunConfig]) -> None:
    unknown = sorted(settings.keys() - {field.name for field in fields(config_type)})
    if unknown:
        raise ConfigError(f"{place}: unknown setting {', '.join(unknown)}; the settings are those of sim.RunConfig")


def _table(name: str, value: Any, of: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"{name} = {shown(value)}: must be a dict of {of}")
    return value or {}


def _resources(client_resources: Any) -> dict[str, float]:
    """Return the settings of client resources in Flower's words.

    Raises:
        ConfigError: a resource is unknown, or no number.
    """
    given = _table("client_resources", client_resources, "num_cpus and num_gpus")
    unknown = sorted(map(str, given.keys() - {"num_cpus", "num_gpus"}))
    if unknown:
        raise ConfigError(f"client_resources: unknown resource {', '.join(unknown)}; num_cpus and num_gpus are known")
    found = {}
    for name, value in given.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"client_resources: {name} = {shown(value)}: must be a number") from None
    return found


def _note_unused(place: str, **given: Any) -> None:
    """Note what a script says about Flower's actors, because the actors are this package's own."""
    names = ", ".join(name for name, value in given.items() if value)
    if names:
        logging.getLogger("sim").warning(
            "note: %s: %s without effect; what on_actor_init_fn does belongs at the top of the clients' module, which "
            "each process imports",
            place,
            names,
        )


def _script() -> str:
    """Return the name of the script that runs, which records name instead of a folder."""
    return Path(sys.argv[0]).name or "python"
