"""The commands that train: sim run, server, client and centralized."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.commands import evaluate
from sim.commands.output import shown_path
from sim.config.flags import check_new_run, flags_given, settings_given
from sim.config.run_config import AppConfig, CentralizedConfig, RunConfig
from sim.errors import ConfigError, NothingLeftError, RunError, RunFolderError, one_line
from sim.network.options import ClientOptions, ServerOptions, check_flags, networked
from sim.reaper import nothing_left
from sim.run_folder.folder import open_run


def run(arguments: argparse.Namespace) -> None:
    """``sim run``: simulate, or resume a run."""
    if arguments.resume is not None:
        _resume(arguments)
        return
    if arguments.allow_changed_code:
        raise ConfigError("--allow-changed-code: only for --resume; a new run takes the code as it is")
    folder = arguments.app_folder
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"{folder}: no such flag, and no folder of a Flower app (sim run --help lists all)")
    given = settings_given(RunConfig, arguments)
    if folder is not None or "app" in given:
        _run_app(arguments)
        return
    check_new_run(given)
    config = RunConfig(**given)
    from sim.run_folder.progress import RoundProgress
    from sim.simulation import simulate

    with RoundProgress(config.num_rounds) as progress:
        run = simulate(config, on_record=progress.update)
    _report(run, "round")


def app(arguments: argparse.Namespace) -> None:
    """``sim app``: run a Flower app, or resume its run."""
    if arguments.resume is not None:
        _resume(arguments)
        return
    if arguments.allow_changed_code:
        raise ConfigError("--allow-changed-code: only for --resume; a new run takes the code as it is")
    if arguments.app_folder is None:
        raise ConfigError("sim app: needs the folder of an app, or --resume RUN")
    _run_app(arguments)


def _run_app(arguments: argparse.Namespace) -> None:
    given = settings_given(AppConfig, arguments)
    folder = given.pop("app", None)
    if folder is not None and arguments.app_folder is not None:
        raise ConfigError(f"--app {folder} and {arguments.app_folder}: give one of the two")
    check_new_run({**given, "app": folder or arguments.app_folder})
    config = AppConfig(**given, app=folder or arguments.app_folder)
    from sim.run_folder.progress import RoundProgress
    from sim.simulation import simulate

    with RoundProgress(config.num_rounds) as progress:
        run = simulate(config, on_record=progress.update)
    _report(run, "round")


def _resume(arguments: argparse.Namespace) -> None:
    if getattr(arguments, "app_folder", None) is not None:
        raise ConfigError(f"{arguments.app_folder}: a resumed run uses its own app")
    changes = flags_given(RunConfig, arguments)
    results_dir = changes.pop("results_dir", RunConfig.results_dir)
    for flag in ("config", "preset"):
        if getattr(arguments, flag, None) is not None:
            raise ConfigError(f"--{flag} {getattr(arguments, flag)}: a resumed run uses its own config")
    run = open_run(arguments.resume, results_dir)
    if run.is_central:
        raise ConfigError(f"--resume {arguments.resume}: is a run of sim centralized, which cannot be resumed")
    from sim.run_folder.progress import RoundProgress
    from sim.setup.resume import config_of
    from sim.simulation import resume

    try:
        num_rounds = config_of(run, changes).num_rounds
    except NothingLeftError as error:
        if changes.keys() & {"num_rounds", "target_accuracy", "target_metric", "patience"}:
            raise
        print(f"sim: note: {error}", file=sys.stderr)  # no error: a script may resume until it has ended well
        _report(run, "round")
        return
    with RoundProgress(num_rounds) as progress:
        allowed = arguments.allow_changed_code
        resume(run, on_record=progress.update, allow_changed_code=allowed, **changes)
    _report(run, "round")


def server(arguments: argparse.Namespace) -> None:
    """``sim server``: train with clients that connect over a network."""
    options = ServerOptions(**flags_given(ServerOptions, arguments))
    check_flags(flags_given(RunConfig, arguments))
    given = networked(settings_given(RunConfig, arguments))
    check_new_run(given)
    counted = "num_clients" in given
    min_clients = options.min_clients or given.get("num_clients") or 2
    config = RunConfig(**{"num_clients": min_clients, **given})
    if config.num_clients < min_clients:
        raise ConfigError(f"--min-clients {min_clients}: must be at most --num-clients {config.num_clients}")
    options = replace(options, min_clients=min_clients)
    from sim.network.server import serve
    from sim.run_folder.progress import RoundProgress

    with RoundProgress(config.num_rounds) as progress:
        run = serve(config, options, counted=counted, on_record=progress.update)
    _report(run, "round")


def client(arguments: argparse.Namespace) -> None:
    """``sim client``: train as one client of a server."""
    options = ClientOptions(**flags_given(ClientOptions, arguments))
    flags = flags_given(RunConfig, arguments)
    check_flags(flags)
    config = RunConfig(**networked(settings_given(RunConfig, arguments)))
    from sim.network.client import join

    with nothing_left():
        num_rounds = join(config, options, flags)
    print(f"client {options.client_id}        trained in {num_rounds} round{'s' if num_rounds != 1 else ''}")


def centralized(arguments: argparse.Namespace) -> None:
    """``sim centralized``: train on all data in one place."""
    given = settings_given(CentralizedConfig, arguments)
    check_new_run(given)
    config = CentralizedConfig(**given)
    from sim.centralized import train_centralized
    from sim.run_folder.progress import RoundProgress

    with RoundProgress(config.epochs, "epoch") as progress, nothing_left():
        run = train_centralized(config, on_record=progress.update)
    _report(run, "epoch")


def _report(run: Any, word: str) -> None:
    """Print what a run has reached.

    Raises:
        RunError: a client of the user's has changed what the run has written.
    """
    try:
        _print_results(run, word)
    except RunFolderError as error:
        raise RunError(f"the run is over, but its results cannot be read: {error}") from error


def _print_results(run: Any, word: str) -> None:
    import pandas as pd

    from sim.metrics import shown, spelled
    from sim.run_folder.measurements import column, metric_of, table_of
    from sim.run_folder.plots import ACCURACY

    metric = metric_of(run) or ACCURACY
    last = table_of(run, [metric]).iloc[-1]
    number = int(last["round"])
    known: dict[str, str] = {}
    for phase in ("test", "evaluate"):  # without a central test, what the clients measured
        values = {name: last.get(column(phase, name)) for name in (metric.name, "loss")}
        found = {name: shown(float(v)) for name, v in values.items() if v is not None and not pd.isna(v)}
        if metric.name in found or not known:  # both of one phase
            known = found
        if metric.name in known:
            break
    is_loss = spelled({metric.name: 0.0}, "loss") is not None
    loss = f" (loss {known['loss']})" if "loss" in known and not is_loss else ""
    print(f"run folder      {shown_path(run.path)}")
    if metric.name in known:
        print(f"{f'final {one_line(metric.name, 60)}':<15} {known[metric.name]}{loss} after {word} {number}")
    else:
        print(f"final {word:<9} {number}{loss}")
    best = None if run.is_central else run.best()
    if best is not None:
        if best.is_over:
            print(f"stopped early   after {best.num_worse} validations without a better one")
        print(f"best round      {best.in_words}")
    if run.config().get("final_evaluate") and run.evaluation_path.exists():
        evaluate.show(run, pd.read_csv(run.evaluation_path), run.evaluation_path)
    pictures = (run.accuracy_path if metric.name == "accuracy" else run.metric_path, run.loss_path)
    drawn = next((path for path in pictures if path.exists()), None)
    if drawn is not None:
        print(f"picture         {shown_path(drawn)}")
