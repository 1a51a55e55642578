"""Write a report as one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sim.config.choices import WITH_ALPHA
from sim.disk import check_is_file
from sim.metrics import MetricName
from sim.report import comparison, figures, numbers
from sim.report.latex import latex_of
from sim.report.numbers import Group
from sim.run_folder import plots
from sim.run_folder.measurements import metric_of_all
from sim.run_folder.read_run import ReadRun

_MAX_FAILURE_KINDS = 50  # there may be many, e.g. if each error text contains the client's number

_FACTS = {
    "cpu": "processor",
    "num_cpus": "CPUs",
    "memory_gib": "memory (GiB)",
    "gpus": "GPUs",
    "cuda": "CUDA",
    "git_dirty": "changes not committed",
}


def page_of(runs: Sequence[ReadRun], title: str, asked: str | None = None) -> str:
    """Return the page as HTML.

    Args:
        runs: the runs to show; runs that differ only in their seed share a curve.
        title: the title of the page.
        asked: the metric that the page is about, as ``NAME``, ``NAME:min`` or ``NAME:max``; if it is None, accuracy or
            the first metric of the runs.

    Raises:
        ConfigError: a run has not measured the metric that was asked for.
        RunFolderError: a file of a run cannot be read.
    """
    metric = metric_of_all(runs, asked)
    groups = numbers.groups_of(runs, metric)
    # The name of a run is the name of a folder and may contain HTML, so everything is escaped.
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    seconds = {group.name: numbers.seconds_of(group) for group in groups}
    timed = {name: parts for name, parts in seconds.items() if parts["whole"] is not None}
    not_evaluated = [
        (group.name, bool(group.runs[0].config().get("fraction_evaluate")))
        for group in groups
        if not group.runs[0].is_central and numbers.quantiles_of(group, metric) is None
    ]
    failures = numbers.failures_of(runs)
    environment = comparison.compare_environments([run.environment for run in runs])
    tested_names, tested = numbers.tested_of(groups)
    quantities = dict.fromkeys((metric.name, "loss"))
    phases = {name: plots.phase_of([group.curve for group in groups], name) for name in quantities}
    summaries = [(group, numbers.summary_of(group, metric, phases)) for group in groups]
    return templates.get_template("page.html").render(
        metric=metric,
        tested_names=tested_names,
        tested=tested,
        title=title,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        runs=runs,
        groups=groups,
        marks=figures.curve_marks(groups),
        seeds=plots.seeds_of([group.curve for group in groups]),
        unfinished=numbers.unfinished(runs),
        **_configs(runs, groups),
        phases=phases,
        curves={name: figures.curves_picture(groups, name, phases[name]) for name in quantities},
        **_to_target(groups),
        summaries=summaries,
        are_in_nats=plots.are_in_nats([group.curve for group in groups]),
        chosen=[(group, of) for group in groups if (of := numbers.chosen_of(group, metric)) is not None],
        latex=latex_of([(group.name, summary) for group, summary in summaries], metric, phases[metric.name]),
        partitions=[_partition(group) for group in numbers.partitions_of(runs)],
        fairness=_fairness(groups, metric),
        never_evaluated=[name for name, will_evaluate in not_evaluated if not will_evaluate],
        not_evaluated_yet=[name for name, will_evaluate in not_evaluated if will_evaluate],
        fairness_marks=figures.fairness_marks(),
        quantiles=[(group, found) for group in groups if (found := numbers.quantiles_of(group, metric)) is not None],
        time=figures.time_picture(timed) if timed else None,
        seconds=seconds,
        parts=numbers.PARTS,
        part_marks=figures.part_marks(),
        failures=failures,
        max_failure_kinds=_MAX_FAILURE_KINDS,
        any_clients=any(not run.is_central for run in runs),
        environment=[
            (
                _FACTS.get(setting.name, setting.name.removeprefix("packages.").replace("_", " ")),
                setting.differs,
                _by_value(setting, runs),
            )
            for setting in environment
        ],
        without_environment=[run.name for run in runs if not run.environment],
    )


def _configs(runs: Sequence[ReadRun], groups: Sequence[Group]) -> dict[str, Any]:
    """Return the settings that differ, one row per curve, and the settings that are the same in all runs.

    In a row the seeds of a curve share a cell. The common settings are grouped by the kind of run that has them.
    """
    settings = comparison.compare_configs([run.config() for run in runs], [run.is_central for run in runs])
    place = {id(run): number for number, run in enumerate(runs)}
    kinds = {run.is_central for run in runs}
    differing = [setting for setting in settings if setting.differs]
    rows = [
        [
            ", ".join(dict.fromkeys(setting.values[place[id(run)]] or comparison.ABSENT for run in group.runs))
            for setting in differing
        ]
        for group in groups
    ]
    if len(kinds) > 1:
        rows = [
            ["centralised" if g.runs[0].is_central else "federated", *row] for g, row in zip(groups, rows, strict=True)
        ]
    common: dict[str, list[tuple[str, str]]] = {}
    for setting in settings:
        if not setting.differs:
            having = {run.is_central for run, value in zip(runs, setting.values, strict=True) if value is not None}
            of = "" if having == kinds else "centralised runs only" if True in having else "federated runs only"
            common.setdefault(of, []).append((setting.name, setting.common))
    return {
        "differing": [*(["kind"] if len(kinds) > 1 else []), *(setting.name for setting in differing)],
        "config_rows": rows,
        "common": common,
    }


def _to_target(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the rows about targets, and the unit of their traffic and its bytes; None if no run has traffic."""
    rows = [(group, found) for group in groups if (found := numbers.to_target_of(group)) is not None]
    traffic = [found.num_bytes.mean for _, found in rows if found.num_bytes is not None]
    return {"to_target": rows, "traffic_unit": plots.bytes_unit(max(traffic)) if traffic else None}


def _partition(group: numbers.PartitionGroup) -> dict[str, Any]:
    run, config = group.shown, group.shown.config()
    parts = [f"{config.get('num_clients', '?')} clients", str(config.get("partitioner", "unknown partitioner"))]
    if config.get("partitioner") in WITH_ALPHA and "alpha" in config:
        parts.append(f"alpha {config['alpha']}")
    parts += [f"{name} {value}" for name, value in config.get("partitioner_args", {}).items()]
    if config.get("min_partition_size", 1) != 1:
        parts.append(f"at least {config['min_partition_size']} examples each")
    described = f"{config.get('dataset', '?')}, {', '.join(parts)}"
    seeds = list(dict.fromkeys(other.config().get("seed") for other in group.runs))
    try:
        check_is_file(run.partition_path)
        content = run.partition_path.read_bytes()
    except OSError:
        content = b""
    return {
        "described": described,
        "run": run.name,
        "seed": config.get("seed"),
        "other_seeds": [seed for seed in seeds if seed != config.get("seed")],
        "picture": figures.png_picture(content, f"Number of examples of each class for each client: {described}"),
    }


def _fairness(groups: Sequence[Group], metric: MetricName) -> list[tuple[Group, figures.Picture]]:
    last_round = max(run.last_round for group in groups for run in group.runs)
    pictures = ((group, figures.fairness_picture(group, last_round, metric)) for group in groups)
    return [(group, picture) for group, picture in pictures if picture is not None]


def _by_value(setting: comparison.Setting, runs: Sequence[ReadRun]) -> list[tuple[str, list[str]]]:
    """Return each different value of a setting with the names of the runs that have it."""
    found: dict[str, list[str]] = {}
    for run, value in zip(runs, setting.values, strict=True):
        if value is not None:
            found.setdefault(value, []).append(run.name)
    return list(found.items())
