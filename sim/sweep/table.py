"""Write the results of a sweep: ``runs.csv``, ``sweep.csv`` and its pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.errors import WriteError
from sim.metrics import MetricName, Target, configured
from sim.run_folder import plots
from sim.run_folder.measurements import TO_TARGET, measured_column, metric_of, spent_to_target, table_of
from sim.run_folder.writer import write_whole
from sim.sweep.figure import results_figure, varied_number
from sim.sweep.planned import Planned

_CONFIDENCE = 0.95
CURVES, FINAL = "sweep.png", "final.png"


@dataclass(frozen=True)
class Interval:
    """Mean, sample standard deviation, and the 95 % confidence interval of the mean.

    The interval is that of Student's t distribution with n − 1 degrees of freedom. With one measurement everything
    but the mean is NaN; without measurements the mean is NaN, too.
    """

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Summarise measurements, assuming that they are independent and normally distributed."""
        found = np.array(list(values), float)
        if len(found) < 2:
            return cls(float(found[0]) if len(found) else math.nan, math.nan, math.nan, math.nan)
        from scipy.stats import t

        mean, sd = float(found.mean()), float(plots.sample_sd(found))
        half = float(t.ppf((1 + _CONFIDENCE) / 2, len(found) - 1)) * sd / math.sqrt(len(found))
        return cls(mean, sd, mean - half, mean + half)

    def named(self, name: str) -> dict[str, float]:
        """Return the four values as columns of a table: ``name_mean``, ``name_sd``, ``name_low``, ``name_high``."""
        return {f"{name}_{part}": value for part, value in vars(self).items()}


def metric_of_sweep(planned: Sequence[Planned]) -> MetricName:
    """Return the metric of a sweep: that of ``--metric`` or of the target, or what stands for its first finished run.

    It is accuracy where no run has finished.
    """
    config = planned[0].config
    asked = [*configured(config.metric).values()]
    if asked:
        return asked[0]
    target = Target.of(vars(config))
    if target is not None:
        return target.metric
    for each in planned:
        if each.status == "done":
            each.metric = each.metric or metric_of(each.run)
            if each.metric is not None:
                return each.metric
    return plots.ACCURACY


def _measures(metric: MetricName) -> tuple[str, ...]:
    return (f"final_{metric.name}", f"best_{metric.name}", *TO_TARGET)


def runs_frame(planned: Sequence[Planned]) -> pd.DataFrame:
    """Return one row per run: the varied values, seed, name, status, error, finished rounds, and the measures.

    The measures are the final and the best value of the sweep's metric, in the central test or of the clients if there
    is none, and what ``TO_TARGET`` names, which is missing if there is no target or it was not reached.
    """
    metric = metric_of_sweep(planned)
    rows = []
    for each in planned:
        row: dict[str, Any] = {**each.variant.values, "seed": each.config.seed, "run": each.run.name}
        finished = "finished_rounds" if "num_rounds" in each.variant.values else "num_rounds"
        row |= {"status": each.status, "error": each.error, finished: each.num_rounds}
        rows.append(row | (_measured(each, metric) if each.status == "done" else dict.fromkeys(_measures(metric))))
    return pd.DataFrame(rows)


def _measured(each: Planned, metric: MetricName) -> dict[str, Any]:
    final, best, *_ = names = _measures(metric)
    if final in each.measures:  # cached, because the screen is updated five times per second
        return each.measures
    target = Target.of(vars(each.config))
    rounds = table_of(each.run, [metric, *([target.metric] if target is not None else [])])
    values = rounds[measured_column(rounds, metric.name)]
    measured = values.dropna().tolist()
    found: dict[str, Any] = {**dict.fromkeys(names), final: values.iloc[-1]}
    found[best] = metric.best(measured) if measured else math.nan
    found |= spent_to_target(rounds, target)
    each.measures = found
    return found


def sweep_frame(planned: Sequence[Planned]) -> pd.DataFrame:
    """Return one row per variant: the varied values, numbers of runs, and the ``Interval`` of each measure over seeds.

    ``num_done``, ``num_failed`` and ``num_reached`` count the runs that finished, failed and reached the target. The
    intervals of what ``TO_TARGET`` names cover the runs that reached it.
    """
    runs, metric = runs_frame(planned), metric_of_sweep(planned)
    rows = []
    for variant in dict.fromkeys(id(each.variant) for each in planned):
        chosen = [index for index, each in enumerate(planned) if id(each.variant) == variant]
        part, values = runs.iloc[chosen], planned[chosen[0]].variant.values
        row: dict[str, Any] = {**values, "num_done": int((part.status == "done").sum())}
        row["num_failed"] = int((part.status == "failed").sum())
        row["num_reached"] = int(part.rounds_to_target.notna().sum())
        for measure in _measures(metric):
            row |= Interval.of(part[measure].dropna().astype(float)).named(measure)
        rows.append(row)
    return pd.DataFrame(rows)


def write_tables(folder: Path, planned: Sequence[Planned]) -> None:
    """Write ``runs.csv`` and ``sweep.csv``. A table that cannot be written leaves its old version unchanged.

    Raises:
        WriteError: a table cannot be written, e.g. because the disk is full.
    """
    _write(folder / "runs.csv", runs_frame(planned).to_csv(index=False).encode())
    _write(folder / "sweep.csv", sweep_frame(planned).to_csv(index=False).encode())


def write_pictures(folder: Path, planned: Sequence[Planned]) -> None:
    """Write ``sweep.png``, the curves of the finished runs, and ``final.png``, their last values over a varied number.

    There is none where the central test has not measured the metric, and no ``final.png`` where no number was varied,
    or more than two settings.

    Raises:
        WriteError: a picture cannot be written, e.g. because the disk is full, or an old one cannot be removed.
    """
    done = [each for each in planned if each.status == "done"]
    drawn = _pictures(done, metric_of_sweep(planned)) if done else {}
    for name in (CURVES, FINAL):
        if name in drawn:
            _write(folder / name, plots.render(drawn[name], "png"))
        else:
            _remove(folder / name)  # that of an earlier sweep in this folder


def _pictures(done: Sequence[Planned], metric: MetricName) -> dict[str, Any]:
    """Return the name of each picture of finished runs → its figure."""
    curves = plots.curves_of([each.run for each in done], [metric])
    try:
        drawn = {CURVES: plots.curves_figure(curves, [metric.name])}
    except plots.NothingMeasuredError:
        return {}
    x = varied_number([each.variant.values for each in done])
    if x is None:
        return drawn
    other = next((key for key in done[0].variant.values if key != x), None)
    label = f"final {plots.label_of(metric.name, curves)}"
    return {**drawn, FINAL: results_figure(runs_frame(done), x, other, f"final_{metric.name}", label)}


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be removed: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error
