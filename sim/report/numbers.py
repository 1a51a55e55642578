"""The numbers of a report, computed from the tables of runs.

Accuracies are fractions 0–1, losses are means over examples, and the units of times are part of their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.errors import one_line
from sim.metrics import MetricName, Target
from sim.run_folder.measurements import column, final_value, spent_to_target, table_of, tested_last
from sim.run_folder.plots import ACCURACY, Curve, curves_of, sample_sd
from sim.run_folder.read_run import ReadRun

if TYPE_CHECKING:
    import pandas as pd

SHOWN_QUANTILES = ("p10", "p50", "p90", "worst10")
# Of the time of a round.
PARTS = ("broadcast", "train", "wait", "return", "aggregate", "test", "validation", "eval", "checkpoint")
_PARTITION_SETTINGS = (
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
    """One curve of the report, and its runs, which differ only in their seed."""

    number: int
    name: str  # unique in the report
    curve: Curve  # its label is the name and, for several seeds, their number
    runs: list[ReadRun]


@dataclass(frozen=True)
class SeedStatistics:
    """One value for each seed, with mean and standard deviation."""

    values: list[float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float | None:
        """The sample standard deviation (n − 1) over the seeds; None for one seed."""
        return float(sample_sd(np.array(self.values))) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Summary:
    """The results of one curve; None for what was not measured."""

    num_seeds: int
    rounds: tuple[int, int]  # the smallest and the largest number of finished rounds of a seed
    final: SeedStatistics | None
    best: SeedStatistics | None
    final_loss: SeedStatistics | None
    minutes: float | None
    updates_per_second: float | None
    failures: int | None


@dataclass(frozen=True)
class ToTarget:
    """What the runs of one curve had spent when they first reached their target; None for what was not measured."""

    target: Target
    num_reached: int
    rounds: SeedStatistics | None
    minutes: SeedStatistics | None
    virtual_seconds: SeedStatistics | None
    num_bytes: SeedStatistics | None


@dataclass(frozen=True)
class Chosen:
    """What the validation chose: of each seed its best round, and what was measured in it.

    Attributes:
        metric: of the validation, by which the rounds were compared.
        rounds: the number of the best round.
        validation: the metric of the validation in that round.
        tested: the metric of the report in the central test of that round; None where no seed was tested in it.
    """

    metric: MetricName
    rounds: SeedStatistics
    validation: SeedStatistics
    tested: SeedStatistics | None


@dataclass(frozen=True)
class FailureKind:
    """The failed clients of one run that have the same error."""

    run: str
    error: str
    count: int
    first_round: int
    first_client: int
    first_phase: str


@dataclass(frozen=True)
class PartitionGroup:
    """Runs with the same partition, except for the seed."""

    shown: ReadRun  # the first with a picture of its partition, or else the first
    runs: list[ReadRun]


def groups_of(runs: Sequence[ReadRun], metric: MetricName = ACCURACY) -> list[Group]:
    """Group runs into curves and give each curve a unique name.

    Args:
        metric: what the report is about.

    Raises:
        RunFolderError: a run's config or tables cannot be read.
    """
    seen: Counter[str] = Counter()
    groups = []
    for number, curve in enumerate(curves_of(runs, [metric])):
        seen[curve.name] += 1
        name = curve.name if seen[curve.name] == 1 else f"{curve.name} #{seen[curve.name]}"
        groups.append(Group(number, name, replace(curve, name=name), list(curve.runs)))
    return groups


def measured(frames: Sequence[pd.DataFrame], column: str, pick: Callable[[pd.Series], float]) -> SeedStatistics | None:
    """Return one value of a column for each seed; None if nothing was measured.

    Args:
        frames: the table of each seed; a seed without a measured value is left out.
        column: a column of these tables.
        pick: chooses one number from the measured values of a seed.
    """
    series = [frame[column].dropna() for frame in frames]
    values = [float(pick(values)) for values in series if len(values)]
    return SeedStatistics(values) if values else None


def last(values: pd.Series) -> float:
    """Return the last value of a column."""
    return float(values.iloc[-1])


def summary_of(group: Group, metric: MetricName, phases: Mapping[str, str]) -> Summary:
    """Summarise one curve.

    Args:
        phases: the metric, and ``loss`` → the phase in which the curves are compared.

    ``minutes`` is the time of all rounds and checkpoints, mean over seeds. ``updates_per_second`` is the number of
    client updates divided by the seconds of training, as ``sim run`` shows it.
    """
    frames = group.curve.frames
    reached = [max(run.last_round, 0) for run in group.runs]
    seconds = [frame.round_seconds.sum() + frame.checkpoint_seconds.sum() for frame in frames]
    updates = sum(int(frame.num_clients.fillna(0).sum()) for frame in frames)
    training = sum(float(frame.fit_seconds.sum()) for frame in frames)
    central = group.runs[0].is_central
    of_metric = column(phases[metric.name], metric.name)
    return Summary(
        num_seeds=len(group.runs),
        rounds=(min(reached), max(reached)),
        final=_final(group, phases, metric.name),
        best=measured(frames, of_metric, lambda values: metric.best(values.tolist())),
        final_loss=_final(group, phases, "loss"),
        minutes=float(np.mean(seconds)) / 60 if max(map(len, frames)) else None,
        updates_per_second=updates / training if training and not central else None,
        failures=None if central else sum(int(frame.num_failures.fillna(0).sum()) for frame in frames),
    )


def _final(group: Group, phases: Mapping[str, str], name: str) -> SeedStatistics | None:
    pairs = zip(group.runs, group.curve.frames, strict=True)
    known = [(run, frame) for run, frame in pairs if frame[column(phases[name], name)].notna().any()]
    return SeedStatistics([final_value(run, frame, phases[name], name) for run, frame in known]) if known else None


def to_target_of(group: Group) -> ToTarget | None:
    """Return what one curve had spent when its runs reached their target; None if they have none.

    The minutes are those of rounds and checkpoints, without the start of the run.
    """
    target = group.runs[0].target()
    if target is None:
        return None
    of_seeds = [spent_to_target(table_of(run, [target.metric]), target) for run in group.runs]

    def over_seeds(name: str, unit: float = 1.0) -> SeedStatistics | None:
        values = [value / unit for found in of_seeds if (value := found[name]) is not None]
        return SeedStatistics(values) if values else None

    return ToTarget(
        target,
        num_reached=sum(found["rounds_to_target"] is not None for found in of_seeds),
        rounds=over_seeds("rounds_to_target"),
        minutes=over_seeds("seconds_to_target", 60.0),
        virtual_seconds=over_seeds("virtual_seconds_to_target"),
        num_bytes=over_seeds("bytes_to_target"),
    )


def chosen_of(group: Group, metric: MetricName) -> Chosen | None:
    """Return what the validation of one curve chose; None for a curve without a validation.

    Args:
        metric: what the report is about.
    """
    pairs = [(run, found) for run in group.runs if (found := run.best()) is not None and found.round is not None]
    if not pairs:
        return None
    tested = []
    for run, found in pairs:
        table = table_of(run, [metric])
        tested += table[column("test", metric.name)][table["round"] == found.round].dropna().tolist()
    return Chosen(
        pairs[0][1].metric,
        SeedStatistics([float(found.round or 0) for _, found in pairs]),
        SeedStatistics([found.value for _, found in pairs if found.value is not None]),
        SeedStatistics(tested) if tested else None,
    )


def quantiles_of(group: Group, metric: MetricName) -> dict[str, SeedStatistics] | None:
    """Return the quantiles of a metric over the clients in the last measured round; None if no client evaluated.

    Returns:
        A name of ``SHOWN_QUANTILES`` → its values.
    """
    names = {name: column("evaluate", metric.name, name) for name in SHOWN_QUANTILES}
    found = {name: measured(group.curve.frames, own, last) for name, own in names.items()}
    return {name: statistics for name, statistics in found.items() if statistics is not None} or None


def tested_of(groups: Sequence[Group]) -> tuple[list[str], list[tuple[Group, dict[str, SeedStatistics]]]]:
    """Return every number of the central test in the last round of each run.

    Returns:
        The names of all metrics, and for each curve the values over its seeds.
    """
    rows = []
    for group in groups:
        of_seeds = [tested_last(run) for run in group.runs]
        names = dict.fromkeys(name for seed in of_seeds for name in seed)
        rows.append((group, {n: SeedStatistics([seed[n] for seed in of_seeds if n in seed]) for n in names}))
    return list(dict.fromkeys(name for _, found in rows for name in found)), rows


def seconds_of(group: Group) -> dict[str, float | None]:
    """Return the mean seconds of each part of a round, over all rounds after round 0 of all seeds.

    Returns:
        A name of ``PARTS`` → seconds, and ``whole`` → seconds of a round with its checkpoint. A part that only some
        rounds have (such as a checkpoint every tenth round) counts as 0 in the others. A part that no round has is
        None.
    """
    frames = [frame[frame["round"] > 0] for frame in group.curve.frames]
    num_rounds = sum(len(frame) for frame in frames)

    def mean(column: str) -> float | None:
        values = np.concatenate([frame[column].dropna().to_numpy(float) for frame in frames])
        return float(values.sum()) / num_rounds if len(values) else None

    seconds = {part: mean(f"{part}_seconds") for part in PARTS}
    if seconds["train"] is None:  # sim centralized does not measure the parts of fit_seconds
        seconds["train"] = mean("fit_seconds")
    rounds = mean("round_seconds")
    return {**seconds, "whole": None if rounds is None else rounds + (seconds["checkpoint"] or 0)}


def failures_of(runs: Sequence[ReadRun]) -> list[FailureKind]:
    """Return the failed clients, grouped by run and error text, in the order of their first failure.

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
                    one_line(str(error)) or "no text",
                    len(rows),
                    int(first["round"]),
                    int(first.client_id),
                    str(first.phase),
                )
            )
    return kinds


def partitions_of(runs: Sequence[ReadRun]) -> list[PartitionGroup]:
    """Group the federated runs by the settings that determine their partition, except for the seed.

    The clients of Flower programs, which bring their own data, have no partition.
    """
    groups: dict[str, list[ReadRun]] = {}
    for run in runs:
        config = run.config()
        if not (run.is_central or "app" in config or "client_fn" in config):
            groups.setdefault(repr([config.get(name) for name in _PARTITION_SETTINGS]), []).append(run)
    return [
        PartitionGroup(next((run for run in of if run.partition_path.is_file()), of[0]), of) for of in groups.values()
    ]


def unfinished(runs: Sequence[ReadRun]) -> list[ReadRun]:
    """Return the runs that are still running or were stopped before their last round."""
    return [
        run
        for run in runs
        if run.last_round < (run.num_rounds or 0) and not run.reached(run.target()) and not run.stopped_early()
    ]
