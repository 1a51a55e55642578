"""The commands and their flags; what they do is in commands/, where what is heavy is imported inside."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from sim.commands import inspect, study
from sim.commands import run as training
from sim.config.flags import Parser, add_config, add_settings
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.errors import ClientError, SimError
from sim.network.options import ClientOptions, ServerOptions
from sim.scale.cells import SET_BY_THE_GRID

_EXIT_INTERRUPTED = 130


def _parser() -> Parser:
    parser = Parser(prog="sim", description="Federated learning on virtual clients.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, act: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False
        )
        command.set_defaults(act=act, parser=command)
        return command

    run = add("run", training.run, "train a federation of virtual clients")
    about = "go on with this run after its last checkpoint, to the bit as if it had not ended"
    run.add_argument("--resume", metavar="RUN", help=f"{about}; not for runs of sim server")
    add_config(run, RunConfig)
    add_config(
        add("centralized", training.centralized, "train the same model on all the data in one place"),
        CentralizedConfig,
    )
    server = add("server", training.server, "wait for clients in other processes and train with them")
    add_settings(server, ServerOptions)
    add_config(server, RunConfig)
    client = add("client", training.client, "be one client of a server")
    add_settings(client, ClientOptions)
    add_config(client, RunConfig)
    partition = add("partition", inspect.partition, "show which classes each client would hold, before any training")
    partition.add_argument(
        "-o", "--output", default="partition.png", help="picture: .png, .svg or .pdf [default partition.png]"
    )
    add_config(partition, RunConfig)
    plot = add("plot", inspect.plot, "draw accuracy and loss of one or many runs")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="name in the results folder, or path")
    plot.add_argument("--x", choices=("round", "seconds"), default="round", help="horizontal axis [default round]")
    plot.add_argument("-o", "--output", default="plot.png", help="picture: .png, .svg or .pdf [default plot.png]")
    report = add("report", inspect.report, "write one HTML page about one or many runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="name in the results folder, path, or a folder of runs")
    report.add_argument("-o", "--output", default="report.html", help="page: .html [default report.html]")
    _add_sweep(add("sweep", study.sweep, "run every combination of some values over several seeds"))
    about = "measure one client of a run, and say how many fit on this machine and what the run will take"
    add_config(add("size", study.size, about), RunConfig)
    _add_scale(add("scale", study.scale, "measure throughput, scaling and memory over clients and processes"))
    listing = add("list", inspect.show_list, "list the runs with rounds, final and best accuracy")
    for command in (plot, report, listing):
        command.add_argument("--results-dir", default="results", help="where run folders are [default results]")
    return parser


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    about = "values of a setting, e.g. alpha=0.1,1.0 or strategy_args.eta=0.01,0.1; several --vary multiply"
    sweep.add_argument("--vary", action="append", default=[], metavar="SETTING=VALUE,VALUE", help=about)
    sweep.add_argument("--seeds", default="3", metavar="N", help="seeds of each, from --seed on [default 3]")
    about = "runs at a time [default 1; with --engine inline as many as there are CPUs]"
    sweep.add_argument("--jobs", metavar="N", help=about)
    add_config(sweep, RunConfig)


def _add_scale(scale: argparse.ArgumentParser) -> None:
    about = "clients, all of which train in a round unless --fraction-fit says otherwise; with commas"
    scale.add_argument(
        "--num-clients", dest="clients", default="10,100,500", metavar="N,N", help=f"{about} [default 10,100,500]"
    )
    about = "processes that train; they share this machine's CPUs and GPUs; with commas [default 1 and the CPUs]"
    scale.add_argument("--num-actors", dest="actors", metavar="N,N", help=about)
    scale.add_argument(
        "--engine", dest="engines", default="ray", metavar="TEXT", help="ray, inline or ray,inline [default ray]"
    )
    about = "strong: the same clients on more actors; weak: as many clients an actor [default both]"
    scale.add_argument("--scaling", choices=("strong", "weak", "both"), default="both", help=about)
    for flag, default, about in (
        ("--repeats", "3", "how often each cell is measured"),
        ("--examples-per-client", "50", "of the synthetic data set, unless --num-examples is given"),
        ("--cell-timeout", "600", "seconds after which a cell is ended and recorded as such"),
    ):
        scale.add_argument(flag, default=default, metavar="N", help=f"{about} [default {default}]")
    add_config(scale, RunConfig, without=SET_BY_THE_GRID)


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
