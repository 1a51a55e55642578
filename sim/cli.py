"""The commands. Each fills a config or names runs, and hands over; what is heavy is imported inside.

The flags are made from the config's knobs with the standard library's argparse, whose errors can be one line;
libraries that make flags from dataclasses print boxes of several.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sim.config import CentralizedConfig, RunConfig
from sim.errors import ClientError, ConfigError, RunFolderError, SimError
from sim.knobs import default_of, flag_of, parse_flag, rules_of, type_of
from sim.network.options import ClientOptions, ServerOptions, networked
from sim.preset import preset_names
from sim.rundir import list_runs, open_run
from sim.training_config import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)

_EXIT_INTERRUPTED = 130
_METAVARS = {int: "N", float: "X", str: "TEXT", dict: "KEY=VALUE"}


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that go through the error tree."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse_strictly(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown word is an error that names the closest flags."""
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            flags = [flag for action in namespace.parser._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "no such flag"
            raise ConfigError(f"{unknown[0]}: {hint} ({namespace.parser.prog} --help lists all)")
        return namespace


def _add_config(parser: argparse.ArgumentParser, config_type: type[TrainingConfig]) -> None:
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="read knobs from here; flags win")
    if config_type is RunConfig:
        about = f"settings of a published experiment; flags and --config win [{', '.join(preset_names())}]"
        parser.add_argument("--preset", metavar="NAME", help=about)
    _add_knobs(parser, config_type)


def _add_knobs(parser: argparse.ArgumentParser, config_type: type[Any]) -> None:
    groups: dict[str, Any] = {}
    for config_field in fields(config_type):
        rules, (kind, _) = rules_of(config_field), type_of(config_type, config_field.name)
        if rules.group not in groups:
            groups[rules.group] = parser.add_argument_group(rules.group)
        notes = [note for note in (rules.unit and f"in {rules.unit}", rules.valid) if note]
        default = default_of(config_field)
        if default not in (None, {}):
            notes.append(f"default {default:g}" if isinstance(default, float) else f"default {default}")
        text = rules.help + (f" [{'; '.join(notes)}]" if notes else "")
        options: dict[str, Any] = {"dest": config_field.name, "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = _METAVARS[kind]
            if kind is dict:
                options["nargs"] = "+"
        groups[rules.group].add_argument(flag_of(config_field.name), help=text.replace("%", "%%"), **options)


def _flags(config_type: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    given = vars(arguments)
    return {f.name: parse_flag(config_type, f, given[f.name]) for f in fields(config_type) if f.name in given}


def _given(config_type: type[TrainingConfig], arguments: argparse.Namespace) -> dict[str, Any]:
    preset = getattr(arguments, "preset", None)
    return config_type.given(arguments.config, preset=preset, **_flags(config_type, arguments))


def _config_from(config_type: type[C], arguments: argparse.Namespace) -> C:
    return config_type(**_given(config_type, arguments))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.resume is not None:
        _resume(arguments)
        return
    config = _config_from(RunConfig, arguments)
    from sim.progress import RoundProgress
    from sim.simulation import simulate

    with RoundProgress(config.num_rounds) as progress:
        run = simulate(config, on_record=progress.update)
    _report(run, "round")


def _resume(arguments: argparse.Namespace) -> None:
    changes = _flags(RunConfig, arguments)
    results_dir = changes.pop("results_dir", RunConfig.results_dir)
    for flag in ("config", "preset"):
        if getattr(arguments, flag) is not None:
            raise ConfigError(f"--{flag} {getattr(arguments, flag)}: a run that goes on has its own config")
    run = open_run(arguments.resume, results_dir)
    from sim.progress import RoundProgress
    from sim.resuming import config_of
    from sim.simulation import resume

    with RoundProgress(config_of(run, changes).num_rounds) as progress:
        resume(run, on_record=progress.update, **changes)
    _report(run, "round")


def _server(arguments: argparse.Namespace) -> None:
    options = ServerOptions(**_flags(ServerOptions, arguments))
    given = networked(_given(RunConfig, arguments))
    counted = "num_clients" in given
    min_clients = options.min_clients or given.get("num_clients") or 2
    config = RunConfig(**{"num_clients": min_clients, **given})
    if config.num_clients < min_clients:
        raise ConfigError(f"--min-clients {min_clients}: must be at most --num-clients {config.num_clients}")
    options = replace(options, min_clients=min_clients)
    from sim.network.serving import serve
    from sim.progress import RoundProgress

    with RoundProgress(config.num_rounds) as progress:
        run = serve(config, options, counted=counted, on_record=progress.update)
    _report(run, "round")


def _client(arguments: argparse.Namespace) -> None:
    options = ClientOptions(**_flags(ClientOptions, arguments))
    config = RunConfig(**networked(_given(RunConfig, arguments)))
    from sim.network.joining import join

    num_rounds = join(config, options)
    print(f"client {options.client_id}        trained in {num_rounds} rounds")


def _centralized(arguments: argparse.Namespace) -> None:
    config = _config_from(CentralizedConfig, arguments)
    from sim.centralized import train_centralized
    from sim.progress import RoundProgress

    with RoundProgress(config.epochs, "epoch") as progress:
        run = train_centralized(config, on_record=progress.update)
    _report(run, "epoch")


def _report(run: Any, word: str) -> None:
    last = run.rounds().iloc[-1]
    print(f"run folder      {_shown(run.path)}")
    print(f"final accuracy  {last.test_accuracy:.4f} (loss {last.test_loss:.4f}) after {word} {int(last['round'])}")
    print(f"picture         {_shown(run.accuracy_path)}")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _partition(arguments: argparse.Namespace) -> None:
    config = _config_from(RunConfig, arguments)
    picture = _picture_path(arguments.output)
    from rich.table import Table

    from sim import data, partition, plots

    dataset = data.load(config)
    dealt = partition.deal(dataset.train.labels, config)
    counts = dealt.label_counts(dataset.train.labels, len(dataset.classes))
    table = Table("client", "examples", *dataset.classes, title="examples of each class", box=None)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for client_id, row in enumerate(counts):
        table.add_row(str(client_id), str(row.sum()), *(str(n) if n else "·" for n in row))
    table.add_row("all", str(counts.sum()), *(str(n) for n in counts.sum(axis=0)), style="bold")
    _print_table(table)
    left_over = len(dataset.train) - len(dealt.indices)
    if left_over:
        print(f"left over       {left_over} of {len(dataset.train)} examples belong to no client")
    _write_picture(picture, plots.partition_figure(counts, dataset.classes))


def _plot(arguments: argparse.Namespace) -> None:
    picture = _picture_path(arguments.output)
    from sim import plots

    runs = [open_run(name, arguments.results_dir) for name in arguments.runs]
    figure = plots.curves_figure(plots.curves_of(runs), ("accuracy", "loss"), arguments.x)
    _write_picture(picture, figure)


def _picture_path(text: str) -> Path:
    from sim.plots import FORMATS

    path = Path(text)
    if path.suffix.lstrip(".") not in FORMATS:
        raise ConfigError(f"-o {text}: the ending must be one of {', '.join('.' + name for name in FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"-o {text}: there is no folder {path.parent}")
    return path


def _write_picture(path: Path, figure: Any) -> None:
    from sim.plots import render

    try:
        path.write_bytes(render(figure, path.suffix.lstrip(".")))
    except OSError as error:
        raise ConfigError(f"-o {path}: cannot be written: {error.strerror}") from None
    print(f"picture         {path}")


def _list(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    table = Table("run", "rounds", "final accuracy", "best accuracy", "--resume goes on after", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for run in list_runs(arguments.results_dir):
        try:
            config, rounds = run.config(), run.rounds()
        except RunFolderError as error:
            print(f"sim: {error}", file=sys.stderr)  # one damaged run does not hide the others
            continue
        wanted = config.get("num_rounds", config.get("epochs", "?"))
        done = int(rounds["round"].max()) if len(rounds) else "–"
        measured = rounds["test_accuracy"].dropna()
        final, best = (f"{v:.4f}" for v in (measured.iloc[-1], measured.max())) if len(measured) else ("", "")
        last = run.last_checkpoint()
        waiting = isinstance(wanted, int) and last is not None and last < wanted
        table.add_row(run.name, f"{done}/{wanted}", final, best, f"round {last}" if waiting else "")
    _print_table(table)


def _print_table(table: Any) -> None:
    """Print a table at its full width: a number that a narrow terminal cuts off is worse than a wrapped line."""
    from rich.console import Console

    console = Console(width=10_000)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _parser() -> _Parser:
    parser = _Parser(prog="sim", description="Federated learning on virtual clients.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, act: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False
        )
        command.set_defaults(act=act, parser=command)
        return command

    run = add("run", _run, "train a federation of virtual clients")
    about = "go on with this run after its last checkpoint, to the bit as if it had not ended"
    run.add_argument("--resume", metavar="RUN", help=f"{about}; not for runs of sim server")
    _add_config(run, RunConfig)
    _add_config(
        add("centralized", _centralized, "train the same model on all the data in one place"),
        CentralizedConfig,
    )
    server = add("server", _server, "wait for clients in other processes and train with them")
    _add_knobs(server, ServerOptions)
    _add_config(server, RunConfig)
    client = add("client", _client, "be one client of a server")
    _add_knobs(client, ClientOptions)
    _add_config(client, RunConfig)
    partition = add("partition", _partition, "show which classes each client would hold, before any training")
    partition.add_argument(
        "-o", "--output", default="partition.png", help="picture: .png, .svg or .pdf [default partition.png]"
    )
    _add_config(partition, RunConfig)
    plot = add("plot", _plot, "draw accuracy and loss of one or many runs")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="name in the results folder, or path")
    plot.add_argument("--x", choices=("round", "seconds"), default="round", help="horizontal axis [default round]")
    plot.add_argument("-o", "--output", default="plot.png", help="picture: .png, .svg or .pdf [default plot.png]")
    listing = add("list", _list, "list the runs with rounds, final and best accuracy")
    for command in (plot, listing):
        command.add_argument("--results-dir", default="results", help="where run folders are [default results]")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (the run stopped), 2 (bad input) or 130 (Ctrl-C)."""
    words_of = list(sys.argv[1:] if words is None else words)
    try:
        arguments = _parser().parse_strictly(words_of)
        arguments.act(arguments)
    except SimError as error:
        if isinstance(error, ClientError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # inline: where the user's own code raised
        print(f"sim: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        written = "; what was done is on disk" if words_of[:1] != ["client"] else ""
        print(f"sim: interrupted{written}", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def entry() -> None:
    """The console script ``sim``."""
    code = main()
    # Python's last garbage collection would spend 1.3 s on the objects of torch and flwr.
    gc.freeze()
    sys.exit(code)
