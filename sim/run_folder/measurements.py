"""The measurements of a run as one table: ``rounds.csv``, and beside it what ``metrics.csv`` has of some metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sim.errors import ConfigError
from sim.metrics import PERCENTS, MetricName, Target, named, quantiles
from sim.run_folder.folder import Run
from sim.run_folder.records import RoundRecord, columns

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (*(f"p{percent}" for percent in PERCENTS), "worst10")
_PREFIXES = {"test": "test", "validation": "validation", "fit": "train", "evaluate": "eval"}
_ROUND_COLUMNS = frozenset(columns(RoundRecord))
# What curves are drawn against → the columns that it is computed from.
X_AXES = {
    "round": ("round",),
    "seconds": ("round_seconds",),
    "virtual_seconds": ("virtual_seconds",),
    "bytes": ("bytes_down", "bytes_up"),
}


def column(phase: str, name: str, quantile: str = "") -> str:
    """Return the column of a metric in ``table_of``: that of ``rounds.csv`` for accuracy and loss, where it has one.

    Args:
        phase: ``test``, ``validation``, ``fit`` or ``evaluate``.
        quantile: one of ``QUANTILES`` over the clients; the value of the round if it is empty.
    """
    own = "_".join(filter(None, (_PREFIXES[phase], name, quantile)))
    # A metric may be called seconds, but test_seconds is something else.
    return own if name in ("accuracy", "loss") and own in _ROUND_COLUMNS else "/".join((phase, name, quantile))


def table_of(run: Run, metrics: Iterable[MetricName] = (), *, with_quantiles: bool = False) -> pd.DataFrame:
    """Return ``rounds.csv`` with a column for each phase of each metric, named by ``column``.

    Args:
        with_quantiles: also add the quantiles of each metric over the clients that evaluated.

    Raises:
        RunFolderError: a table of the run is damaged or missing.
    """
    import pandas as pd

    table = run.rounds()
    found: dict[str, dict[int, float]] = {}
    for metric in metrics:
        in_rounds = metric.name in ("accuracy", "loss")
        rows = pd.DataFrame() if in_rounds and not with_quantiles else _metrics(run)
        for phase in _PREFIXES if not in_rounds else ():
            part = rows[(rows["phase"] == phase) & (rows["name"] == metric.name) & rows["client_id"].isna()]
            found[column(phase, metric.name)] = dict(zip(part["round"], part["value"], strict=True))
        if with_quantiles and not (metric.name == "accuracy" and not metric.smaller_is_better):
            found |= _quantiles(rows, metric)
    return table.assign(**{name: table["round"].map(values).astype("float64") for name, values in found.items()})


def compared_phase(tables: Iterable[pd.DataFrame], name: str) -> Literal["test", "evaluate"]:
    """Return the phase in which runs are compared by a metric: the central test.

    Where none of them has it in a test, as in Flower apps that evaluate on clients only, it is what clients measured.
    """
    phases: tuple[Literal["test", "evaluate"], ...] = ("test", "evaluate")
    measured = {
        phase
        for table in tables
        for phase in phases
        if (own := column(phase, name)) in table and table[own].notna().any()
    }
    return "evaluate" if measured == {"evaluate"} else "test"


def measured_column(table: pd.DataFrame, name: str) -> str:
    """Return the column of a metric in the phase by which a run is compared."""
    return column(compared_phase([table], name), name)


def final_value(run: Run, table: pd.DataFrame, phase: str, name: str) -> float:
    """Return a metric in the last round that has it; NaN if none has it, or if the last test has measured NaN.

    Args:
        table: that of ``table_of`` for this run.

    Raises:
        RunFolderError: a table of the run is damaged or missing.
    """
    values = table[column(phase, name)]
    has_value = values.notna()
    if not has_value.any():
        return math.nan
    if phase == "test" and name in ("accuracy", "loss"):
        has_value |= table["test_seconds"].notna()
    elif phase == "test" and not has_value.iloc[-1]:
        rows = _metrics(run)
        has_value |= table["round"].isin(rows[(rows["phase"] == phase) & (rows["name"] == name)]["round"])
    return float(values[has_value].iloc[-1])


def unmeasured(table: pd.DataFrame, x: str) -> list[str]:
    """Return the columns that ``spent`` needs for ``x`` and that have no value in any round."""
    return [name for name in X_AXES[x] if name not in table or not table[name].notna().any()]


def spent(table: pd.DataFrame, x: str) -> pd.Series:
    """Return what a run had spent at the end of each round, as float64; NaN if it was not measured.

    Args:
        x: a key of ``X_AXES``: the number of the round, wall-clock seconds in rounds, virtual seconds since the start
            of the run, or bytes that all clients were sent and have sent since then.
    """
    import pandas as pd

    names = X_AXES[x]
    if unmeasured(table, x):
        return pd.Series(math.nan, table.index)
    if x in ("round", "virtual_seconds"):
        return table[names[0]].astype("float64")
    return table[list(names)].astype("float64").fillna(0.0).sum(axis=1).cumsum()


TO_TARGET = ("rounds_to_target", "seconds_to_target", "virtual_seconds_to_target", "bytes_to_target")


def spent_to_target(table: pd.DataFrame, target: Target | None) -> dict[str, float | None]:
    """Return what a run had spent when it first reached a target, see ``measured_column``, as ``TO_TARGET`` names it.

    The seconds are those of rounds and checkpoints, without the start of the run. None is a value that was not
    measured, as are all if there is no target or it was not reached.

    Args:
        table: that of ``table_of``, with the metric of the target.
    """
    found: dict[str, float | None] = dict.fromkeys(TO_TARGET)
    reached = [] if target is None else [target.is_reached_by(v) for v in table[measured_column(table, target.name)]]
    if not any(reached):
        return found
    first = reached.index(True)
    checkpoints = table["checkpoint_seconds"].fillna(0).cumsum()
    series = [spent(table, x) for x in ("round", "seconds", "virtual_seconds", "bytes")]
    series[1] = series[1].fillna(0) + checkpoints
    values = [float(each.iloc[first]) for each in series]
    whole = ("rounds_to_target", "bytes_to_target")
    for name, value in zip(TO_TARGET, values, strict=True):
        found[name] = None if math.isnan(value) else int(value) if name in whole else value
    return found


def _quantiles(rows: pd.DataFrame, metric: MetricName) -> dict[str, dict[int, float]]:
    own = (rows["phase"] == "evaluate") & (rows["name"] == metric.name) & rows["client_id"].notna()
    of_rounds: dict[Any, dict[str, float]] = {
        number: quantiles(values.tolist(), smaller_is_better=metric.smaller_is_better)
        for number, values in rows[own & rows["value"].notna()].groupby("round")["value"]
    }
    return {
        column("evaluate", metric.name, name): {number: found[name] for number, found in of_rounds.items()}
        for name in QUANTILES
    }


def _metrics(run: Run) -> pd.DataFrame:
    if run.metrics_path.exists():
        return run.metrics()
    import pandas as pd

    from sim.run_folder.records import MetricRecord

    return pd.DataFrame(columns=columns(MetricRecord))  # a run of an earlier version


def names_of(run: Run) -> list[str]:
    """Return the names of the metrics that a run measured: those of the central test, of the validation, of
    evaluation, of training.

    Raises:
        RunFolderError: a table of the run is damaged or missing.
    """
    rounds, rows = run.rounds(), _metrics(run)
    found: list[str] = []
    for phase in ("test", "validation", "evaluate", "fit"):
        in_rounds = {name: column(phase, name) for name in ("loss", "accuracy")}
        found += [name for name, own in in_rounds.items() if own in rounds and rounds[own].notna().any()]
        means = rows[(rows["phase"] == phase) & rows["client_id"].isna() & rows["value"].notna()]
        found += means["name"].tolist()
    return list(dict.fromkeys(found))


def tested_last(run: Run) -> dict[str, float]:
    """Return every number of the central test in the last round of a run, in the order of the test.

    Raises:
        RunFolderError: a table of the run is damaged or missing.
    """
    rounds, rows = run.rounds(), _metrics(run)
    if not len(rounds):
        return {}
    found = {name: rounds[column("test", name)].iloc[-1] for name in ("loss", "accuracy")}
    of_last = rows[(rows["phase"] == "test") & (rows["round"] == rounds["round"].iloc[-1])]
    found |= dict(zip(of_last["name"], of_last["value"], strict=True))
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def metric_of(run: Run) -> MetricName | None:
    """Return the metric that stands for a run: its accuracy, its first other one or its loss; None if it has none.

    Raises:
        RunFolderError: a table of the run is damaged or missing.
    """
    rounds = run.rounds()
    # metrics.csv may be long, and is not needed for most runs.
    if rounds["test_accuracy"].notna().any() or rounds["eval_accuracy"].notna().any():
        return named("accuracy", run.config())
    names = names_of(run)
    others = [name for name in names if name != "loss"]
    return named((others or names)[0], run.config()) if names else None


def asked_for(asked: str, known: Iterable[str]) -> MetricName:
    """Return the metric that was asked for; one of the known ones may itself end in ``:min`` or ``:max``.

    Raises:
        ConfigError: there is no name.
    """
    return named(asked, {}) if asked in known else MetricName.parse(asked)


def direction_of(metric: MetricName, asked: str, run: Run) -> MetricName:
    """Return a metric that was asked for as ``asked``; what it does not say of the direction, the run's config may say.

    Raises:
        RunFolderError: the config cannot be read.
    """
    return metric if metric.name != asked else named(metric.name, run.config())


def metric_of_all(runs: Sequence[Run], asked: str | None = None) -> MetricName:
    """Return the metric to show for several runs: the one that was asked for, or what stands for them.

    Accuracy comes before the others; it is also the answer where nothing was measured yet.

    Args:
        asked: ``NAME``, ``NAME:min`` or ``NAME:max``.

    Raises:
        ConfigError: a run has not measured the metric that was asked for.
        RunFolderError: a table of a run is damaged or missing.
    """
    if asked is None:
        found = [metric for run in runs if (metric := metric_of(run)) is not None]
        return next((metric for metric in found if metric.name == "accuracy"), found[0] if found else None) or named(
            "accuracy", {}
        )
    of_runs = [(run, names_of(run)) for run in runs]
    metric = asked_for(asked, [name for _, names in of_runs for name in names])
    for run, names in of_runs:
        if metric.name not in names:
            known = ", ".join(names) or "nothing yet"
            raise ConfigError(f"--metric {asked}: {run.name} has not measured it; it has {known}")
    return direction_of(metric, asked, runs[0])
