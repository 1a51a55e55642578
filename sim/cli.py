"""The command line: the commands and their flags.

The functions behind the commands are in ``sim.commands``. They import heavy packages only when they are called.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import gc
import io
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from threading import Thread

from sim.commands import run as training
from sim.commands.cache import cache
from sim.commands.clean import clean
from sim.commands.evaluate import evaluate
from sim.commands.export import FORMATS, export
from sim.commands.list import ORDERS, show_list
from sim.commands.partition import partition
from sim.commands.plot import X_NAMES, plot
from sim.commands.predict import predict
from sim.commands.report import report
from sim.commands.scale import scale
from sim.commands.size import size
from sim.commands.sweep import sweep
from sim.commands.table import table
from sim.config.choices import COLUMN_INCHES, PLOT_STYLES
from sim.config.flags import Parser, add_config, add_settings
from sim.config.run_config import AppConfig, CentralizedConfig, RunConfig
from sim.config.settings_of_flower_programs import USED_BY
from sim.errors import ClientError, ConfigError, SimError, many_lines, one_line
from sim.interrupts import interruptible, process_ends_after_block
from sim.network.options import SIMULATED_ONLY, ClientOptions, ServerOptions
from sim.run_folder.environment import versions
from sim.scale.cells import SET_BY_THE_GRID

_EXIT_INTERRUPTED = 130
_LAST_SECONDS = 3.0  # for what Python does at its end
_WRITE_WHAT_IS_DONE = ("run", "app", "centralized", "server", "sweep", "scale")  # commands
_FEWEST_OPEN_FILES = 64  # Ray did not start with 40
_WRITTEN, _OPENED = (errno.ENOSPC, errno.EDQUOT, errno.EIO), (errno.EMFILE, errno.ENFILE)
_OF_THE_MACHINE = dict.fromkeys(_WRITTEN, "written") | dict.fromkeys(_OPENED, "opened")  # what cannot be done


AddFlags = Callable[[argparse.ArgumentParser], None]


class _Version(argparse.Action):
    """Prints the versions and ends; they are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(versions())
        parser.exit()


def _parser() -> Parser:
    parser = Parser(prog="sim", description="Federated learning on virtual clients.", allow_abbrev=False)
    about = "print the versions of sim, Python, Flower, Ray and PyTorch"
    parser.add_argument("--version", action=_Version, nargs=0, help=about)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, act: Callable[[argparse.Namespace], None], about: str, add_flags: AddFlags) -> None:
        command = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False
        )
        command.set_defaults(act=act, parser=command)
        command.add_flags = add_flags

    add("run", training.run, "train a federation of virtual clients", _add_run)
    add("app", training.app, "run a Flower app as it is, on virtual clients", _add_app)
    about = "train the same model on all data in one place, without clients"
    add("centralized", training.centralized, about, lambda flags: add_config(flags, CentralizedConfig))
    about = "wait for clients in other processes and train with them over a network"
    add("server", training.server, about, lambda flags: _add_network(flags, ServerOptions))
    add("client", training.client, "train as one client of a server", lambda flags: _add_network(flags, ClientOptions))
    about = "show how many examples of each class every client gets, without training"
    add("partition", partition, about, _add_partition)
    add("devices", _devices, "show how fast the clients' devices are and when they are online", _add_devices)
    add("plot", plot, "draw the metrics and the loss of one or many runs, or when clients worked", _add_plot)
    add("report", report, "write one HTML page about one or many runs", _add_report)
    about = "evaluate a run's global model and each client's own model on all clients, also after fine-tuning"
    add("evaluate", evaluate, about, _add_evaluate)
    about = "write a run's model as a file of PyTorch, ONNX or safetensors, and print how it is used"
    add("export", export, about, _add_export)
    add("predict", predict, "print which classes the model of a run sees in images", _add_predict)
    add("table", table, "write the results of sweeps as a table of LaTeX, Markdown or CSV", _add_table)
    add("cache", cache, "list or clear the cache of decoded data sets and partitions", _add_cache)
    about = "remove checkpoints and client states of runs that are done, which then cannot be given more rounds"
    add("clean", clean, about, _add_clean)
    add("sweep", sweep, "execute a run for each combination of values and each seed", _add_sweep)
    about = "measure one client, and print how many fit on this machine and how long the run will take"
    add("size", size, about, lambda flags: add_config(flags, RunConfig))
    about = "measure throughput, scaling and memory for different numbers of clients and actors"
    add("scale", scale, about, _add_scale)
    add("list", show_list, "list the runs with their rounds, and the final and best of a metric", _add_list)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    about = "continue this run from its last checkpoint; the result is bit-identical to that of an uninterrupted run"
    run.add_argument("--resume", metavar="RUN", help=f"{about}; not for runs of sim server")
    about = "resume although modules of yours were changed; the later rounds are made with the changed code"
    run.add_argument("--allow-changed-code", action="store_true", help=about)
    run.add_argument("app_folder", nargs="?", metavar="DIR", help="folder of a Flower app, as for sim app")
    add_config(run, RunConfig)


def _add_app(app: argparse.ArgumentParser) -> None:
    app.add_argument("app_folder", nargs="?", metavar="DIR", help="folder of the app, with its pyproject.toml")
    about = "continue this run from its last checkpoint; the result is bit-identical to that of an uninterrupted run"
    app.add_argument("--resume", metavar="RUN", help=about)
    about = "resume although files of the app were changed; the later rounds are made with the changed code"
    app.add_argument("--allow-changed-code", action="store_true", help=about)
    add_settings(app, AppConfig, without={f.name for f in fields(AppConfig)} - set(USED_BY["app"]) | {"app"})


def _add_network(flags: argparse.ArgumentParser, options: type[ServerOptions | ClientOptions]) -> None:
    add_settings(flags, options)
    add_config(flags, RunConfig, hidden=SIMULATED_ONLY)


def _add_partition(shown: argparse.ArgumentParser) -> None:
    about = "picture file: .png, .svg or .pdf [default partition.png]"
    shown.add_argument("-o", "--output", default="partition.png", help=about)
    add_config(shown, RunConfig)


def _add_report(reported: argparse.ArgumentParser) -> None:
    about = "name in the results folder, path of a run, or folder of runs"
    reported.add_argument("runs", nargs="+", metavar="RUN", help=about)
    reported.add_argument("-o", "--output", default="report.html", help="HTML file: .html [default report.html]")
    _add_metric(reported)


def _add_metric(shown: argparse.ArgumentParser) -> None:
    about = (
        "metric to show, e.g. accuracy, loss or f1; NAME:min and NAME:max say whether smaller or larger is better "
        "[default accuracy, or the first metric of a run without]"
    )
    shown.add_argument("--metric", metavar="NAME[:min|max]", help=about)
    _add_results_dir(shown)


def _add_results_dir(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--results-dir", default="results", help="where run folders are [default results]")


def _add_plot(plot: argparse.ArgumentParser) -> None:
    about = "name in the results folder, path of a run, or folder of runs such as a sweep"
    plot.add_argument("runs", nargs="+", metavar="RUN", help=about)
    about = (
        "a panel for each value of a setting, e.g. alpha, or for each combination of two, e.g. alpha,strategy: rows "
        "and columns"
    )
    plot.add_argument("--grid", metavar="SETTING[,SETTING]", help=about)
    about = "paper: serif letters, colours for the colour-blind, line styles, the width of a column [default screen]"
    plot.add_argument("--style", choices=PLOT_STYLES, help=about)
    about = "columns of a two-column paper, 3.25 or 6.75 inches, with --style paper [default single]"
    plot.add_argument("--width", choices=tuple(COLUMN_INCHES), help=about)
    about = "draw the mean over the last N rounds instead of each round, which the axis says"
    plot.add_argument("--smooth", metavar="N", help=about)
    about = "draw a line at this value of the metric, e.g. 0.7 or accuracy>=0.7; several are possible"
    plot.add_argument("--target", action="append", default=[], metavar="X", help=about)
    # Which is what a comparison such as mae<=0.2 after --target becomes.
    plot.add_argument("--target-metric", action="append", default=[], dest="target", help=argparse.SUPPRESS)
    about = (
        "horizontal axis: rounds, seconds on the clock, virtual seconds since the start, or bytes that all clients "
        "have received and sent [default rounds]"
    )
    plot.add_argument(
        "--x", type=lambda text: "rounds" if text == "round" else text, choices=tuple(X_NAMES), help=about
    )
    about = "draw instead when each client of one run downloads, computes and uploads, in virtual seconds"
    plot.add_argument("--timeline", action="store_true", help=about)
    about = "rounds that --timeline shows [default as many as can be read, with at most 40 clients]"
    plot.add_argument("--first-rounds", metavar="N", help=about)
    plot.add_argument("-o", "--output", default="plot.png", help="picture file: .png, .svg or .pdf [default plot.png]")
    _add_metric(plot)


def _add_export(exporting: argparse.ArgumentParser) -> None:
    exporting.add_argument("run", metavar="RUN", help="name in the results folder, or path of a run")
    about = "form of the file [default what the ending of -o says, or torch]"
    exporting.add_argument("--format", choices=tuple(FORMATS), help=about)
    about = "file to write: .pt or .pth, .onnx, or .safetensors [default model.pt, model.onnx or model.safetensors]"
    exporting.add_argument("-o", "--output", metavar="FILE", help=about)
    _add_best(exporting)


def _add_predict(predicting: argparse.ArgumentParser) -> None:
    predicting.add_argument("run", metavar="RUN", help="name in the results folder, or path of a run")
    predicting.add_argument("images", metavar="IMAGE", nargs="+", help="image file")
    _add_best(predicting)


def _add_best(flags: argparse.ArgumentParser) -> None:
    about = "take the model of the best round by the validation, best.safetensors, instead of the last one"
    flags.add_argument("--best", action="store_true", help=about)
    _add_results_dir(flags)


def _add_cache(caching: argparse.ArgumentParser) -> None:
    about = "list the entries with their size and last use, or remove them; what a running process uses is kept"
    caching.add_argument("what", choices=("list", "clear"), help=about)
    about = "only entries that nobody has used for so many days [default all]"
    caching.add_argument("--older-than", metavar="DAYS", help=about)


def _add_clean(cleaning: argparse.ArgumentParser) -> None:
    about = "name in the results folder, or path of a run"
    cleaning.add_argument("runs", nargs="*", metavar="RUN", help=about)
    cleaning.add_argument("--all", action="store_true", help="all runs in the results folder")
    cleaning.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    _add_results_dir(cleaning)


def _add_list(listing: argparse.ArgumentParser) -> None:
    about = "column that orders the runs; of numbers, the best, the largest or the most come first [default run]"
    listing.add_argument("--sort", choices=tuple(ORDERS), default="run", help=about)
    about = "only runs with this setting, e.g. alpha=0.5 or strategy_args.eta=0.01; several --filter must all fit"
    listing.add_argument("--filter", action="append", default=[], metavar="SETTING=VALUE", help=about)
    _add_metric(listing)


def _add_evaluate(evaluation: argparse.ArgumentParser) -> None:
    evaluation.add_argument("run", metavar="RUN", help="name in the results folder, or path of a run")
    about = "also evaluate both models after so many epochs of training on the client's examples [default 0: do not]"
    evaluation.add_argument("--fine-tune-epochs", default="0", metavar="K", help=about)
    about = "table to write: .csv [default evaluation.csv in the run folder]"
    evaluation.add_argument("-o", "--output", metavar="FILE", help=about)
    about = "evaluate although modules of yours were changed after the run"
    evaluation.add_argument("--allow-changed-code", action="store_true", help=about)
    for flag, metavar, about in (
        ("--engine", "TEXT", "ray or inline [default that of the run]"),
        ("--num-cpus", "X", "CPUs per client [default those of the run]"),
        ("--num-gpus", "X", "GPUs per client [default those of the run]"),
        ("--results-dir", "TEXT", f"where run folders are [default {RunConfig.results_dir}]"),
    ):
        evaluation.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=about)


def _devices(arguments: argparse.Namespace) -> None:
    from sim.commands.devices import devices  # it needs numpy, without which the others start

    devices(arguments)


def _add_devices(devices: argparse.ArgumentParser) -> None:
    about = "time over which clients are online or not"
    devices.add_argument("--hours", default="24", metavar="X", help=f"{about} [default 24]")
    for flag, metavar, about in (
        ("--steps", "N", "training steps of a client per round [default those of the partition]"),
        ("--model-bytes", "N", "bytes that a client downloads, and uploads [default those of the model]"),
    ):
        devices.add_argument(flag, metavar=metavar, help=about)
    about = "picture file: .png, .svg or .pdf [default devices.png]"
    devices.add_argument("-o", "--output", default="devices.png", help=about)
    add_config(devices, RunConfig)


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    about = (
        "values of a setting, e.g. alpha=0.1,1.0 or strategy_args.eta=0.01,0.1; with several --vary, every combination "
        "of their values is run"
    )
    sweep.add_argument("--vary", action="append", default=[], metavar="SETTING=VALUE,VALUE", help=about)
    about = "number of seeds per combination, counting up from --seed [default 3]"
    sweep.add_argument("--seeds", default="3", metavar="N", help=about)
    about = "number of runs at the same time [default 1; with --engine inline the number of CPUs]"
    sweep.add_argument("--jobs", metavar="N", help=about)
    about = "take runs that the folder has although modules of yours were changed since"
    sweep.add_argument("--allow-changed-code", action="store_true", help=about)
    add_config(sweep, RunConfig)


def _add_table(table: argparse.ArgumentParser) -> None:
    table.add_argument("sweeps", nargs="+", metavar="SWEEP", help="folder of a sweep, with its runs.csv")
    for flag, what in (("--rows", "rows"), ("--columns", "columns")):
        about = f"settings whose values are in the {what}, separated by commas [default those that the sweeps vary]"
        table.add_argument(flag, metavar="SETTING,SETTING", help=about)
    about = "metric; NAME:min and NAME:max say whether smaller or larger is better [default accuracy, or the first one]"
    table.add_argument("--metric", metavar="NAME[:min|max]", help=about)
    table.add_argument("--value", choices=("final", "best"), default="final", help="round to show [default final]")
    about = "test for the central test, evaluate for the mean over the clients [default test, where a run has one]"
    table.add_argument("--phase", choices=("test", "evaluate"), help=about)
    about = "beside the mean: sample standard deviation, 95 %% interval or nothing [default sd]"
    table.add_argument("--spread", choices=("sd", "ci", "none"), default="sd", help=about)
    about = "in what the best mean is bold [default row, or column if there is one column only]"
    table.add_argument("--bold", choices=("row", "column", "none"), help=about)
    about = "test each cell against the one with this value, paired over the seeds, e.g. strategy=fedavg"
    table.add_argument("--baseline", metavar="SETTING=VALUE", help=about)
    about = "paired t-test, or Wilcoxon's signed-rank test [default t]"
    table.add_argument("--test", choices=("t", "wilcoxon"), help=about)
    table.add_argument(
        "--digits", metavar="N", help="decimals [default 3, of multiples of a power of ten where needed]"
    )
    about = "file to write: .tex, .md or .csv [default table.tex]"
    table.add_argument("-o", "--output", metavar="FILE", default="table.tex", help=about)


def _add_scale(scale: argparse.ArgumentParser) -> None:
    about = (
        "numbers of clients, separated by commas; all clients train in each round unless --fraction-fit or "
        "--clients-per-round is given"
    )
    scale.add_argument(
        "--num-clients", dest="clients", default="10,100,500", metavar="N,N", help=f"{about} [default 10,100,500]"
    )
    about = (
        "numbers of actors (processes that train), separated by commas; the actors share the CPUs and GPUs of this "
        "machine [default 1 and the number of CPUs]"
    )
    scale.add_argument("--num-actors", dest="actors", metavar="N,N", help=about)
    scale.add_argument(
        "--engine", dest="engines", default="ray", metavar="TEXT", help="ray, inline or ray,inline [default ray]"
    )
    about = "strong: the same clients on more actors; weak: the same clients per actor on more actors [default both]"
    scale.add_argument("--scaling", choices=("strong", "weak", "both"), default="both", help=about)
    for flag, default, about in (
        ("--repeats", "3", "number of measurements of each cell"),
        ("--examples-per-client", "50", "synthetic examples per client, unless --num-examples is given"),
        ("--cell-timeout", "600", "seconds after which a cell is stopped and recorded as timeout"),
    ):
        scale.add_argument(flag, default=default, metavar="N", help=f"{about} [default {default}]")
    add_config(scale, RunConfig, without=SET_BY_THE_GRID)


def _check_current_folder() -> None:
    """Check that the current folder has not been removed, without which neither Python nor PyTorch's libraries load.

    Raises:
        ConfigError: it has been.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed; change to another one") from None


def _check_open_files() -> None:
    """Raise the soft limit on open files to ``_FEWEST_OPEN_FILES`` where it is lower.

    Raises:
        ConfigError: the hard limit is lower, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FEWEST_OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < _FEWEST_OPEN_FILES:
        raise ConfigError(f"ulimit -n {hard}: this process may open {hard} files, but {_FEWEST_OPEN_FILES} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FEWEST_OPEN_FILES, hard))


_PLAIN = {"·": "-", "–": "-", "—": "-", "±": "+-", "…": "...", "→": "->", "÷": "/", "×": "x", "²": "2"}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler of the output streams: what an encoding does not have is written in its other characters."""
    assert isinstance(error, UnicodeEncodeError)
    wanted = error.object[error.start : error.end]
    text = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in wanted)
    return text, error.end


def _print_what_the_terminal_has() -> None:
    codecs.register_error("sim.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sim.plain")


def _discard_output() -> None:
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_the_user(error: BaseException) -> bool:
    """Return whether code outside of this package had a part in raising an error."""
    ours = f"{Path(__file__).parent}/"
    return any(not frame.filename.startswith(ours) for frame in traceback.extract_tb(error.__traceback__))


def _without_memory(error: ImportError | MemoryError) -> str:
    """Return in one line what does not fit into the memory that this process may use, or raise the error again."""
    if isinstance(error, MemoryError):
        return "the memory that this process may use does not suffice"
    if isinstance(error, ModuleNotFoundError) or error.path is None:  # no shared library that the system cannot load
        raise error
    return f"{error.path} cannot be loaded: {one_line(str(error))}"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 (success), 1 (the run stopped), 2 (bad input) or 130 (Ctrl-C)."""
    words_of = list(sys.argv[1:] if words is None else words)
    _print_what_the_terminal_has()
    try:
        _check_current_folder()
        _check_open_files()
        arguments = _parser().parse_strictly(words_of)
        with interruptible():
            arguments.act(arguments)
        for text in arguments.parser.replaced():
            print(f"sim: note: {text}", file=sys.stderr)
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a failure is seen here, and not by Python at its end
    except SimError as error:
        if isinstance(error, ClientError) and error.__cause__ is not None and _is_of_the_user(error.__cause__):
            # With the engine inline: shows where the user's code raised.
            print(many_lines("".join(traceback.format_exception(error.__cause__))), end="", file=sys.stderr)
        print(f"sim: {error}", file=sys.stderr)
        return error.exit_code
    except (ImportError, MemoryError) as error:
        print(f"sim: {_without_memory(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        written = "; what was done is on disk" if words_of and words_of[0] in _WRITE_WHAT_IS_DONE else ""
        with suppress(OSError):  # the terminal is gone
            print(f"sim: interrupted{written}", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return 0
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        if error.filename is None:
            _discard_output()
        place = one_line(str(error.filename or "the output"))
        print(f"sim: {place} cannot be {_OF_THE_MACHINE[error.errno]}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _open_closed_streams() -> None:
    """Open what the shell has closed (``>&-``), lest another file gets its number, and with it what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115, PTH123 - it takes the lowest number that is free
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def entry() -> None:
    """The console script ``sim``."""
    _open_closed_streams()
    words, sys.argv = sys.argv[1:], sys.argv[:1]  # else parsers of the user's own code would read the flags of sim
    process_ends_after_block()
    code = main(words)
    # Without this, Python's last garbage collection takes 1.3 s for the objects of torch and flwr.
    gc.freeze()
    Thread(target=_end_at_last, args=(code,), daemon=True).start()
    sys.exit(code)


def _end_at_last(code: int) -> None:
    """End this process where Python would wait, perhaps for ever, for threads that user code has left."""
    time.sleep(_LAST_SECONDS)
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if left:
        what = one_line(", ".join(left))
        print(f"sim: note: ends although threads of user code are still running: {what}", file=sys.stderr, flush=True)
        os._exit(code)
