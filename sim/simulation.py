"""Simulates a federation of virtual clients: a configuration in, a finished run folder out."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import reaper
from sim.compression.by_name import Compression
from sim.config.app import read_app
from sim.config.choices import ALGORITHMS
from sim.config.fields import rules_of
from sim.config.run_config import RunConfig
from sim.data import partition
from sim.data.load_dataset import load_dataset
from sim.errors import ConfigError
from sim.given_objects import GivenObjects, check_observers
from sim.interrupts import interruptible
from sim.metrics import configured
from sim.processes import imports_are_no_garbage, uncollected
from sim.run_folder.callbacks import Callback, OnRecord, check_callbacks
from sim.run_folder.environment import available_cpus
from sim.run_folder.folder import Run, open_run
from sim.run_folder.progress import live_line
from sim.run_folder.writer import check_folder, locked_folder
from sim.tracking.by_name import check_trackers

if TYPE_CHECKING:
    import pandas as pd

    from sim.engine.interface import Dispatcher
    from sim.engine.ray.session import RaySession
    from sim.server.prepared_run import Prepared

_SMALLEST_BUILT_IN_SIDE = 32  # pixels; every built-in model takes images of at least this height and width


def simulate(
    config: RunConfig,
    *,
    model: Any = None,
    train: Callable[..., Any] | None = None,
    test: Callable[..., Any] | None = None,
    load_data: Callable[..., Any] | None = None,
    client: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    client_fn: Callable[..., Any] | None = None,
    client_app: Any = None,
    server_app: Any = None,
    strategy: Any = None,
    client_manager: Any = None,
    ray_init_args: dict[str, Any] | None = None,
    on_record: OnRecord | None = None,
    callbacks: Sequence[Callback] = (),
    history: Any = None,
) -> Run:
    """Run a federation of virtual clients on this machine, or on a Ray cluster, and return its run folder.

    The parts of a program may be import paths in the config, or objects here, also those that are defined in a script
    or in a cell of a notebook.

    Args:
        model: a class or function that makes a ``torch.nn.Module``, or a module, which is copied.
        train, test: the program's own functions; their parameters are bound by name (docs/own-program.md).
        load_data: returns (train, test) of Datasets, DataLoaders or arrays.
        client: a class or function that makes a Flower client.
        loss: a function (outputs, target) → mean over the batch, for the built-in training and test.
        client_fn: a ``client_fn(context)`` of a Flower program, whose clients bring their own data and model.
        client_app, server_app: the two objects of a Flower app.
        strategy: a strategy of ``flwr.server.strategy`` or ``flwr.serverapp.strategy``, or its class.
        client_manager: a Flower ``ClientManager`` of the user's own, to which the clients are added.
        ray_init_args: for ``ray.init``, e.g. ``{"num_cpus": 4, "num_gpus": 1}``; these replace what is detected.
        on_record: called with the record of each round after it is on disk.
        callbacks: told of each round and of the end, see ``Callback`` and docs/callbacks-and-trackers.md.
        history: a ``flwr.server.History``, which is filled as Flower's own loop fills it.

    Raises:
        UsageError: the config, the data or the user's modules do not work; nothing was written.
        RunError: the run stopped; the rounds that were done are on disk.
    """
    given = {
        "model": model,
        "train": train,
        "test": test,
        "load_data": load_data,
        "client": client,
        "loss": loss,
        "client_fn": client_fn,
        "client_app": client_app,
        "server_app": server_app,
        "strategy": strategy,
        "client_manager": client_manager,
    }
    objects = GivenObjects(config, given)
    if config.strategy_args and not (strategy is None or callable(strategy) or isinstance(strategy, str)):
        raise ConfigError(
            f"--strategy-args {', '.join(config.strategy_args)}: the strategy was made before, with arguments of its "
            "own; give its class, or a name"
        )
    return _simulate(objects, None, ray_init_args, on_record, callbacks, history=history)


def resume(
    run: Run | str | Path,
    *,
    model: Any = None,
    train: Callable[..., Any] | None = None,
    test: Callable[..., Any] | None = None,
    load_data: Callable[..., Any] | None = None,
    client: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    client_fn: Callable[..., Any] | None = None,
    strategy: Any = None,
    client_manager: Any = None,
    ray_init_args: dict[str, Any] | None = None,
    on_record: OnRecord | None = None,
    callbacks: Sequence[Callback] = (),
    allow_changed_code: bool = False,
    **changes: Any,
) -> Run:
    """Continue a run after its last checkpoint, to the bit as if it had not ended.

    Args:
        run: also its path, or its name in the folder ``results``.
        model, train, test, load_data, client, loss, client_fn, strategy, client_manager, ray_init_args, on_record,
            callbacks: as for ``simulate``.
        allow_changed_code: continue although modules of yours were changed; later rounds are made with the new ones.
        changes: settings that may change, see ``sim.config.choices.CHANGEABLE``; ``num_rounds`` may be raised.

    Raises:
        UsageError: config, data set, partition or files do not fit; nothing was changed.
        RunError: as ``simulate``.
    """
    from sim.setup.resume import config_of

    run = _opened(run)
    given = {
        "model": model,
        "train": train,
        "test": test,
        "load_data": load_data,
        "client": client,
        "loss": loss,
        "client_fn": client_fn,
        "strategy": strategy,
        "client_manager": client_manager,
    }
    found = GivenObjects(config_of(run, changes), given)
    return _simulate(found, run, ray_init_args, on_record, callbacks, allow_changed_code=allow_changed_code)


def evaluate(
    run: Run | str | Path,
    *,
    fine_tune_epochs: int = 0,
    output: str | Path | None = None,
    model: Any = None,
    train: Callable[..., Any] | None = None,
    test: Callable[..., Any] | None = None,
    load_data: Callable[..., Any] | None = None,
    client: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    strategy: Any = None,
    ray_init_args: dict[str, Any] | None = None,
    allow_changed_code: bool = False,
    **changes: Any,
) -> pd.DataFrame:
    """Evaluate a run's global model and each client's own model on the examples that each client kept.

    Args:
        run: also its path, or its name in the folder ``results``.
        fine_tune_epochs: also evaluate both after so many epochs of ``train`` on the client's training examples.
        output: where the table is written; ``evaluation.csv`` in the run folder for None.
        model, train, test, load_data, client, loss, strategy, ray_init_args: as for ``simulate``.
        allow_changed_code: evaluate although modules of yours were changed.
        changes: settings that change no figure, such as ``engine`` and ``num_cpus``.

    Returns:
        The table, with a row for each client; results/README.md explains its columns.

    Raises:
        UsageError: the run cannot be evaluated, or config, data set, partition or files do not fit; nothing was
            written.
        RunError: a client raised, or the engine or the disk failed; an earlier table is unchanged.
    """
    from sim.setup import evaluation

    run = _opened(run)
    path = run.evaluation_path if output is None else Path(output)
    for written in (path, run.log_path):
        evaluation.check_output(written)
    config = evaluation.config_of(run, changes, fine_tune_epochs)
    given = {
        "model": model,
        "train": train,
        "test": test,
        "load_data": load_data,
        "client": client,
        "loss": loss,
        "strategy": strategy,
    }
    check_observers(None, None, ray_init_args)
    objects = GivenObjects(config, given)
    config = objects.config
    arguments: dict[str, Any] = {"num_cpus": available_cpus(), **(ray_init_args or {})}
    num_actors = config.num_clients
    if config.ray_address is None:
        num_actors = min(num_actors, _check_resources(config, arguments))
    with (
        interruptible(),
        locked_folder(run.path),
        _leftovers_ended(config),
        _ray_session(config, arguments, num_actors, ray_init_args) as ray_session,
    ):
        with uncollected():
            from sim.run_folder import log
            from sim.server.prepared_run import ProgramObjects
            from sim.setup.prepare import prepare
            from sim.training.device import computing_as_before

        with computing_as_before(config.torch_threads, is_imported=bool(objects.objects)):
            prepared = prepare(config, ProgramObjects(**objects.objects))
            _check_can_be_sent(prepared, ray_session)
            found = evaluation.Evaluation.of(run, prepared, fine_tune_epochs, allow_changed_code=allow_changed_code)
            with interruptible(), log.captured(run.log_path, show=config.verbose):
                log.say(found.notes)
                with _open_engine(found.prepared, ray_session, num_actors, run) as dispatcher:
                    frame = found.execute(dispatcher)
    evaluation.write_table(frame, path)
    return frame


def _opened(run: Run | str | Path) -> Run:
    if not isinstance(run, Run | str | Path):
        raise ConfigError(f"run: must be a Run, its path or its name, not {type(run).__qualname__}")
    return run if isinstance(run, Run) else open_run(str(run))


def _simulate(
    objects: GivenObjects,
    old: Run | None,
    ray_init_args: dict[str, Any] | None,
    on_record: OnRecord | None,
    callbacks: Sequence[Callback],
    *,
    allow_changed_code: bool = False,
    history: Any = None,
) -> Run:
    check_callbacks(callbacks)
    check_observers(on_record, history, ray_init_args)
    config = objects.config
    check_trackers(config.track)
    arguments: dict[str, Any] = {"num_cpus": available_cpus(), **(ray_init_args or {})}
    if config.num_gpus == "auto":
        config = _with_gpus(config, arguments)
    num_actors = _most_clients_at_once(config)
    if config.ray_address is None:
        num_actors = min(num_actors, _check_resources(config, arguments))
    with (
        interruptible(),
        _leftovers_ended(config),
        live_line(on_record, config.num_rounds) as told,
        _ray_session(config, arguments, num_actors, ray_init_args) as ray_session,
    ):
        has_user_code = _has_user_code(config)
        if ray_session is not None and config.ray_address is None:
            if old is None:
                _check_without_pytorch(config, has_folder="server_app" not in objects.objects)
            # While PyTorch and Flower are imported; not where these must first say whether the flags are right.
            if has_user_code or (old is None and _only_built_in_parts(config)):
                ray_session.start()
        with uncollected():
            from sim.server.prepared_run import ProgramObjects
            from sim.server.rounds import RoundServer
            from sim.setup.evaluation import Evaluation, write_table
            from sim.setup.prepare import prepare
            from sim.setup.resume import resumed
            from sim.setup.run_session import open_session
            from sim.setup.server_app import ServerAppRun
            from sim.training.device import computing_as_before

        if ray_session is not None and has_user_code:
            ray_session.wait()  # user code may change what Ray's start depends on, such as the environment
        with computing_as_before(config.torch_threads, is_imported=bool(objects.objects)):
            prepared = prepare(config, ProgramObjects(**objects.objects))
            if old is not None:
                prepared = resumed(old, prepared, allow_changed_code=allow_changed_code)
            _check_can_be_sent(prepared, ray_session)
            with (
                interruptible(),
                imports_are_no_garbage(),
                open_session(prepared, told, callbacks, resumable=True) as session,
                _open_engine(prepared, ray_session, num_actors, session.run) as dispatcher,
            ):
                if prepared.server_app is not None:
                    ServerAppRun(prepared, dispatcher, session).run()
                else:
                    before = session.before_round
                    server = RoundServer(prepared, dispatcher, session.on_round, history=history, before_round=before)
                    server.run()
                    if config.final_evaluate:
                        frame = Evaluation.of_last_round(session.run, prepared, server).execute(dispatcher)
                        write_table(frame, session.run.evaluation_path)
                    del server  # it refers to itself, and is garbage at the end of this block
    return session.run


def _leftovers_ended(config: RunConfig) -> AbstractContextManager[None]:
    """End what user code has started in this process when the run ends; Ray's session does that for its processes."""
    return nullcontext() if _only_built_in_parts(config) else reaper.nothing_left()


@contextmanager
def _ray_session(
    config: RunConfig, arguments: dict[str, Any], num_actors: int, ray_init_args: dict[str, Any] | None
) -> Iterator[RaySession | None]:
    """Make what starts Ray for a run; None for an engine that does not need it."""
    if config.engine != "ray":
        yield None
        return
    from sim.engine.ray.session import RaySession

    if config.ray_address is not None:
        _check_cluster(config.ray_address)
        if config.niceness:
            raise ConfigError(f"--niceness {config.niceness}: the cluster at {config.ray_address} decides")
        arguments = {**(ray_init_args or {}), "address": config.ray_address}
    with RaySession(arguments, num_actors, config.client_resources, config.niceness) as ray_session:
        yield ray_session


def _check_can_be_sent(prepared: Prepared, ray_session: RaySession | None) -> None:
    if ray_session is not None and _has_user_code(prepared.config):
        if prepared.config.ray_address is None:
            ray_session.start()  # it imports Ray, which then asks for a token
        from sim.engine.ray.shipping import check_can_be_sent

        check_can_be_sent(prepared.spec)


@contextmanager
def _open_engine(prepared: Prepared, ray_session: RaySession | None, num_actors: int, run: Run) -> Iterator[Dispatcher]:
    """Open what executes the clients of a run."""
    config = prepared.config
    spec = replace(prepared.spec, states_folder=run.client_states_path)
    if config.ray_address is None and prepared.strategy is not None:
        _warn_of_memory(prepared, num_actors)
    if ray_session is None:
        from sim.engine.client_execution import Worker
        from sim.engine.inline import InlineDispatcher

        yield InlineDispatcher(Worker(spec, config.num_clients, config.seed))
        return
    from sim.engine.interface import RetryPolicy

    retry_policy = RetryPolicy(config.max_retries, config.client_timeout)
    with ray_session.open(spec, config.num_clients, config.num_rounds, retry_policy, run.log_path) as dispatcher:
        yield dispatcher


def _most_clients_at_once(config: RunConfig) -> int:
    """Return how many clients a phase of a round can have; more actors than that would never have any work."""
    if config.final_evaluate:
        return config.num_clients
    if config.is_asynchronous:
        return max(config.num_concurrent, config.num_evaluate_clients)
    arguments = config.server_args if config.strategy in ALGORITHMS else config.strategy_args
    if config.app is not None or arguments or ":" in config.strategy:
        return config.num_clients  # it decides for itself
    return max(config.num_fit_clients, config.num_evaluate_clients, 1)


def _has_user_code(config: RunConfig) -> bool:
    """Whether any part of the run is the user's own."""
    values = [getattr(config, each.name) for each in fields(config) if rules_of(each).importable]
    values += [config.loss, config.sampler, *configured(config.metric)]
    return config.app is not None or any(isinstance(value, str) and ":" in value for value in values)


def _only_built_in_parts(config: RunConfig) -> bool:
    """Whether data set, model, functions, client and strategy are this package's own, with default arguments, on CPUs.

    What remains to be checked then needs neither PyTorch nor Flower.
    """
    return (
        not _has_user_code(config)
        and config.strategy not in ALGORITHMS
        and config.local_parameters is None
        and config.server_lr is None
        and config.devices is None
        and config.sampler == RunConfig.sampler
        and not config.compress
        and not (config.strategy_args or config.dp or config.attack or config.ray_address or config.gpus_of_a_client)
        and config.local_training != "vectorized"
        and config.side >= _SMALLEST_BUILT_IN_SIDE
    )


def _check_without_pytorch(config: RunConfig, *, has_folder: bool) -> None:
    """Check what ``prepare`` and the session check without PyTorch, before any process is started.

    The results for a data set of this package's own are in the cache afterwards.

    Args:
        has_folder: an app is a folder, and not objects of a script.

    Raises:
        UsageError: the app, the data set, the partition or the run folder does not work.
    """
    check_folder(config.results_dir, config.name)
    Compression.of(config.compress)
    if config.app is not None:
        if has_folder:
            read_app(config.app, config.run_config)
    elif _only_built_in_parts(config):
        partition.assign(load_dataset(config), config)


def _with_gpus(config: RunConfig, ray_init_args: dict[str, Any]) -> RunConfig:
    """Decide what ``--num-gpus auto`` leaves open: an equal share for as many actors as fit."""
    from sim.measure.capacity import gpus_for
    from sim.run_folder import log

    share = gpus_for(config, int(ray_init_args["num_cpus"] / config.num_cpus))
    logging.getLogger("sim").info("--num-gpus auto: %g", share)
    if not share and config.device != "cpu":
        with log.notes():
            log.say(["--num-gpus auto: this machine has no GPU, so that clients train on the CPU"])
    return replace(config, num_gpus=share)


def _warn_of_memory(prepared: Prepared, num_actors: int) -> None:
    from sim.measure.capacity import shortage

    config = prepared.config
    model_bytes = sum(array.nbytes for array in prepared.initial_weights)
    line = shortage(config, model_bytes, num_actors, averages=prepared.averages)
    if line is not None:
        logging.getLogger("sim").warning("note: %s", line)


def _check_cluster(address: str) -> None:
    """Check that a cluster answers at its address, for which Ray itself would wait for minutes.

    Raises:
        ConfigError: it does not.
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
