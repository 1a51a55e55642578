"""What a run has spent, in virtual seconds and bytes: as the axis of curves, until a target, in sweeps and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import Sim
from sim import Run, RunConfig
from sim.errors import ConfigError
from sim.metrics import Target
from sim.run_folder import plots
from sim.run_folder.measurements import spent, spent_to_target
from sim.run_folder.records import RoundRecord
from sim.run_folder.writer import RunWriter
from sim.sweep.planned import Planned
from sim.sweep.screen import table_of as sweep_screen
from sim.sweep.table import runs_frame, sweep_frame
from sim.sweep.variants import Variant

SETTINGS = {"target_accuracy": 0.4, "num_rounds": 2}
# For each seed: accuracies, virtual seconds, bytes down, bytes up.
FIRST = ([0.1, 0.3, 0.5], [0.0, 2.0, 6.0], [None, 400_000, 400_000], [None, 100_000, 200_000])
SECOND = ([0.2, 0.4, 0.8], [0.0, 3.0, 5.0], [None, 1_000_000, 1_000_000], [None, 0, 500_000])
THIRD = ([0.2, 0.2, 0.2], [0.0, 1.0, 2.0], [None, 1, 1], [None, 1, 1])  # does not reach the target
WITHOUT = ([0.1, 0.5, 0.5], [None] * 3, [None] * 3, [None] * 3)

Values = Sequence[float | None]


def _run(root: Path, name: str, values: Sequence[Values], seed: int = 0) -> Run:
    accuracies, seconds, down, up = values
    writer = RunWriter.create(str(root), name, RunConfig(seed=seed, **SETTINGS).to_toml(), clients=True)
    for number, accuracy in enumerate(accuracies):
        record = RoundRecord(
            number,
            test_accuracy=accuracy,
            round_seconds=0.5,
            checkpoint_seconds=0.25,
            virtual_seconds=seconds[number],
            bytes_down=None if down[number] is None else int(down[number] or 0),
            bytes_up=None if up[number] is None else int(up[number] or 0),
        )
        writer.append(record)
    writer.write(writer.run.model_path, b"")
    writer.close()
    return writer.run


def test_bytes_are_counted_from_the_start_down_and_up(tmp_path: Path) -> None:
    rounds = _run(tmp_path, "one", FIRST).rounds()
    assert spent(rounds, "bytes").tolist() == [0, 500_000, 1_100_000]
    assert spent(rounds, "virtual_seconds").tolist() == [0, 2, 6]
    assert spent(rounds, "seconds").tolist() == [0.5, 1, 1.5]
    assert spent(rounds, "round").tolist() == [0, 1, 2]
    assert spent(rounds.assign(bytes_up=None), "bytes").isna().all()


def test_seeds_are_step_functions_on_one_grid(tmp_path: Path) -> None:
    runs = [_run(tmp_path, f"s{seed}", values, seed) for seed, values in enumerate((FIRST, SECOND))]
    (curve,) = plots.curves_of(runs)
    xs, mean, deviation = curve.series("test_accuracy", "virtual_seconds")
    assert xs.tolist() == [0, 2, 3, 5, 6]
    steps = [(0.1, 0.2), (0.3, 0.2), (0.3, 0.4), (0.3, 0.8), (0.5, 0.8)]
    assert mean.tolist() == pytest.approx([(first + second) / 2 for first, second in steps])
    assert deviation.tolist() == pytest.approx([abs(first - second) / math.sqrt(2) for first, second in steps])
    xs, mean, _ = curve.series("test_accuracy", "bytes")
    assert xs.tolist() == [0, 500_000, 1_000_000, 1_100_000, 2_500_000]
    assert mean.tolist() == pytest.approx([0.15, (0.3 + 0.2) / 2, (0.3 + 0.4) / 2, (0.5 + 0.4) / 2, (0.5 + 0.8) / 2])
    for x in ("virtual_seconds", "bytes", "seconds"):
        assert [len(values) for values in curve.series("test_loss", x)] == [0, 0, 0]  # was not measured


def test_a_line_ends_with_the_first_seed_that_is_not_complete(tmp_path: Path) -> None:
    runs = [_run(tmp_path, f"s{seed}", values, seed) for seed, values in enumerate((FIRST, SECOND))]
    (curve,) = plots.curves_of(runs)
    runs[0].model_path.unlink()
    assert curve.series("test_accuracy", "virtual_seconds")[0].tolist() == [0, 2, 3, 5, 6]
    runs[1].model_path.unlink()
    assert curve.series("test_accuracy", "virtual_seconds")[0].tolist() == [0, 2, 3, 5]


def test_a_round_without_a_test_keeps_the_value_before_it(tmp_path: Path) -> None:
    untested = ([0.1, None, 0.5], *FIRST[1:])
    runs = [_run(tmp_path, f"s{seed}", values, seed) for seed, values in enumerate((untested, SECOND))]
    (curve,) = plots.curves_of(runs)
    xs, mean, _ = curve.series("test_accuracy", "virtual_seconds")
    assert xs.tolist() == [0, 3, 5, 6]
    assert mean.tolist() == pytest.approx([0.15, (0.1 + 0.4) / 2, (0.1 + 0.8) / 2, (0.5 + 0.8) / 2])


def test_the_axes_have_units(tmp_path: Path) -> None:
    one, other = (_run(tmp_path, name, values) for name, values in (("one", FIRST), ("other", SECOND)))
    (axes,) = plots.curves_figure(plots.curves_of([one]), ["accuracy"], "virtual_seconds").axes
    assert axes.get_xlabel() == "virtual seconds since the start"
    assert axes.lines[0].get_xdata().tolist() == [0, 2, 6]
    assert axes.lines[0].get_drawstyle() == "default"
    (axes,) = plots.curves_figure(plots.curves_of([one, other]), ["accuracy"], "bytes").axes
    assert axes.get_xlabel() == "traffic of all clients since the start, down + up (MB)"
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 0.5, 1.1], [0, 1, 2.5]]
    seeds = [_run(tmp_path, f"s{seed}", FIRST, seed) for seed in (0, 1)]
    (axes,) = plots.curves_figure(plots.curves_of([*seeds, other]), ["accuracy"], "bytes").axes
    assert [line.get_drawstyle() for line in axes.lines] == ["steps-post", "steps-post"]
    assert [plots.bytes_unit(count)[0] for count in (0, 999, 1e6, 999e6, 1e9, 3e13)] == "kB kB MB MB GB TB".split()  # noqa: SIM905


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_run_that_has_not_measured_it_is_named(command: Sim, tmp_path: Path) -> None:
    results = tmp_path / "results"
    _run(results, "one", FIRST)
    _run(results, "without", WITHOUT)
    for x, missing in (
        ("virtual-seconds", "virtual_seconds in rounds.csv; only runs with --devices have virtual time"),
        ("bytes", "bytes_down and bytes_up in rounds.csv"),
    ):
        assert command("plot", "one", "--x", x, "-o", "one.svg").returncode == 0
        wrong = command("plot", "one", "without", "--x", x, "-o", "no.svg")
        assert (wrong.returncode, wrong.stderr) == (2, f"sim: --x {x}: without has no {missing}\n")
        assert not (tmp_path / "no.svg").exists()
    for x in ("round", "rounds", "seconds"):
        assert command("plot", "one", "without", "--x", x, "-o", "all.svg").returncode == 0
    with pytest.raises(ConfigError, match="x hours: must be one of round, seconds, virtual_seconds, bytes"):
        plots.curves_figure(plots.curves_of([Run(results / "one")]), ["accuracy"], "hours")


def test_what_was_spent_when_the_target_was_first_reached(tmp_path: Path) -> None:
    rounds = _run(tmp_path, "one", FIRST).rounds()
    to_target = spent_to_target(rounds, Target.parse("accuracy>=0.3"))
    assert list(to_target.values()) == [1, 1.0 + 0.5, 2.0, 500_000]
    assert list(spent_to_target(rounds, Target.parse("accuracy>=0.1")).values()) == [0, 0.75, 0.0, 0]
    for target in (None, Target.parse("accuracy>=0.6")):
        assert list(spent_to_target(rounds, target).values()) == [None] * 4
    without = spent_to_target(_run(tmp_path, "without", WITHOUT).rounds(), Target.parse("accuracy>=0.3"))
    assert list(without.values()) == [1, 1.5, None, None]


def _planned(root: Path, all_values: Sequence[Sequence[Values]]) -> list[Planned]:
    planned = []
    for seed, values in enumerate(all_values):
        run = _run(root, f"seed-{seed}", values, seed)
        config = RunConfig(name=run.name, results_dir=str(root), seed=seed, **SETTINGS)
        planned.append(Planned(Variant({}, (config,)), config, run))
        planned[-1].inspect()
        planned[-1].variant = planned[0].variant
    assert {each.status for each in planned} == {"done"}
    return planned


def test_a_sweep_has_seconds_and_bytes_to_the_target(tmp_path: Path) -> None:
    planned = _planned(tmp_path, [FIRST, SECOND, THIRD])
    runs, row = runs_frame(planned), sweep_frame(planned).iloc[0]
    assert runs.columns[-3:].tolist() == ["seconds_to_target", "virtual_seconds_to_target", "bytes_to_target"]
    assert runs["virtual_seconds_to_target"].tolist()[:2] == [6.0, 3.0]
    assert runs["bytes_to_target"].tolist()[:2] == [1_100_000, 1_000_000]
    assert runs[["virtual_seconds_to_target", "bytes_to_target"]].iloc[2].isna().all()
    assert row.num_reached == 2
    quantile = 12.706204736  # of Student's t with one degree of freedom, at 97.5 %
    for name, mean, sd in (
        ("virtual_seconds_to_target", 4.5, 3 / math.sqrt(2)),
        ("bytes_to_target", 1_050_000, 1e5 / math.sqrt(2)),
    ):
        half = quantile * sd / math.sqrt(2)
        found = [row[f"{name}_{part}"] for part in ("mean", "sd", "low", "high")]
        assert found == pytest.approx([mean, sd, mean - half, mean + half])
    table = sweep_screen(planned)
    assert [str(each.header) for each in table.columns][5:] == [
        "rounds to 0.4",
        "virtual s to 0.4",
        "MB to 0.4",
        "failed",
    ]
    assert [*table.columns[6].cells, *table.columns[7].cells] == ["4.5 ± 19.1", "1.1 ± 0.6"]


def test_a_sweep_without_virtual_time_shows_rounds_alone(tmp_path: Path) -> None:
    planned = _planned(tmp_path, [WITHOUT])
    assert math.isnan(sweep_frame(planned).iloc[0].virtual_seconds_to_target_mean)
    assert math.isnan(sweep_frame(planned).iloc[0].bytes_to_target_mean)
    assert [str(each.header) for each in sweep_screen(planned).columns][5:] == ["rounds to 0.4", "failed"]


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_report_has_seconds_and_bytes_to_the_target(command: Sim, tmp_path: Path) -> None:
    from test_report import Page

    for seed, values in enumerate((FIRST, SECOND, THIRD)):
        _run(tmp_path / "results", f"s{seed}", values, seed)
    assert command("report", "results", "-o", "page.html").returncode == 0
    page = Page(tmp_path / "page.html")
    header, row = page.texts("to-target")
    assert header[1:] == [
        "target",
        "seeds that reached it",
        "rounds",
        "minutes",
        "virtual seconds",
        "traffic, down + up (MB)",
    ]
    assert row[1:] == ["accuracy>=0.4", "2 of 3", "1.5 ± 0.7", "0.03 ± 0.01", "4.5 ± 2.1", "1.1 ± 0.1"]
    assert page.numbers("to-target")["s"][4:] == [
        (4.5, pytest.approx(3 / math.sqrt(2))),
        (1_050_000, pytest.approx(1e5 / math.sqrt(2))),
    ]
    _run(tmp_path / "others", "without", WITHOUT)
    assert command("report", "others", "-o", "page.html").returncode == 0
    assert Page(tmp_path / "page.html").texts("to-target")[0][1:] == header[1:5]
