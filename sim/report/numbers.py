"""Runs → the numbers of a report. Accuracies are fractions 0–1, losses nats an example, times as the names say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.report.runs import ReadRun
from sim.run_folder.plots import Curve, curves_of

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = ("p10", "p50", "p90", "worst10")
PARTS = ("broadcast", "train", "wait", "return", "aggregate", "test", "eval", "checkpoint")  # of a round's time
_DECIDES_PARTITION = (
    "dataset",
    "data_dir",
    "num_examples",
    "num_classes",
    "partitioner",
    "partitioner_args",
    "alpha",
    "num_clients",
    "min_partition_size",
)


@dataclass(frozen=True)
class Group:
    """One curve of the report, and the runs that are its seeds."""

    number: int
    name: str  # of the curve; no other has it
    curve: Curve  # whose label says how many seeds it has
    runs: list[ReadRun]


@dataclass(frozen=True)
class SeedStatistics:
    """One value of each seed."""

    values: list[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float | None:
        """Their sample standard deviation (n − 1); None for one value, of which nothing is known about others."""
        with np.errstate(invalid="ignore"):  # of a loss that is infinite, the deviation is no number
            return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Summary:
    """What came out of one curve; None is what was not measured."""

    rounds: tuple[int, int]  # the fewest and the most that a seed has done
    final_accuracy: SeedStatistics | None
    best_accuracy: SeedStatistics | None
    final_loss: SeedStatistics | None
    minutes: float | None
    updates_per_second: float | None
    failures: int | None


@dataclass(frozen=True)
class FailureKind:
    """Failed clients of one run with the same error."""

    run: str
    error: str
    count: int
    first_round: int
    first_client: int
    first_phase: str


@dataclass(frozen=True)
class PartitionGroup:
    """Runs whose clients hold the same, but for the seed."""

    shown: ReadRun  # the first in the order of the report
    runs: list[ReadRun]


def groups_of(runs: Sequence[ReadRun]) -> list[Group]:
    """Group runs into curves that have different names.

    Raises:
        RunFolderError: a run's config or rounds cannot be read.
    """
    by_frame = {id(run.rounds()): run for run in runs}
    seen: Counter[str] = Counter()
    groups = []
    for number, curve in enumerate(curves_of(runs)):
        name, *seeds = curve.label.rsplit(" (mean ± sd of ", 1)
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name} #{seen[name]}"
        label = " (mean ± sd of ".join([name, *seeds])
        groups.append(Group(number, name, replace(curve, label=label), [by_frame[id(frame)] for frame in curve.frames]))
    return groups


def measured(frames: Sequence[pd.DataFrame], column: str, pick: Callable[[pd.Series], float]) -> SeedStatistics | None:
    """Return what ``pick`` takes from a column's measured values in each frame; None if nothing was measured."""
    series = [frame[column].dropna() for frame in frames]
    values = [float(pick(values)) for values in series if len(values)]
    return SeedStatistics(values) if values else None


def last(values: pd.Series) -> float:
    """The last value of a column."""
    return float(values.iloc[-1])


def summary_of(group: Group) -> Summary:
    """Sum up one curve. Minutes are a seed's mean; client updates a second are those in training time, as on the
    screen of ``sim run``."""
    frames = group.curve.frames
    reached = [max(run.last_round, 0) for run in group.runs]
    seconds = [frame.round_seconds.sum() + frame.checkpoint_seconds.sum() for frame in frames]
    updates = sum(int(frame.num_clients.fillna(0).sum()) for frame in frames)
    training = sum(float(frame.fit_seconds.sum()) for frame in frames)
    central = group.runs[0].is_central
    return Summary(
        rounds=(min(reached), max(reached)),
        final_accuracy=measured(frames, "test_accuracy", last),
        best_accuracy=measured(frames, "test_accuracy", lambda values: float(values.max())),
        final_loss=measured(frames, "test_loss", last),
        minutes=float(np.mean(seconds)) / 60 if max(map(len, frames)) else None,
        updates_per_second=updates / training if training and not central else None,
        failures=None if central else sum(int(frame.num_failures.fillna(0).sum()) for frame in frames),
    )


def quantiles_of(group: Group) -> dict[str, SeedStatistics] | None:
    """Return the last measured ``eval_accuracy_…`` of each seed; None if clients were not asked."""
    found = {name: measured(group.curve.frames, f"eval_accuracy_{name}", last) for name in QUANTILES}
    return {name: spread for name, spread in found.items() if spread is not None} or None


def seconds_of(group: Group) -> dict[str, float | None]:
    """Return the mean seconds of each part of a round, over all rounds after round 0 of all seeds, and ``whole``.

    A part that only some rounds have (a checkpoint every tenth) counts 0 in the others; one that none has is None.
    ``whole`` is the mean of round_seconds + checkpoint_seconds.
    """
    frames = [frame[frame["round"] > 0] for frame in group.curve.frames]
    num_rounds = sum(len(frame) for frame in frames)

    def mean(column: str) -> float | None:
        values = np.concatenate([frame[column].dropna().to_numpy(float) for frame in frames])
        return float(values.sum()) / num_rounds if len(values) else None

    seconds = {part: mean(f"{part}_seconds") for part in PARTS}
    if seconds["train"] is None:  # sim centralized knows no clients' parts of it
        seconds["train"] = mean("fit_seconds")
    rounds = mean("round_seconds")
    return {**seconds, "whole": None if rounds is None else rounds + (seconds["checkpoint"] or 0)}


def failures_of(runs: Sequence[ReadRun]) -> list[FailureKind]:
    """Return the failed clients by run and error text, in the order in which they came.

    Raises:
        RunFolderError: clients.csv cannot be read.
    """
    kinds = []
    for run in runs:
        if run.is_central:
            continue
        clients = run.clients()
        failed = clients[clients.status == "failed"].fillna({"error": ""})
        for error, rows in failed.groupby("error", sort=False):
            first = rows.iloc[0]
            kinds.append(
                FailureKind(
                    run.name,
                    " ".join(str(error).split()) or "no text",
                    len(rows),
                    int(first["round"]),
                    int(first.client_id),
                    str(first.phase),
                )
            )
    return kinds


def partitions_of(runs: Sequence[ReadRun]) -> list[PartitionGroup]:
    """Return the runs with clients by what decides who holds what, seeds together."""
    groups: dict[str, list[ReadRun]] = {}
    for run in runs:
        if not run.is_central:
            config = run.config()
            groups.setdefault(repr([config.get(name) for name in _DECIDES_PARTITION]), []).append(run)
    return [
        PartitionGroup(next((run for run in of if run.partition_path.is_file()), of[0]), of) for of in groups.values()
    ]


def unfinished(runs: Sequence[ReadRun]) -> list[ReadRun]:
    """Return the runs that are under way or were stopped before their last round."""
    return [
        run
        for run in runs
        if run.last_round < (run.num_rounds or 0) and not run.reached(run.config().get("target_accuracy"))
    ]
