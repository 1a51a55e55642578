"""Sweeps: combinations of values and seeds, a sweep that is killed and started again, and exact intervals."""

from __future__ import annotations

import signal
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import PROGRAMS, Sim, made_once
from federation import Program, wait_until
from sim import Run, RunConfig
from sim.errors import ConfigError, RunFolderError, WriteError
from sim.run_folder.folder import list_runs
from sim.run_folder.records import RoundRecord
from sim.run_folder.writer import RunWriter
from sim.sweep.planned import Planned
from sim.sweep.table import Interval, runs_frame, write_pictures
from sim.sweep.variants import differences, parse_axis, variants

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WORDS = ["sweep", "--vary", "alpha=0.3,10", "--vary", "strategy=fedprox", "--seeds", "2", "--results-dir", "s"]
FEW = ["--num-clients", "20", "--num-rounds", "3", "--local-epochs", "2", "--engine", "inline"]
TARGET = 0.4


def _sweep_twice(folder: Path) -> None:
    words = [*WORDS, *FEW, "--target-accuracy", str(TARGET)]
    killed = Program(folder, "killed", words)
    killed.wait_for("1/4 ")
    killed.process.kill()
    killed.end()
    before = {run.name: run.rounds_path.stat().st_mtime_ns for run in list_runs(str(folder / "s")) if run.is_done()}
    assert 1 <= len(before) < 4
    again = Program(folder, "again", words)
    assert again.end() == 0, again.lines
    assert again.lines[-3:] == [
        "tables          s/sweep.csv, s/runs.csv",
        "picture         s/sweep.png",
        "final values    s/final.png",
    ]
    for name, changed in before.items():  # no finished run was executed again
        assert (folder / "s" / name / "rounds.csv").stat().st_mtime_ns == changed


@pytest.fixture
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of 4 runs that was killed after one run and started again."""
    return made_once(tmp_path_factory, "sweep", _sweep_twice) / "s"


def test_its_table_has_the_numbers_of_the_sweep(swept: Path, command: Sim, tmp_path: Path) -> None:
    done = command("table", str(swept), "-o", "t.csv", "--baseline", "alpha=0.3")
    assert (done.returncode, done.stderr) == (0, "")
    found, expected = pd.read_csv(tmp_path / "t.csv"), pd.read_csv(swept / "sweep.csv")
    names = ["alpha", *(f"final_accuracy_{part}" for part in ("mean", "sd", "low", "high"))]
    pd.testing.assert_frame_equal(found[names], expected[names], check_exact=True)
    assert found["num_pairs"].tolist()[1:] == [2]
    assert 0 < found["p_value"].iloc[1] < 1


def test_a_killed_sweep_continues_and_has_each_run_once(swept: Path) -> None:
    names = [run.name for run in list_runs(str(swept))]
    assert names == [f"alpha-{alpha}_strategy-fedprox_seed-{seed}" for alpha in ("0.3", "10.0") for seed in (0, 1)]
    for name in names:
        rounds = Run(swept / name).rounds()
        assert rounds["round"].tolist() == list(range(len(rounds)))
        reached = rounds.test_accuracy >= TARGET
        assert len(rounds) == 4 or reached.iloc[-1]
        assert not reached.iloc[:-1].any()
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (swept / "final.png").read_bytes().startswith(b"\x89PNG")
    tables = {"sweep.csv", "runs.csv"}
    assert {path.name for path in swept.iterdir()} - set(names) == {*tables, "sweep.png", "final.png"}


def test_intervals_follow_from_the_tables_of_the_runs(swept: Path) -> None:
    table = pd.read_csv(swept / "sweep.csv")
    assert table[["alpha", "strategy"]].to_numpy().tolist() == [[0.3, "fedprox"], [10.0, "fedprox"]]
    for _, row in table.iterrows():
        frames = [Run(swept / f"alpha-{row.alpha}_strategy-{row.strategy}_seed-{seed}").rounds() for seed in (0, 1)]
        reached = [frame for frame in frames if (frame.test_accuracy >= TARGET).any()]
        values = {
            "final_accuracy": [frame.test_accuracy.iloc[-1] for frame in frames],
            "best_accuracy": [frame.test_accuracy.max() for frame in frames],
            "rounds_to_target": [float(frame["round"].max()) for frame in reached],
            "seconds_to_target": [float((frame.round_seconds + frame.checkpoint_seconds).sum()) for frame in reached],
        }
        assert (row.num_done, row.num_failed, row.num_reached) == (2, 0, len(reached))
        for measure, found in values.items():
            mean, sd, low, high = (row[f"{measure}_{part}"] for part in ("mean", "sd", "low", "high"))
            if not found:
                assert np.isnan(mean)
                continue
            assert mean == pytest.approx(np.mean(found))
            if len(found) > 1 and np.std(found) > 0:
                wanted = stats.t.interval(0.95, len(found) - 1, np.mean(found), stats.sem(found))
                assert (sd, low, high) == pytest.approx((np.std(found, ddof=1), *wanted))
    assert table.num_reached.sum() > 0


@pytest.mark.usefixtures("pictures")
def test_its_report_in_a_browser(command: Sim, swept: Path, tmp_path: Path, browser: Chrome) -> None:
    from browser import assert_shown

    assert command("report", str(swept), "-o", "sweep.html").returncode == 0
    for width in (1280, 390):
        # The images are accuracy, loss, one partition for each alpha, and the time.
        assert_shown(browser, tmp_path / "sweep.html", width, num_images=5)
    means = pd.read_csv(swept / "sweep.csv").final_accuracy_mean
    page = (tmp_path / "sweep.html").read_text()
    for mean in means:
        assert f"{mean:.4f} ±" in page


def test_an_interval_of_exact_numbers() -> None:
    # With 2 degrees of freedom, 2.5 % of the t distribution lie above 4.302653.
    found = Interval.of([1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert Interval.of([0.5]).mean == 0.5
    assert np.isnan([Interval.of([0.5]).low, Interval.of([]).mean]).all()


def test_the_same_folder_with_other_settings_is_refused(command: Sim, swept: Path) -> None:
    result = command(*WORDS[:-1], str(swept), *FEW, "--lr", "0.05")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "holds a run with --lr 0.1, not 0.05; choose another --results-dir or remove the folder" in result.stderr


def test_a_folder_of_a_run_that_was_killed_at_once_is_waiting(tmp_path: Path) -> None:
    (variant,) = variants({}, [parse_axis("alpha=1")], 1, str(tmp_path))
    planned = Planned(variant, variant.configs[0], Run(tmp_path / "one"))
    planned.run.path.mkdir()
    planned.inspect()
    assert planned.status == "waiting"
    (tmp_path / "one" / "mine.txt").touch()
    with pytest.raises(RunFolderError, match="exists, but is not a run folder"):
        planned.inspect()


@pytest.mark.slow
def test_a_failed_run_is_shown_and_does_not_end_the_sweep(command: Sim, tmp_path: Path) -> None:
    words = ["sweep", "--vary", "on_client_error=stop,drop", "--seeds", "1", "--results-dir", str(tmp_path / "s")]
    result = command(*words, *FEW, "--client", "own:Failing", "--max-local-steps", "1", cwd=PROGRAMS)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("sim: 1 of 2 runs failed, first on_client_error-stop_seed-0: client ")
    assert last.endswith("; run the same command again to retry them")
    runs = pd.read_csv(tmp_path / "s" / "runs.csv")
    assert runs.status.tolist() == ["failed", "done"]
    assert "ValueError" in runs.error[0]
    assert pd.read_csv(tmp_path / "s" / "sweep.csv").num_failed.tolist() == [1, 0]
    words = ["sweep", "--vary", "alpha=0.001", "--seeds", "1", "--results-dir", str(tmp_path / "refused")]
    refused = command(*words, *FEW)
    assert (refused.returncode, refused.stderr.splitlines()[-1][-6:]) == (1, " works")  # it would be refused again


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_with_checkpoints_and_no_process(tmp_path: Path) -> None:
    words = ["sweep", "--seeds", "1", "--num-rounds", "500", "--engine", "inline", "--results-dir", "s"]
    program = Program(tmp_path, "interrupted", words)
    run = Run(tmp_path / "s" / "seed-0")
    wait_until(lambda: run.last_checkpoint() is not None)
    program.send(signal.SIGINT)
    assert program.end() == 130
    assert program.lines[-1] == "sim: interrupted; what was done is on disk"
    assert run.last_checkpoint() == run.rounds()["round"].max()
    assert run.model_path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alhpa=1", "--vary alhpa=1: unknown setting alhpa; the settings are dataset, dataset_args"),
        ("alpha", "--vary alpha: must be setting=value,value, e.g. alpha=0.1,1.0"),
        ("alpha=", "--vary alpha=: must be setting=value,value"),
        ("alpha=1,,2", "--vary alpha=1,,2: contains an empty value"),
        ("alpha=1,1.0", "--vary alpha=1,1.0: contains the same value twice"),
        ("alpha=x", "--alpha x: must be a number, above 0"),
        ("seed=1,2", "--vary seed=1,2: seed cannot be varied; it is set by --seeds"),
        (
            "strategy_args=eta",
            "--vary strategy_args=eta: name one argument of strategy_args, e.g. strategy_args.name=1,2",
        ),
        ("alpha.x=1", "--vary alpha.x=1: alpha has no arguments; leave out .x"),
    ],
)
def test_a_wrong_axis_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axis(text)
    assert str(caught.value).startswith(message)


def test_wrong_flags_of_a_sweep_are_one_line(command: Sim, tmp_path: Path) -> None:
    for words in (["--vary", "alhpa=1"], ["--seeds", "0"], ["--name", "x"], ["--jobs", "x"], ["--vary", "alpha=-1"]):
        result = command("sweep", *words)
        assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, ""), result.stderr
    for words in (["--lr", "0.1", "--vary", "lr=1,2"], ["--strategy-args", "mu=1", "--vary", "strategy_args.mu=2"]):
        result = command("sweep", *words)
        line = f"sim: {words[0]} and --vary {words[-1].partition('=')[0]}: give one of the two\n"
        assert (result.returncode, result.stderr) == (2, line)
    words = ["--app", str(PROGRAMS / "apps" / "message_app"), "--num-clients", "3", "--vary", "run_config.nope=1"]
    result = command("sweep", *words)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, ""), result.stderr
    assert "--run-config nope=1: the app has no such key; it has num-server-rounds" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_of_other_code_data_or_length_are_no_part_of_a_sweep(command: Sim, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            (tmp_path / folder / f"{split}.csv").write_text("a,y\n" + "1.5,0\n2.5,1\n" * 10)
    model = tmp_path / "swept.py"
    model.write_text("from torch import nn\ndef Net(num_features=1): return nn.Linear(num_features, 2)\n")
    words = ["sweep", "--model", "swept:Net", "--dataset", "csv", "--target", "y", "--partitioner", "iid"]
    words += ["--num-clients", "2", "--fraction-fit", "1", "--engine", "inline", "--results-dir", "s", "--seeds", "1"]
    first = command(*words, "--data-dir", "one", "--num-rounds", "2")
    assert first.returncode == 0, first.stderr
    place = (tmp_path / "s" / "seed-0").resolve()
    for more, reason in (
        (("--data-dir", "two", "--num-rounds", "2"), "--data-dir one, not two"),
        (("--data-dir", "one", "--num-rounds", "1"), "2 rounds, not --num-rounds 1"),
    ):
        refused = command(*words, *more)
        line = f"sim: {place}: holds a run with {reason}; choose another --results-dir or remove the folder\n"
        assert (refused.returncode, refused.stderr) == (2, line)
    model.write_text(model.read_text() + "# changed\n")
    refused = command(*words, "--data-dir", "one", "--num-rounds", "2")
    assert refused.returncode == 2
    assert "holds a run with other code than now (changed: swept.py; --allow-changed-code accepts" in refused.stderr
    assert command(*words, "--data-dir", "one", "--num-rounds", "2", "--allow-changed-code").returncode == 0
    (tmp_path / "one").rename(tmp_path / "moved")
    assert command(*words, "--data-dir", "moved", "--num-rounds", "2", "--allow-changed-code").returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_sweep_of_failed_runs_draws_and_names_no_picture(command: Sim, tmp_path: Path) -> None:
    words = ("--client", "own:Failing", "--num-rounds", "2", "--num-clients", "2", "--fraction-fit", "1")
    folder = ("--engine", "inline", "--results-dir", str(tmp_path / "s"))
    result = command("sweep", "--seeds", "1", *words, *folder, cwd=PROGRAMS)
    assert result.returncode == 1
    assert "runs.csv" in result.stdout
    assert ".png" not in result.stdout
    table = pd.read_csv(tmp_path / "s" / "runs.csv")
    assert table.status.tolist() == ["failed"]
    assert "client 1 has a bad day" in table.error[0]
    assert list((tmp_path / "s").glob("*.png")) == []


def test_arguments_of_a_strategy_are_varied_and_a_new_strategy_drops_the_old_ones() -> None:
    given = {"strategy": "fedprox", "strategy_args": {"proximal_mu": 1.0}, "seed": 5}
    found = variants(given, [parse_axis("strategy=fedprox,fedadam"), parse_axis("strategy_args.eta=0.1")], 2, "r")
    assert [v.configs[0].strategy_args for v in found] == [{"eta": 0.1}, {"eta": 0.1}]
    assert [c.seed for v in found for c in v.configs] == [5, 6, 5, 6]
    assert found[1].configs[1].name == "strategy-fedadam_eta-0.1_seed-6"
    kept = variants(given, [parse_axis("strategy_args.proximal_mu=0.1,0.2")], 1, "r")
    assert [v.configs[0].strategy_args for v in kept] == [{"proximal_mu": 0.1}, {"proximal_mu": 0.2}]
    with pytest.raises(ConfigError, match="--vary alpha=…: is given twice; give all its values to one --vary"):
        variants({}, [parse_axis("alpha=1"), parse_axis("alpha=2")], 1, "r")
    with pytest.raises(ConfigError, match=r"--vary num_clients=3: --clients-per-round 4: must be at most"):
        variants({"clients_per_round": 4}, [parse_axis("num-clients=3")], 1, "r")


@pytest.mark.parametrize("settings", [{"sample_seed": 0}, {"max_staleness": 0, "strategy": "fedasync"}])
def test_a_zero_is_another_setting_than_none(settings: dict[str, Any]) -> None:
    without = RunConfig(**{name: value for name, value in settings.items() if value != 0})
    given = RunConfig(**settings)
    name = next(name for name, value in settings.items() if value == 0)
    for wanted, found, text in ((given, without, "None, not 0"), (without, given, "0, not None")):
        config = tomllib.loads(found.to_toml())
        assert differences(config, wanted, ()) == [f"--{name.replace('_', '-')} {text}"]
        assert differences(config, found, ()) == []


def test_what_an_earlier_sweep_has_drawn_is_removed(tmp_path: Path) -> None:
    for name in ("sweep.png", "final.png"):
        (tmp_path / name).touch()
    write_pictures(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "sweep.png").mkdir()
    with pytest.raises(WriteError, match=r"sweep\.png: cannot be removed: "):
        write_pictures(tmp_path, [])


def test_a_varied_number_of_rounds_stays_beside_the_finished_rounds(tmp_path: Path) -> None:
    planned = [
        Planned(variant, variant.configs[0], Run(tmp_path / str(variant.configs[0].name)), num_rounds=1)
        for variant in variants({}, [parse_axis("num_rounds=1,3")], 1, str(tmp_path))
    ]
    frame = runs_frame(planned)
    assert list(frame.columns[:6]) == ["num_rounds", "seed", "run", "status", "error", "finished_rounds"]
    assert frame[["num_rounds", "finished_rounds"]].to_numpy().tolist() == [[1, 1], [3, 1]]


def test_a_run_whose_program_decides_the_rounds_is_done_when_it_has_them(tmp_path: Path) -> None:
    writer = RunWriter.create(str(tmp_path), "one", RunConfig(num_rounds=2).to_toml(), clients=True)
    (variant,) = variants({}, [parse_axis("alpha=1")], 1, str(tmp_path))
    config = variant.configs[0]
    object.__setattr__(config, "num_rounds", 0)  # as that of an app
    planned = Planned(variant, config, Run(tmp_path / "one"))
    (tmp_path / "one" / "model.safetensors").touch()  # which interrupted runs have, too
    for number in range(3):
        writer.append(RoundRecord(number, test_accuracy=0.5))
        assert planned.is_done() == (number == 2)
    writer.close()


def test_names_of_values_that_are_not_valid_file_names() -> None:
    texts = parse_axis("strategy=own.a:B,own.a:C")
    found = variants({}, [texts], 1, "r")
    assert [v.configs[0].name for v in found] == ["strategy-own.a-B_seed-0", "strategy-own.a-C_seed-0"]
    long = variants({"dataset": "cifar10"}, [parse_axis(f"data_dir={'x' * 200},{'x' * 201}")], 1, "r")
    names = {v.configs[0].name for v in long}
    assert len(names) == 2
    assert all(name is not None and len(name) == 100 for name in names)
