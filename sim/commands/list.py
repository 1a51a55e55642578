"""The command ``sim list``: the runs of a folder, those that were asked for, in the order that was asked for."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sim.commands.output import print_table
from sim.config.fields import parse_flag, parse_scalar, type_of
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.disk import bytes_of, shown_bytes
from sim.errors import ConfigError, RunFolderError, one_line
from sim.metrics import MetricName, shown
from sim.run_folder.folder import Run, list_runs
from sim.run_folder.measurements import (
    asked_for,
    compared_phase,
    direction_of,
    final_value,
    measured_column,
    metric_of,
    names_of,
    table_of,
)
from sim.run_folder.read_run import ReadRun

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class _Row:
    """What the list says of a run; None for what is not known.

    Attributes:
        done, wanted: rounds.
        continues_after: the round of the last checkpoint, of a run that is not done.
        ended: why the run is done before its last round; empty if it is not.
    """

    name: str
    done: int | None
    wanted: int | None
    metric: MetricName | None
    final: float | None
    best: float | None
    continues_after: int | None
    ended: str
    num_bytes: int

    def better(self, value: float | None) -> float | None:
        """Return a value of the metric, negative if larger is better, so that the best one comes first."""
        if value is None or math.isnan(value) or self.metric is None:
            return None
        return value if self.metric.smaller_is_better else -value


def _by_metric(row: _Row) -> Any:
    value = row.better(row.final)
    return None if row.metric is None else (row.metric.name, value is None, value or 0.0)


# Column → what it is ordered by, smallest first; None comes last.
ORDERS: dict[str, Callable[[_Row], Any]] = {
    "run": lambda row: row.name,
    "rounds": lambda row: None if row.done is None else -row.done,
    "metric": _by_metric,
    "final": lambda row: row.better(row.final),
    "best": lambda row: row.better(row.best),
    "size": lambda row: -row.num_bytes,
}


def show_list(arguments: argparse.Namespace) -> None:
    """``sim list``: print a table of the runs, with the metric that was asked for or that stands for each run."""
    wanted = [_condition(text) for text in arguments.filter]
    asked, known = arguments.metric, dict[str, None]()
    if asked is not None:
        MetricName.parse(asked)  # its form, before tables are read
    rows = []
    for run in list_runs(arguments.results_dir):
        try:
            if _fits(run.config(), wanted):
                read = ReadRun(run.path)
                names = [] if asked is None else names_of(read)
                known |= dict.fromkeys(names)
                rows.append(_row_of(read, None if asked is None else direction_of(asked_for(asked, names), asked, run)))
        except RunFolderError as error:
            print(f"sim: {error}", file=sys.stderr)  # the other runs are still shown
    if asked is not None and known and all(row.metric is None for row in rows):
        raise ConfigError(f"--metric {asked}: no run has measured it; they have {one_line(', '.join(known))}")
    if wanted and not rows:
        print(f"sim: no run in {arguments.results_dir} fits --filter {' '.join(arguments.filter)}", file=sys.stderr)
    order = ORDERS[arguments.sort]
    in_order = sorted((row for row in rows if order(row) is not None), key=order)
    _print([*in_order, *(row for row in rows if order(row) is None)])


def _row_of(run: Run, asked: MetricName | None) -> _Row:
    wanted, rounds, is_done = run.num_rounds, run.rounds(), run.is_done()
    metric = metric_of(run) if asked is None else asked
    table = None if metric is None else table_of(run, [metric])
    values = [] if metric is None or table is None else table[measured_column(table, metric.name)].dropna().tolist()
    last = run.last_checkpoint()
    return _Row(
        run.name,
        int(rounds["round"].max()) if len(rounds) else None,
        wanted,
        metric if values else None,
        None if metric is None or table is None or not values else _final(run, table, metric),
        metric.best(values) if metric is not None and values else None,
        last if last is not None and not is_done else None,
        _why_ended(run) if is_done and len(rounds) and int(rounds["round"].max()) < (wanted or 0) else "",
        bytes_of(run.path),
    )


def _final(run: Run, table: pd.DataFrame, metric: MetricName) -> float:
    return final_value(run, table, compared_phase([table], metric.name), metric.name)


def _why_ended(run: Run) -> str:
    target = run.target()
    if run.reached(target):
        return str(target)
    best = run.best()
    return "" if best is None or best.round is None else f"no better {best.metric.name} since round {best.round}"


def _print(rows: Sequence[_Row]) -> None:
    from rich.table import Table

    names = {row.metric.name for row in rows if row.metric is not None}
    of_all = one_line(names.pop(), 60) if len(names) == 1 else "accuracy" if not names else None
    headers = ["run", "rounds", "metric", "final", "best", "ended early", "--resume continues after", "size"]
    if of_all is not None:
        headers[3:5] = [f"final {of_all}", f"best {of_all}"]
    hidden = {"metric"} if of_all is not None else set()
    if not any(row.ended for row in rows):
        hidden.add("ended early")
    kept = [number for number, header in enumerate(headers) if header not in hidden]
    table = Table(*(headers[number] for number in kept), box=None)
    for each in table.columns[1:]:
        each.justify = "right"
    for row in rows:
        done, wanted = "–" if row.done is None else row.done, "?" if row.wanted is None else row.wanted
        cells = [
            one_line(row.name),
            f"{done}/{wanted}",
            "" if row.metric is None else one_line(row.metric.name, 60),
            "" if row.final is None else shown(row.final),
            "" if row.best is None else shown(row.best),
            one_line(row.ended, 60),
            "" if row.continues_after is None else f"round {row.continues_after}",
            shown_bytes(row.num_bytes),
        ]
        table.add_row(*(cells[number] for number in kept))
    print_table(table)


def _condition(text: str) -> tuple[str, str, Any]:
    """Parse ``setting=value`` or ``setting.argument=value``: setting, argument or nothing, value.

    Raises:
        ConfigError: the setting does not exist, or it does not accept the value.
    """
    place = f"--filter {text}"
    key, equals, right = text.partition("=")
    setting, _, argument = key.partition(".")
    setting = setting.removeprefix("--").replace("-", "_")
    known = {f.name: (config_type, f) for config_type in (CentralizedConfig, RunConfig) for f in fields(config_type)}
    if not (equals and setting and right):
        raise ConfigError(f"{place}: must be setting=value, e.g. alpha=0.5")
    if setting not in known:
        raise ConfigError(f"{place}: unknown setting {setting}; the settings are {', '.join(known)}")
    config_type, config_field = known[setting]
    kind, _ = type_of(config_type, setting)
    if (kind is dict) != bool(argument):
        hint = f"name one argument, e.g. {setting}.name=1" if kind is dict else f"{setting} has no arguments"
        raise ConfigError(f"{place}: {hint}")
    if kind is dict:
        return setting, argument, parse_scalar(right)
    try:
        return setting, "", parse_flag(config_type, config_field, parse_scalar(right) if kind is bool else right)
    except ConfigError as error:
        raise ConfigError(f"{place}: {str(error).partition(': ')[2]}") from None


def _fits(config: dict[str, Any], wanted: Sequence[tuple[str, str, Any]]) -> bool:
    """Return whether the config of a run has all these values; one without effect in a run is not in its config."""
    for setting, argument, value in wanted:
        found = config.get(setting)
        if argument:
            found = found.get(argument) if isinstance(found, dict) else None
        if isinstance(found, bool) is not isinstance(value, bool) or found != value:
            return False
    return True
