"""The runs of sweeps → the cells of a table: mean and spread over seeds, and how they differ from a baseline."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.config.fields import parse_scalar
from sim.disk import check_is_file
from sim.errors import ConfigError, RunFolderError
from sim.metrics import MetricName
from sim.run_folder.folder import Run
from sim.run_folder.measurements import column, compared_phase, final_value, metric_of_all, table_of
from sim.run_folder.settings import NOTHING, Key, differing, ordered, shown
from sim.sweep.table import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """What the runs of one combination of values measured.

    Attributes:
        by_seed: seed → value.
        interval: of these values.
        p_value: of the test against the baseline; NaN where there is none, or fewer than two common seeds.
        num_pairs: seeds that this cell and its baseline have in common.
    """

    by_seed: dict[int, float]
    interval: Interval
    p_value: float = math.nan
    num_pairs: int = 0


@dataclass(frozen=True)
class Cells:
    """A table.

    Attributes:
        rows, columns: the settings whose values are in the heads of rows and columns.
        row_keys, column_keys: their values, in order.
        cells: (row key, column key) → cell; a combination without a run that is done is missing.
        num_missing: runs that are not done.
        num_without_number: runs that measured the metric, but whose value is NaN.
        num_unmeasured: runs that did not measure it.
        baseline: ``setting = value``, or empty.
        test: ``t`` or ``wilcoxon``.
    """

    metric: MetricName
    value: str
    phase: str
    rows: Key
    columns: Key
    row_keys: list[Key]
    column_keys: list[Key]
    cells: dict[tuple[Key, Key], Cell]
    num_missing: int = 0
    num_without_number: int = 0
    num_unmeasured: int = 0
    other_settings: Key = ()
    baseline: str = ""
    test: str = "t"

    @property
    def num_seeds(self) -> tuple[int, int]:
        """Return the smallest and the largest number of seeds of a cell."""
        counts = [len(cell.by_seed) for cell in self.cells.values()]
        return min(counts), max(counts)

    def best(self, along: str) -> set[tuple[Key, Key]]:
        """Return the cells with the best mean of each row or column; none of a row with one cell.

        Args:
            along: ``row``, ``column`` or ``none``.
        """
        found: set[tuple[Key, Key]] = set()
        if along == "none":
            return found
        position = 0 if along == "row" else 1
        for key in dict.fromkeys(place[position] for place in self.cells):
            group = {place: cell.interval.mean for place, cell in self.cells.items() if place[position] == key}
            if len(group) > 1:
                best = self.metric.best(list(group.values()))
                found |= {place for place, mean in group.items() if mean == best}
        return found


@dataclass(frozen=True)
class _Measured:
    run: Run
    seed: int
    settings: dict[str, str]
    value: float = math.nan
    config: dict[str, Any] = field(default_factory=dict)


def varied_in(folder: Path) -> tuple[list[str], list[Run]]:
    """Return the settings that a sweep has varied, and its runs.

    Raises:
        RunFolderError: the folder has no ``runs.csv`` of a sweep.
    """
    path = folder / "runs.csv"
    try:
        check_is_file(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
            names = list(rows[0]) if rows else []
        return names[: names.index("seed")], [Run(folder / row["run"]) for row in rows]
    except OSError as error:
        raise RunFolderError(f"{folder}: is no folder of a sweep: runs.csv: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise RunFolderError(f"{path}: is no table of a sweep, which has the columns seed and run") from None


def table_cells(
    folders: Sequence[Path],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    metric: str | None = None,
    value: str = "final",
    phase: str | None = None,
    baseline: str | None = None,
    test: str = "t",
) -> Cells:
    """Read sweeps and return their table.

    Args:
        rows, columns: settings; None for those that the sweeps have varied, the last one in the columns.
        metric: ``NAME``, ``NAME:min`` or ``NAME:max``; None for the one that stands for the runs.
        value: ``final`` or ``best``.
        phase: ``test`` or ``evaluate``; None for the test, where any run has the metric in it.
        baseline: ``setting=value``.
        test: ``t`` or ``wilcoxon``.

    Raises:
        ConfigError: a setting is none that a table can have, or several runs would share a cell and a seed.
        RunFolderError: a folder is no sweep, or a run is damaged.
    """
    found = [varied_in(folder) for folder in folders]
    varied = list(dict.fromkeys(name for names, _ in found for name in names))
    row_names, column_names = _heads(varied, rows, columns)
    all_runs = {run.path.absolute(): run for _, runs in found for run in runs}.values()
    done = [run for run in all_runs if run.config_path.is_file() and run.is_done()]
    if not done:
        raise RunFolderError(f"{', '.join(map(str, folders))}: no run is done")
    of_table = metric_of_all(done, metric)
    tables = [table_of(run, [of_table]) for run in done]
    phase = phase or compared_phase(tables, of_table.name)
    of_cell = column(phase, of_table.name)
    numbers = [
        final_value(run, table, phase, of_table.name) if value == "final" else _best(table[of_cell], of_table)
        for run, table in zip(done, tables, strict=True)
    ]
    measured = [_measured(run, (*row_names, *column_names), number) for run, number in zip(done, numbers, strict=True)]
    _check_known(measured, (*row_names, *column_names), varied)
    cells: dict[tuple[Key, Key], dict[int, _Measured]] = {}
    for each in measured:
        place = tuple(tuple(each.settings[name] for name in names) for names in (row_names, column_names))
        others = cells.setdefault((place[0], place[1]), {})
        if each.seed in others:
            raise ConfigError(_shared(each, others[each.seed], (*row_names, *column_names)))
        others[each.seed] = each
    made = {
        place: Cell(
            values := {seed: each.value for seed, each in sorted(by_seed.items()) if not math.isnan(each.value)},
            Interval.of(values.values()),
        )
        for place, by_seed in cells.items()
    }
    made = {place: cell for place, cell in made.items() if cell.by_seed}
    if not made:
        other = "evaluate" if phase == "test" else "test"
        raise ConfigError(f"--phase {phase}: no run has measured {of_table.name} in it; --phase {other} may have it")
    row_keys, column_keys = (ordered(list(dict.fromkeys(place[n] for place in made))) for n in (0, 1))
    pairs = zip(tables, numbers, strict=True)
    num_without_number = sum(bool(table[of_cell].notna().any()) and math.isnan(number) for table, number in pairs)
    result = Cells(
        of_table,
        value,
        phase,
        row_names,
        column_names,
        row_keys,
        column_keys,
        made,
        num_missing=len(all_runs) - len(done),
        num_without_number=num_without_number,
        num_unmeasured=sum(not table[of_cell].notna().any() for table in tables),
        other_settings=tuple(
            name for name in differing([e.config for e in measured]) if name not in (*row_names, *column_names)
        ),
        test=test,
    )
    return result if baseline is None else _compared(result, baseline)


def _heads(varied: list[str], rows: Sequence[str] | None, columns: Sequence[str] | None) -> tuple[Key, Key]:
    given = [*(rows or ()), *(columns or ())]
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise ConfigError(f"--rows and --columns: name {twice} twice")
    left = [name for name in varied if name not in given]
    if rows is None and columns is None:
        return (tuple(left[:-1]), tuple(left[-1:])) if len(left) > 1 else (tuple(left), ())
    if rows is None:
        return tuple(left), tuple(columns or ())
    return tuple(rows), tuple(left if columns is None else columns)


def _best(values: pd.Series, metric: MetricName) -> float:
    known = values.dropna().tolist()
    return metric.best(known) if known else math.nan


def _measured(run: Run, names: Key, number: float) -> _Measured:
    config = run.config()
    settings = {name: shown(config, name) for name in names}
    return _Measured(run, int(config.get("seed", 0)), settings, number, config)


def _check_known(measured: Sequence[_Measured], names: Key, varied: Sequence[str]) -> None:
    for name in names:
        if all(each.settings[name] == NOTHING for each in measured):
            raise ConfigError(
                f"--rows and --columns: no run has the setting {name}; "
                + (f"the sweeps vary {', '.join(varied)}" if varied else "the sweeps vary nothing")
            )


def _shared(one: _Measured, other: _Measured, names: Key) -> str:
    skipped = {"name", "results_dir", "seed"}
    differ = sorted(
        name
        for name in {*one.config, *other.config} - skipped
        if one.config.get(name) != other.config.get(name) and name not in names
    )
    place = ", ".join(f"{name} {one.settings[name]}" for name in names) or "the only cell"
    reason = f"they differ in {', '.join(differ)}, which --rows or --columns can name" if differ else "they are equal"
    return f"{place}: {other.run.path} and {one.run.path} both have the seed {one.seed}; {reason}"


def _compared(table: Cells, baseline: str) -> Cells:
    setting, equals, value = baseline.partition("=")
    names = (*table.rows, *table.columns)
    if not equals or setting not in names:
        raise ConfigError(f"--baseline {baseline}: must be setting=value, with one of {', '.join(names)}")
    known = list(dict.fromkeys((*row, *col)[names.index(setting)] for row, col in table.cells))
    number = parse_scalar(value)
    value = f"{number:.12g}" if isinstance(number, float) else value
    if value not in known:
        raise ConfigError(f"--baseline {baseline}: no run has this value; {setting} is one of {', '.join(known)}")
    compared = dict(table.cells)
    for (row, col), cell in table.cells.items():
        whole = [*row, *col]
        whole[names.index(setting)] = value
        place = tuple(whole[: len(row)]), tuple(whole[len(row) :])
        other = table.cells.get(place)
        if other is not None and place != (row, col):
            seeds = sorted({*cell.by_seed} & {*other.by_seed})
            differences = [cell.by_seed[seed] - other.by_seed[seed] for seed in seeds]
            compared[row, col] = replace(cell, p_value=p_value(differences, table.test), num_pairs=len(seeds))
    return replace(table, cells=compared, baseline=f"{setting} = {value}")


def p_value(differences: Sequence[float], test: str) -> float:
    """Return the two-sided p-value of paired differences being zero; NaN for fewer than two.

    Args:
        test: ``t`` for Student's paired t-test, ``wilcoxon`` for Wilcoxon's signed-rank test.
    """
    if len(differences) < 2:
        return math.nan
    if not np.any(differences):
        return 1.0
    from scipy.stats import ttest_1samp, wilcoxon

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of differences that are all the same, or of zeros among them
        result = ttest_1samp(differences, 0.0) if test == "t" else wilcoxon(differences)
    return float(result.pvalue)
