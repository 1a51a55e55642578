"""``sim list``: sizes, which runs are listed, and in which order; ``sim clean``: what it removes and keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import Sim, Small
from sim import Run, RunConfig, resume
from sim.disk import bytes_of, shown_bytes
from sim.run_folder.records import MetricRecord, RoundRecord
from sim.run_folder.writer import RunWriter, locked_folder

LISTED: dict[str, tuple[list[float | None], dict[str, Any]]] = {
    "a": ([0.1, 0.9, 0.5], {"alpha": 0.1, "strategy": "fedadam", "strategy_args": {"eta": 0.01}}),
    "b": ([0.1, 0.7, 0.6, 0.4], {"alpha": 0.5, "strategy": "fedavg"}),
    "c": ([0.1], {"alpha": 0.5, "strategy": "fedadam", "strategy_args": {"eta": 0.1}, "accuracy_in_percent": True}),
    "d": ([], {"partitioner": "iid"}),
}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A folder of four runs without weights; the last one has no round."""
    folder = tmp_path / "results"
    for number, (name, (values, settings)) in enumerate(LISTED.items()):
        writer = RunWriter.create(str(folder), name, RunConfig(**settings).to_toml(), clients=True)
        for each, value in enumerate(values):
            writer.append(RoundRecord(each, test_accuracy=value))
        writer.close()
        (folder / name / "weight").write_bytes(bytes(100_000 * (number + 1)))
    return folder


def names(stdout: str) -> str:
    return "".join(line.split()[0] for line in stdout.splitlines()[1:])


@pytest.mark.parametrize(
    ("column", "order"),
    [("run", "abcd"), ("rounds", "bacd"), ("final", "abcd"), ("best", "abcd"), ("size", "dcba"), ("metric", "abcd")],
)
def test_runs_are_sorted(listed: Path, command: Sim, column: str, order: str) -> None:
    done = command("list", "--sort", column)
    assert (done.returncode, done.stderr, names(done.stdout)) == (0, "", order)


def test_a_final_value_that_is_no_number_comes_last_of_its_metric(command: Sim, tmp_path: Path) -> None:
    for name, values in {"e": (0.3, float("nan")), "f": (0.2, 0.4)}.items():
        writer = RunWriter.create(str(tmp_path / "results"), name, RunConfig().to_toml(), clients=True)
        for number, value in enumerate(values):
            writer.append(RoundRecord(number), metrics=[MetricRecord(number, "test", None, 4, "f1", value)])
        writer.close()
    done = command("list", "--sort", "metric")
    assert (done.returncode, names(done.stdout)) == (0, "fe")


def test_a_flag_that_is_given_with_several_values_is_noted(listed: Path, command: Sim) -> None:
    done = command("list", "--sort", "run", "--sort=rounds", "--metric", "accuracy", "--metric", "accuracy")
    note = "sim: note: --sort was given as run and as rounds; the last one counted\n"
    assert (done.returncode, done.stderr, names(done.stdout)) == (0, note, "bacd")
    failed = command("list", "--sort", "run", "--sort", "rounds", "--metric", "f1")  # errors stay one line
    assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1)


def test_the_best_is_the_smallest_of_an_error(listed: Path, command: Sim) -> None:
    done = command("list", "--sort", "best", "--metric", "accuracy:min")
    assert [line.split()[2:4] for line in done.stdout.splitlines()[1:4]] == [
        ["0.5000", "0.1000"],
        ["0.4000", "0.1000"],
        ["0.1000", "0.1000"],
    ]
    for column in ("final", "metric"):  # of one metric
        assert names(command("list", "--sort", column, "--metric", "accuracy:min").stdout) == "cbad"


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (("alpha=0.5",), "bc"),  # alpha has no effect in the last run
        (("alpha=0.5", "strategy=fedadam"), "c"),
        (("strategy_args.eta=0.01",), "a"),
        (("num-rounds=30",), "abcd"),
        (("accuracy_in_percent=true",), "c"),
        (("accuracy_in_percent=false",), "abd"),
        (("partitioner=iid",), "d"),
        (("epochs=3",), ""),
        (("seed=0", "alpha=0.1"), "a"),
    ],
)
def test_runs_are_filtered_by_their_settings(
    listed: Path, command: Sim, conditions: tuple[str, ...], found: str
) -> None:
    done = command("list", *(word for each in conditions for word in ("--filter", each)))
    said = "" if found else f"sim: no run in results fits --filter {' '.join(conditions)}\n"
    assert (done.returncode, done.stderr, names(done.stdout)) == (0, said, found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--filter", "alpha"), "--filter alpha: must be setting=value, e.g. alpha=0.5"),
        (("--filter", "alpha=x"), "--filter alpha=x: must be a number, above 0"),
        (("--filter", "alpha.x=1"), "--filter alpha.x=1: alpha has no arguments"),
        (("--filter", "strategy_args=1"), "--filter strategy_args=1: name one argument, e.g. strategy_args.name=1"),
    ],
)
def test_wrong_filters(listed: Path, command: Sim, words: tuple[str, ...], message: str) -> None:
    done = command("list", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sim: {message}\n")


def test_wrong_columns_and_settings(listed: Path, command: Sim) -> None:
    done = command("list", "--filter", "beta=1")
    assert done.returncode == 2
    assert done.stderr.startswith("sim: --filter beta=1: unknown setting beta; the settings are dataset, ")
    done = command("list", "--sort", "speed")
    assert done.returncode == 2
    assert done.stderr.startswith("sim: argument --sort: invalid choice: 'speed' (choose from 'run', 'rounds', ")


def test_sizes(listed: Path, command: Sim) -> None:
    size = sum(path.stat().st_size for path in (listed / "a").rglob("*"))
    assert bytes_of(listed / "a") == size > 100_000
    (listed / "a" / "link").symlink_to(listed / "d")
    assert bytes_of(listed / "a") == size
    assert command("list").stdout.splitlines()[1].endswith(f"  {size / 1024:.1f} KiB")
    sizes = (0, 1023, 1024, 1536, 1024**2 - 1, 1024**2, 5 * 1024**3, 1024**5)
    assert [shown_bytes(count) for count in sizes] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "5.0 GiB", "1024.0 TiB")
    ]
    assert bytes_of(listed / "nowhere") == 0


def test_what_a_run_that_is_done_needs_no_more_is_removed(small: Small, command: Sim, tmp_path: Path) -> None:
    settings = {"strategy": "scaffold", "num_rounds": 3, "max_local_steps": 2}
    done, cut = small(name="done", **settings), small(name="cut", **settings)
    cut.model_path.unlink()  # as after a kill in the last round
    before = {path: path.read_bytes() for path in cut.path.rglob("*") if path.is_file()}
    others = {path: path.read_bytes() for path in done.path.iterdir() if path.is_file()}
    size = sum(bytes_of(folder) for folder in (done.checkpoints_path, done.client_states_path))
    assert min(bytes_of(done.checkpoints_path), bytes_of(done.client_states_path)) > 0
    dry = command("clean", "--all", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert done.checkpoints() == [2, 3]
    kept = f"cut – it is not done; --resume continues after round {cut.last_checkpoint()}".split()
    removed = ["done", *shown_bytes(size).split()]
    assert [line.split() for line in dry.stdout.splitlines()[1:]] == [
        kept,
        removed,
        ["would", "remove", *shown_bytes(size).split(), "of", "1", "run"],
    ]
    cleaned = command("clean", "done", str(cut.path), "done")
    assert [line.split() for line in cleaned.stdout.splitlines()[1:]] == [
        removed,
        kept,
        ["removed", *shown_bytes(size).split(), "of", "1", "run"],
    ]
    assert not done.checkpoints_path.exists()
    assert not done.client_states_path.exists()
    assert {path: path.read_bytes() for path in done.path.iterdir()} == others
    assert {path: path.read_bytes() for path in cut.path.rglob("*") if path.is_file()} == before
    assert done.is_done()
    resumed = command("run", "--resume", "done", "--num-rounds", "4")
    assert resumed.stderr.endswith(" to resume from: the run is done, and sim clean has removed its checkpoints\n")
    assert command("clean", "--all").stdout.splitlines()[-1] == "removed         0 B of 0 runs"
    assert resume(cut).is_done()  # with all that it had


def test_a_run_that_another_process_writes_is_kept(finished: Run, command: Sim, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(finished.path, tmp_path / "results" / "busy")))
    with locked_folder(run.path):
        cleaned = command("clean", "busy")
    assert cleaned.returncode == 0
    assert cleaned.stdout.splitlines()[1].split()[:2] == ["busy", "–"]
    assert cleaned.stdout.splitlines()[1].endswith(f"{run.path}: another process is writing to it")
    assert run.checkpoints() == [1, 2]
    assert command("clean", "busy").stdout.splitlines()[-1].endswith(" of 1 run")
    assert run.checkpoints() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "sim clean: needs the names of runs, or --all for those in --results-dir"),
        (("a", "--all"), "sim clean: needs the names of runs, or --all for those in --results-dir"),
        (("a", "x"), "run x: neither a run in results nor a path to one; existing runs: a, b, c, d"),
        (("results",), "run results: results is a folder of runs; --results-dir results finds those in it"),
    ],
)
def test_wrong_words_of_clean(listed: Path, command: Sim, words: tuple[str, ...], message: str) -> None:
    done = command("clean", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sim: {message}\n")


@pytest.mark.usefixtures("pictures")
def test_a_metric_that_no_run_has_is_an_error_and_one_may_end_like_a_direction(listed: Path, command: Sim) -> None:
    assert (
        command("list", "--metric", "zzz").stderr == "sim: --metric zzz: no run has measured it; they have accuracy\n"
    )
    writer = RunWriter.create(str(listed), "e", RunConfig().to_toml(), clients=True)
    writer.append(RoundRecord(1), metrics=[MetricRecord(1, "test", None, 1, "a:min", 7.0)])
    writer.close()
    assert "7.0000" in command("list", "--metric", "a:min").stdout
    plotted = command("plot", "e", "--metric", "a:min", "-o", "e.png")
    assert (plotted.returncode, plotted.stderr) == (0, "")
