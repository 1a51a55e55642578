"""Any metric: metrics.csv, which direction is better, targets, and what plot, list, sweep and report make of it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import PROGRAMS, SMALL, Sim
from sim import Run, RunConfig, resume, simulate
from sim.engine.interface import ClientResult
from sim.errors import ConfigError, RunFolderError, WriteError
from sim.metrics import MetricName, Target, configured, named, quantiles, shown
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder import plots
from sim.run_folder.measurements import column, metric_of, names_of, table_of
from sim.run_folder.progress import RoundProgress
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord, columns
from sim.run_folder.writer import RunWriter
from sim.server import results
from sim.sweep.planned import Planned
from sim.sweep.screen import table_of as sweep_screen
from sim.sweep.table import runs_frame, sweep_frame
from sim.sweep.variants import Variant

REGRESSION: dict[str, Any] = {
    "dataset": "regression:load_data",
    "model": "regression:Line",
    "train": "regression:train",
    "test": "regression:test",
    "partitioner": "iid",
    "num_clients": 5,
    "clients_per_round": 3,
    "num_rounds": 3,
    "fraction_evaluate": 1.0,
    "local_epochs": 1,
    "engine": "inline",
}


def _simulated(root: Path, name: str, **settings: Any) -> Run:
    return simulate(RunConfig(**{**REGRESSION, "results_dir": str(root), "name": name, **settings}))


def _fake(root: Path, name: str, maes: list[float], **settings: Any) -> Run:
    """A finished run whose central test and whose two clients measured these mae, and r2 = 1 − mae."""
    config = RunConfig(num_rounds=len(maes) - 1, name=name, results_dir=str(root), **settings)
    writer = RunWriter.create(str(root), name, config.to_toml(), clients=True)
    for number, mae in enumerate(maes):
        numbers = {"mae": mae, "r2": 1 - mae}
        rows = results.test_records(number, "test", 40, 2 * mae, numbers)
        clients = [
            ClientResult(client_id, num_examples=10 * (client_id + 1), loss=mae, metrics={"mae": mae + client_id})
            for client_id in (0, 1)
        ]
        rows += results.metric_records(clients, "evaluate", number, {})
        record = RoundRecord(number, test_loss=2 * mae, round_seconds=1.0, test_metrics=numbers)
        writer.append(record, [], rows)
    writer.write(writer.run.model_path, b"")
    writer.close()
    writer.release()
    return writer.run


@pytest.mark.parametrize(
    ("text", "name", "smaller"),
    [
        ("accuracy", "accuracy", False),
        ("loss", "loss", True),
        ("val_loss", "val_loss", True),
        ("test-MAE", "test-MAE", True),
        ("rmse", "rmse", True),
        ("perplexity", "perplexity", True),
        ("r2", "r2", False),
        ("top5", "top5", False),
        ("glossy", "glossy", False),
        ("mae:max", "mae", False),
        ("score:min", "score", True),
        ("a:b", "a:b", False),
    ],
)
def test_a_metric_knows_its_direction(text: str, name: str, smaller: bool) -> None:
    metric = MetricName.parse(text)
    assert (metric.name, metric.smaller_is_better) == (name, smaller)
    assert metric.best([2.0, 1.0, 3.0]) == (1.0 if smaller else 3.0)


def test_the_config_may_say_the_direction() -> None:
    found = configured("mae, package.module:score:min")
    assert {source: (metric.name, metric.smaller_is_better) for source, metric in found.items()} == {
        "mae": ("mae", True),
        "package.module:score": ("score", True),
    }
    assert named("score", {"metric": "package.module:score:min"}).smaller_is_better
    assert not named("score", {}).smaller_is_better
    assert named("score", {"target_metric": "score<=0.5"}).smaller_is_better
    assert named("score", {"validation_metric": "score:min"}).smaller_is_better
    assert named("class_errors", {}).smaller_is_better
    with pytest.raises(ConfigError, match=r"^--metric :min: must be the name of a metric, NAME:min or NAME:max$"):
        RunConfig(metric="accuracy,:min")


def test_targets() -> None:
    low, high = Target.parse("mae<=0.2"), Target.parse(" top 5 >= 9e-1 ")
    assert [low.is_reached_by(value) for value in (0.2, 0.1, 0.21, math.nan, None)] == [True, True, False, False, False]
    assert (high.name, high.is_reached_by(0.9), high.is_reached_by(0.89)) == ("top 5", True, False)
    assert str(low) == "mae<=0.2"
    for text in ("mae", "mae<0.2", "<=3", "mae<=x", "mae<=nan", "mae<=1e999", "mae<=1_0", "accuracy>=80"):
        with pytest.raises(ConfigError) as caught:
            RunConfig(target_metric=text)
        assert str(caught.value).startswith(f"--target-metric {text}: ")
    with pytest.raises(ConfigError, match=r"--target-accuracy 0.5 and --target-metric mae<=1: give one of the two"):
        RunConfig(target_accuracy=0.5, target_metric="mae<=1")


def test_the_worst_tenth_follows_the_direction() -> None:
    assert quantiles([1.0, 2.0, 4.0])["worst10"] == 1.0
    assert quantiles([1.0, 2.0, 4.0], smaller_is_better=True) == {
        "p10": pytest.approx(1.2),
        "p25": 1.5,
        "p50": 2.0,
        "p75": 3.0,
        "p90": pytest.approx(3.6),
        "worst10": 4.0,
    }


def test_rows_of_clients_and_their_means() -> None:
    clients = [
        ClientResult(3, num_examples=10, loss=1.0, metrics={"loss": 9.0, "f1": 0.5, "note": "text", "big": 10**400}),
        ClientResult(4, num_examples=30, loss=2.0, metrics={"f1": math.nan, "ok": True}),
        ClientResult(5, num_examples=0, loss=7.0, metrics={"f1": 0.9}),
    ]
    rows = results.metric_records(clients, "evaluate", 2, {"ok": 0.25, "own": 3.0})
    assert [tuple(row)[2:5] for row in rows] == [
        (3, 10, "loss"),
        (3, 10, "f1"),
        (4, 30, "loss"),
        (4, 30, "f1"),
        (4, 30, "ok"),
        (None, 40, "loss"),
        (None, 10, "f1"),
        (None, 30, "ok"),
        (None, 40, "own"),
    ]
    assert [row.value for row in rows[:3]] == [1.0, 0.5, 2.0]
    assert math.isnan(rows[3].value or 0)
    # The mean of f1 is that of the client that measured it; of ok the strategy made something else.
    assert [row.value for row in rows[4:]] == [1.0, 1.75, 0.5, 0.25, 3.0]
    assert {tuple(row)[:2] for row in rows} == {(2, "evaluate")}


def test_the_table_grows_by_complete_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter.create(str(tmp_path), "one", "seed = 3\n", clients=True)
    first = [MetricRecord(0, "test", None, 40, "a, b", math.nan), MetricRecord(0, "fit", 7, None, "mae", math.inf)]
    writer.append(RoundRecord(0, test_loss=math.nan), [], first)
    text = 'round,phase,client_id,num_examples,name,value\n0,test,,40,"a, b",\n0,fit,7,,mae,inf\n'
    assert writer.run.metrics_path.read_text() == text
    assert writer.run.rounds_path.read_text().splitlines()[1] == "0" + (len(columns(RoundRecord)) - 1) * ","
    frame = writer.run.metrics()
    assert frame["name"].tolist() == ["a, b", "mae"]
    assert frame["client_id"].isna().tolist() == [True, False]
    assert math.isnan(frame["value"][0])
    assert frame["value"][1] == math.inf

    synced = []

    def fail_at_the_third(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 3:
            raise OSError(28, "disk")

    monkeypatch.setattr(os, "fsync", fail_at_the_third)
    client = ClientRecord(1, "fit", 7, 3, None, None, 0.5, 0, None, "ok", None)
    before = writer.marks()
    with pytest.raises(WriteError, match=r"rounds.csv: cannot be written: disk"):
        writer.append(RoundRecord(1), [client], first)
    assert writer.run.metrics_path.read_text() == text
    assert writer.marks() == before


@pytest.mark.slow
def test_a_regression_run_is_recorded_with_all_its_metrics(
    tmp_path: Path, in_programs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _simulated(tmp_path, "whole")
    metrics, rounds, clients = run.metrics(), run.rounds(), run.clients()
    tested = metrics[metrics["phase"] == "test"]
    assert tested["name"].tolist() == ["loss", "mae", "r2"] * 4
    assert set(tested["num_examples"]) == {40}
    assert tested[tested["name"] == "loss"]["value"].tolist() == rounds.test_loss.tolist()
    assert rounds[["test_accuracy", "eval_accuracy", "eval_accuracy_p50"]].isna().all(axis=None)
    assert clients.accuracy.isna().all()
    for phase, names, count in (("fit", ["loss", "batches"], 3), ("evaluate", ["loss", "mae", "r2"], 5)):
        own = metrics[(metrics["phase"] == phase) & (metrics["round"] == 2) & metrics["client_id"].notna()]
        of_all = metrics[(metrics["phase"] == phase) & (metrics["round"] == 2) & metrics["client_id"].isna()]
        assert own["name"].tolist() == names * count
        assert of_all["name"].tolist() == names
        loss = own[own["name"] == "loss"]
        assert loss["value"].tolist() == clients[(clients["round"] == 2) & (clients.phase == phase)].loss.tolist()
        mean = of_all[of_all["name"] == "loss"]["value"].tolist()
        assert mean == [rounds["train_loss" if phase == "fit" else "eval_loss"][2]]
        assert mean == [pytest.approx(np.average(loss["value"], weights=loss["num_examples"]))]
    # A client keeps 4 of its 20 examples, which are too few for the program's r2.
    assert metrics[(metrics["phase"] == "evaluate") & (metrics["name"] == "r2")]["value"].isna().all()
    assert names_of(run) == ["loss", "mae", "r2", "batches"]
    assert metric_of(run) == MetricName("mae", smaller_is_better=True)
    table = table_of(run, [MetricName("mae", smaller_is_better=True)], with_quantiles=True)
    last = metrics[(metrics["phase"] == "evaluate") & (metrics["round"] == 3) & (metrics["name"] == "mae")]
    assert table[column("evaluate", "mae", "worst10")][3] == last[last["client_id"].notna()]["value"].max()
    assert {path.name for path in run.path.glob("*.png")} == {"metric.png", "loss.png", "fairness.png", "partition.png"}

    monkeypatch.setattr(plots, "render", lambda *_: b"")  # the pictures of the runs below take most of their time
    for name in ("curves_figure", "fairness_figure"):
        monkeypatch.setattr(plots, name, lambda *_: None)

    # A run that was interrupted has the same table as one that was not.
    def stop(record: RoundRecord) -> None:
        if record.round == 2:
            assert list(record.test_metrics) == ["mae", "r2"]
            raise KeyboardInterrupt

    config = RunConfig(**REGRESSION, results_dir=str(tmp_path), name="cut")
    with pytest.raises(KeyboardInterrupt):
        simulate(config, on_record=stop)
    cut = Run(tmp_path / "cut")
    with cut.metrics_path.open("a") as file:
        file.write("3,fit,")
    resume(cut)
    assert cut.metrics_path.read_bytes() == run.metrics_path.read_bytes()

    # As a run of an earlier version: without metrics.csv.
    capsys.readouterr()
    place = cut.checkpoints_path / "3" / "state.json"
    about = json.loads(place.read_text())["state"]
    del about["tables"]["metrics.csv"]
    place.write_text(json.dumps({"sha256": checkpoints._sum_of(about), "state": about}))
    cut.metrics_path.write_text("mine")
    with pytest.raises(RunFolderError, match=r"metrics.csv: is no table of this run; move it elsewhere"):
        resume(cut, num_rounds=4)
    cut.metrics_path.unlink()
    with pytest.raises(RunFolderError, match=r"has no metrics.csv"):
        cut.metrics()
    resume(cut, num_rounds=4)
    assert set(cut.metrics()["round"]) == {4}
    assert "metrics.csv begins after round 3" in capsys.readouterr().err

    # The same values as without a target, until it is reached.
    maes = tested[tested["name"] == "mae"]["value"].tolist()
    ended = _simulated(tmp_path, "ended", target_metric=f"mae<={maes[1]!r}")
    assert ended.rounds()["round"].tolist() == [0, 1]
    assert ended.is_done()
    with pytest.raises(RunFolderError, match=r"reached --target-metric mae<=\S+ in round 1; a lower one continues"):
        resume(ended)
    capsys.readouterr()
    resume(ended, target_accuracy=1.0)  # instead of the target of before
    assert ended.metrics_path.read_bytes() == run.metrics_path.read_bytes()
    assert "target_metric" not in ended.config()
    _simulated(tmp_path, "never", target_metric="f1>=0.5", num_rounds=1)
    line = "note: the target f1>=0.5 is not reached without the metric f1; the central test measured loss, mae, r2\n"
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_a_strategy_that_aggregates_metrics(tmp_path: Path, in_programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "render", lambda *_: b"")
    run = simulate(RunConfig(**SMALL, strategy="own:MetricsFedAvg", results_dir=str(tmp_path), name="one"))
    rows = run.metrics()
    means = rows[(rows["phase"] == "fit") & rows["client_id"].isna()]
    assert means["name"].tolist() == ["loss", "largest"] * 2
    assert means[means["name"] == "loss"]["value"].tolist() == run.rounds().train_loss[1:].tolist()
    sizes = run.clients().groupby("round").num_examples
    assert means[means["name"] == "largest"]["value"].tolist() == sizes.max().tolist()
    assert means["num_examples"].tolist() == np.repeat(sizes.sum(), 2).tolist()


@pytest.mark.slow
def test_centralised_training(tmp_path: Path, in_programs: None, command: Sim) -> None:
    words = [f"--{name}={REGRESSION[name]}" for name in ("dataset", "model", "train", "test")]
    shown_run = command("centralized", *words, "--epochs", "1", "--results-dir", str(tmp_path / "r"), cwd=PROGRAMS)
    assert shown_run.returncode == 0, shown_run.stderr
    (run,) = [Run(path) for path in (tmp_path / "r").iterdir()]
    rows = run.metrics()
    assert rows["phase"].tolist() == ["test"] * 3 + ["fit"] * 2 + ["test"] * 3
    assert rows["num_examples"].tolist() == [40, 40, 40, 100, 100, 40, 40, 40]
    mae, loss = rows["value"].iloc[-2], rows["value"].iloc[-3]
    assert f"final mae       {mae:.4f} (loss {loss:.4f}) after epoch 1\n" in shown_run.stdout
    assert f"epoch 1/1 · mae {mae:.4f} · loss {loss:.4f}" in shown_run.stderr
    assert shown_run.stdout.splitlines()[-1].endswith("metric.png")


def test_the_progress_shows_the_accuracy_or_the_first_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with RoundProgress(9) as progress:
        progress.update(RoundRecord(1, test_accuracy=0.5, test_loss=2.0, test_metrics={"f1": 0.25, "accuracy": 0.5}))
        progress.update(RoundRecord(2, test_loss=2.0, test_metrics={"empty": math.nan, "mae": 123456.0}))
        progress.update(RoundRecord(3, eval_accuracy=0.25, eval_loss=3.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "round 1/9 · accuracy 0.5000 · loss 2.0000"
    assert lines[1].startswith("round 2/9 · mae 1.235e+05 · loss 2.0000")
    assert lines[2].startswith("round 3/9 · clients' accuracy 0.2500 · clients' loss 3.0000")
    assert [shown(value) for value in (0.0, 1.5, 1e-6, -2e7)] == ["0.0000", "1.5000", "1e-06", "-2e+07"]


@pytest.mark.usefixtures("pictures")
def test_plot_and_list_take_any_metric(tmp_path: Path, command: Sim) -> None:
    _fake(tmp_path / "results", "one", [0.9, 0.3, 0.5])

    def listed(*words: str) -> list[list[str]]:
        result = command("list", *words)
        assert (result.returncode, result.stderr) == (0, "")
        heading, *rows = [line.split() for line in result.stdout.splitlines()]
        return [heading, *(row[:-2] for row in rows)]  # without the size

    assert listed()[0][2:6] == ["final", "mae", "best", "mae"]
    assert listed()[1] == ["one", "2/2", "0.5000", "0.3000"]
    assert listed("--metric", "mae:max")[1] == ["one", "2/2", "0.5000", "0.9000"]
    assert listed("--metric", "r2")[1] == ["one", "2/2", "0.5000", "0.7000"]
    unknown = command("list", "--metric", "f1")
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "sim: --metric f1: no run has measured it; they have loss, mae, r2\n",
    )
    other = RunWriter.create(str(tmp_path / "results"), "two", RunConfig(num_rounds=1).to_toml(), clients=True)
    other.append(RoundRecord(0, test_accuracy=0.25))
    other.close()
    header, first, second = listed()
    assert header[:5] == ["run", "rounds", "metric", "final", "best"]
    assert (first[2:], second[2:]) == (["mae", "0.5000", "0.3000"], ["accuracy", "0.2500", "0.2500"])

    assert command("plot", "one", "--metric", "r2", "-o", "r2.svg").returncode == 0
    assert "<svg" in (tmp_path / "r2.svg").read_text()
    wrong = command("plot", "two", "one", "--metric", "r2", "-o", "no.svg")
    assert (wrong.returncode, wrong.stderr) == (2, "sim: --metric r2: two has not measured it; it has accuracy\n")
    assert not (tmp_path / "no.svg").exists()
    empty = command("list", "--metric", ":min")
    assert (empty.returncode, empty.stderr.count("\n")) == (2, 1)


def test_the_picture_has_the_name_and_the_values_of_the_metric(tmp_path: Path) -> None:
    mae = MetricName("mae", smaller_is_better=True)
    curves = plots.curves_of([_fake(tmp_path, "one", [0.9, 0.3, 0.5], fraction_evaluate=1.0)], [mae])
    (axes,) = plots.curves_figure(curves, ["mae"]).axes
    assert axes.get_ylabel() == "mae"
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        [0.9, 0.3, 0.5],
        pytest.approx([0.9 + 2 / 3, 0.3 + 2 / 3, 0.5 + 2 / 3]),
    ]
    (loss,) = plots.curves_figure(curves, ["loss"]).axes
    assert loss.get_ylabel() == "loss"  # of a regression, which is not in nats
    (fairness,) = plots.fairness_figure(curves, mae).axes
    assert fairness.get_ylabel() == "clients' mae"
    median, worst = fairness.lines
    assert median.get_ydata().tolist() == pytest.approx([1.4, 0.8, 1.0])
    assert worst.get_ydata().tolist() == pytest.approx([1.9, 1.3, 1.5])  # the largest


def test_a_sweep_counts_rounds_to_a_target_of_mae(tmp_path: Path) -> None:
    settings = {"target_metric": "mae<=0.4"}
    planned = []
    for seed, maes in enumerate(([0.9, 0.4, 0.5], [0.9, 0.8, 0.2], [0.9, 0.7, 0.6])):
        run = _fake(tmp_path, f"seed-{seed}", maes, seed=seed, **settings)
        config = RunConfig(num_rounds=2, name=run.name, results_dir=str(tmp_path), seed=seed, **settings)
        planned.append(Planned(Variant({}, (config,)), config, run))
        planned[-1].inspect()
    for each in planned:
        each.variant = planned[0].variant
    assert [each.status for each in planned] == ["done"] * 3
    runs, row = runs_frame(planned), sweep_frame(planned).iloc[0]
    assert runs["final_mae"].tolist() == [0.5, 0.2, 0.6]
    assert runs["best_mae"].tolist() == [0.4, 0.2, 0.6]
    assert runs["rounds_to_target"].tolist()[:2] == [1, 2]
    assert runs["seconds_to_target"].tolist()[:2] == [2.0, 3.0]
    assert runs["rounds_to_target"].isna().tolist() == [False, False, True]
    assert (row.num_reached, row.best_mae_mean) == (2, pytest.approx(0.4))
    headers = [str(each.header) for each in sweep_screen(planned).columns]
    assert headers[3:6] == ["final mae", "best mae", "rounds to mae<=0.4"]


def test_the_flag_target_means_a_metric_where_it_compares(command: Sim, tmp_path: Path) -> None:
    for words in (["--target", "mae<x"], ["--target", "mae<=x"], ["--target=mae>=x"], ["--target", "0.7"]):
        result = command("run", *words)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "--target-metric " in result.stderr
    assert command("run", "--target", "price").stderr.startswith("sim: --target price: belongs to --dataset csv")
    result = command("sweep", "--target", "accuracy>=2")
    assert result.stderr == ("sim: --target-metric accuracy>=2: an accuracy is a fraction, at least 0 and at most 1\n")


def _results(folder: Path) -> None:
    for seed, maes in enumerate(([0.9, 0.3, 0.5], [0.9, 0.8, 0.7])):
        _fake(folder, f"run-seed-{seed}", maes, seed=seed, fraction_evaluate=1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_report_shows_any_metric(command: Sim, tmp_path: Path) -> None:
    from test_report import Page

    _results(tmp_path / "results")
    pages = []
    for words in ([], ["--metric", "r2"]):
        result = command("report", "results", *words, "-o", "page.html")
        assert (result.returncode, result.stderr) == (0, "")
        pages.append(Page(tmp_path / "page.html"))
    page, other = pages
    assert page.texts("summary-table")[0][3:5] == ["final mae mean ± sample sd", "best mae mean ± sample sd"]
    summary = page.numbers("summary-table")["run"]
    assert summary[2:5] == [
        (pytest.approx(0.6), pytest.approx(0.02**0.5)),
        (pytest.approx(0.5), pytest.approx(0.08**0.5)),
        (pytest.approx(1.2), pytest.approx(0.08**0.5)),
    ]
    assert page.texts("metrics")[0] == ["curve", "loss", "mae", "r2"]
    assert [found and found[0] for found in page.numbers("metrics")["run"]] == pytest.approx([1.2, 0.6, 0.4])
    assert page.numbers("quantiles")["run"][-1] == (pytest.approx(1.6), pytest.approx(0.02**0.5))  # the largest mae
    assert "Mae of the clients" in page.text
    assert (other.numbers("summary-table")["run"][3] or (0,))[0] == pytest.approx(
        0.5
    )  # the largest r2 of each: 0.7, 0.3
    assert "quantiles" not in other.tables  # no client measured r2
    wrong = command("report", "results", "--metric", "f1")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
