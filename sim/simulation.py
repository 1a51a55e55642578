"""Virtual clients on this machine: config in, finished run folder out."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sim.config.run_config import RunConfig
from sim.errors import ConfigError
from sim.interrupts import interruptible
from sim.measure import capacity
from sim.processes import uncollected
from sim.run_folder import environment
from sim.run_folder.folder import Run

if TYPE_CHECKING:
    from sim.engine.ray.session import OwnRay
    from sim.setup.prepare import Prepared
    from sim.setup.session import OnRecord


def simulate(
    config: RunConfig, *, ray_init_args: dict[str, Any] | None = None, on_record: OnRecord | None = None
) -> Run:
    """Run a federation of virtual clients on this machine and return its run folder.

    Args:
        ray_init_args: for ``ray.init``, e.g. ``{"num_cpus": 4, "num_gpus": 1}``; they win over what is found.
        on_record: called with the record of each round after it is on disk.

    Raises:
        UsageError: the config, the data or the user's modules do not work; nothing was written.
        RunError: the run stopped; the rounds that were done are on disk.
    """
    return _simulate(config, None, ray_init_args, on_record)


def resume(
    run: Run, *, ray_init_args: dict[str, Any] | None = None, on_record: OnRecord | None = None, **changes: Any
) -> Run:
    """Go on with a run after its last checkpoint, to the bit as if it had not ended.

    Args:
        ray_init_args, on_record: as for ``simulate``.
        changes: settings that may change, see ``resuming.CHANGEABLE``; ``num_rounds`` may be raised.

    Raises:
        UsageError: config, data set, partition or files do not fit; nothing was changed.
        RunError: as ``simulate``.
    """
    from sim.setup.resume import config_of

    return _simulate(config_of(run, changes), run, ray_init_args, on_record)


def _simulate(
    config: RunConfig, old: Run | None, ray_init_args: dict[str, Any] | None, on_record: OnRecord | None
) -> Run:
    arguments: dict[str, Any] = {"num_cpus": environment.available_cpus(), **(ray_init_args or {})}
    if config.num_gpus == "auto":
        config = _with_gpus(config, arguments)
    if config.ray_address is None:
        num_actors = _check_resources(config, arguments)
    else:
        _check_cluster(config.ray_address)
        arguments = {**(ray_init_args or {}), "address": config.ray_address}
        num_actors = 0  # of this machine
    with _own_ray(config, arguments, num_actors) as own_ray:
        # Only now, since PyTorch takes its time to import, while Ray takes its own to start.
        with uncollected():
            from sim.engine import inline
            from sim.setup.prepare import prepare
            from sim.setup.resume import resumed
            from sim.setup.session import recorded

        prepared = prepare(config)
        going_on = None if old is None else resumed(old, prepared)
        with interruptible(), recorded(prepared, on_record, going_on, resumable=True) as session:
            if config.ray_address is None:
                _warn_of_memory(prepared, num_actors)
            if config.engine == "inline":
                inline.run(session.server, prepared.program, config.num_clients, config.num_rounds, config.seed)
            else:
                from sim.engine.ray import start_simulation
                from sim.engine.ray.dispatcher import RetryPolicy

                start_simulation.run(
                    session.server,
                    prepared.program,
                    config.num_clients,
                    config.num_rounds,
                    config.seed,
                    own_ray=own_ray,
                    client_resources=config.client_resources,
                    ray_init_args=arguments,
                    retry_policy=RetryPolicy(config.max_retries, config.client_timeout),
                    log=session.run.log_path,
                )
    return session.run


def _with_gpus(config: RunConfig, ray_init_args: dict[str, Any]) -> RunConfig:
    """Decide what ``--num-gpus auto`` leaves open: an equal share for as many actors as fit."""
    from sim.measure.capacity import gpus_for

    share = gpus_for(config, int(ray_init_args["num_cpus"] / config.num_cpus))
    logging.getLogger("sim").info("--num-gpus auto: %g", share)
    return replace(config, num_gpus=share)


@contextmanager
def _own_ray(config: RunConfig, ray_init_args: dict[str, Any], num_actors: int) -> Iterator[OwnRay | None]:
    """Start Ray in the background, where the run has one of its own."""
    if config.engine != "ray" or config.ray_address is not None:
        yield None
        return
    from sim.engine.ray.session import OwnRay

    with OwnRay(ray_init_args, num_actors, config.client_resources) as own_ray:
        yield own_ray


def _warn_of_memory(prepared: Prepared, num_actors: int) -> None:
    config = prepared.config
    model_bytes = sum(array.nbytes for array in prepared.initial_weights)
    line = capacity.shortage(config, model_bytes, num_actors, averages=prepared.chosen.averages)
    if line is not None:
        logging.getLogger("sim").warning("note: %s", line)


def _check_cluster(address: str) -> None:
    """Check that somebody listens at a cluster's address, for which Ray itself would wait for minutes.

    Raises:
        ConfigError: nobody does.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise ConfigError(f"--ray-address {address}: must be host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--ray-address {address}: no Ray cluster there: {reason}") from None


def _check_resources(config: RunConfig, ray_init_args: dict[str, Any]) -> int:
    """Check that this machine has what one client asks for; return how many actors fit.

    Raises:
        ConfigError: it has not.
    """
    share = config.gpus_of_a_client
    if share > 1 and share % 1:
        raise ConfigError(f"--num-gpus {share:g}: above 1 it must be a whole number")
    fit = [ray_init_args["num_cpus"] / config.num_cpus]
    if share or config.device == "cuda":
        import torch

        from sim.setup.prepare import check_device

        num_gpus = ray_init_args.get("num_gpus", torch.cuda.device_count())
        if share > num_gpus:
            reason = f"this machine has {num_gpus:g} GPUs; at most {num_gpus:g}"
            raise ConfigError(f"--num-gpus {share:g}: {reason}")
        check_device(config)
        fit += [num_gpus / config.client_resources["num_gpus"]] if share else []
    if config.engine == "inline":
        return 0
    num_cpus = ray_init_args["num_cpus"]
    if config.num_cpus > num_cpus:
        raise ConfigError(f"--num-cpus {config.num_cpus:g}: this machine has {num_cpus:g}; at most {num_cpus:g}")
    if config.device == "cuda" and not share:
        raise ConfigError("--device cuda: with --engine ray, clients see a GPU when --num-gpus is above 0")
    return int(min(fit))
