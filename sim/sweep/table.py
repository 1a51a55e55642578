"""The runs of a sweep → ``runs.csv``, ``sweep.csv`` and ``sweep.png``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.errors import WriteError
from sim.run_folder import plots
from sim.run_folder.writer import write_whole
from sim.sweep.planned import Planned

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean, sample standard deviation, and the 95 % interval of the mean by Student's t with n − 1 degrees of freedom.

    With one measurement all but the mean are NaN, with none the mean, too.
    """

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Summarise measurements, which are taken as independent and normal."""
        found = np.array(list(values), float)
        if len(found) < 2:
            return cls(float(found[0]) if len(found) else math.nan, math.nan, math.nan, math.nan)
        from scipy.stats import t

        mean, sd = float(found.mean()), float(found.std(ddof=1))
        half = float(t.ppf((1 + _CONFIDENCE) / 2, len(found) - 1)) * sd / math.sqrt(len(found))
        return cls(mean, sd, mean - half, mean + half)

    def named(self, name: str) -> dict[str, float]:
        """The four as columns of a table: ``name_mean`` …"""
        return {f"{name}_{part}": value for part, value in vars(self).items()}


MEASURES = ("final_accuracy", "best_accuracy", "rounds_to_target", "seconds_to_target")
_KEYS = ["variant", "seed", "run", "status", "error", "num_rounds"]


def runs_frame(planned: Sequence[Planned]) -> pd.DataFrame:
    """One row a run: what varies, seed, name, status, error, rounds done, and the four measures.

    Accuracies are fractions 0–1 of the central test examples; rounds and seconds (rounds and checkpoints, without
    starting) are those until the target was reached, and missing where it was not or where there is none.
    """
    rows = []
    for each in planned:
        row: dict[str, Any] = {**each.variant.values, "seed": each.config.seed, "run": each.run.name}
        row |= {"status": each.status, "error": each.error, "num_rounds": each.num_rounds}
        rows.append(row | (_measured(each) if each.status == "done" else dict.fromkeys(MEASURES)))
    return pd.DataFrame(rows)


def _measured(each: Planned) -> dict[str, Any]:
    if each.measures:  # the screen asks five times a second
        return each.measures
    rounds = each.run.rounds()
    accuracy = rounds.test_accuracy
    found: dict[str, Any] = {**dict.fromkeys(MEASURES), "final_accuracy": accuracy.iloc[-1]}
    found["best_accuracy"] = accuracy.max()
    target = each.config.target_accuracy
    if target is not None and (accuracy >= target).any():
        first = int((accuracy >= target).to_numpy().argmax())
        spent = rounds.round_seconds.fillna(0) + rounds.checkpoint_seconds.fillna(0)
        found["rounds_to_target"] = int(rounds["round"].iloc[first])
        found["seconds_to_target"] = float(spent.iloc[: first + 1].sum())
    each.measures = found
    return found


def sweep_frame(planned: Sequence[Planned]) -> pd.DataFrame:
    """One row a variant: what varies, runs done, failed and at the target, and ``Interval`` of each measure.

    Rounds and seconds are over the runs that reached the target.
    """
    runs = runs_frame(planned)
    rows = []
    for variant in dict.fromkeys(id(each.variant) for each in planned):
        chosen = [index for index, each in enumerate(planned) if id(each.variant) == variant]
        part, values = runs.iloc[chosen], planned[chosen[0]].variant.values
        row: dict[str, Any] = {**values, "num_done": int((part.status == "done").sum())}
        row["num_failed"] = int((part.status == "failed").sum())
        row["num_reached"] = int(part.rounds_to_target.notna().sum())
        for measure in MEASURES:
            row |= Interval.of(part[measure].dropna().astype(float)).named(measure)
        rows.append(row)
    return pd.DataFrame(rows)


def write_tables(folder: Path, planned: Sequence[Planned]) -> None:
    """Write the two tables, each whole.

    Raises:
        WriteError: the disk is full or the folder is gone.
    """
    _write(folder / "runs.csv", runs_frame(planned).to_csv(index=False).encode())
    _write(folder / "sweep.csv", sweep_frame(planned).to_csv(index=False).encode())


def write_picture(folder: Path, planned: Sequence[Planned]) -> None:
    """Write the curves of the runs that are done.

    Raises:
        WriteError: the disk is full or the folder is gone.
    """
    runs = [each.run for each in planned if each.status == "done"]
    if runs:
        curves = plots.curves_of(runs)
        _write(folder / "sweep.png", plots.render(plots.curves_figure(curves, ["accuracy"]), "png"))


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error
