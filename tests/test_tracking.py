"""Trackers: real TensorBoard, MLflow and W&B stores are written and read back."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import SMALL, Sim, Small, sha256
from sim import CentralizedConfig, ConfigError, Run, RunConfig, list_runs, resume, simulate, train_centralized
from sim.config.choices import TRACKERS
from sim.tracking.tracker import numbers_of

pytestmark = pytest.mark.slow  # the libraries take seconds to import, and W&B starts a process of its own


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no setting or login of the person who executes the tests reach a tracker."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with every tracker that was interrupted after round 2, and resumed from its checkpoint of round 1."""
    root = tmp_path_factory.mktemp("tracked")
    settings = {
        **SMALL,
        "num_rounds": 3,
        "fraction_evaluate": 0.5,
        "strategy": "fedadam",
        "strategy_args": {"eta": 0.01},
    }

    def stop(record: Any) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    config = RunConfig(**settings, name="cut", results_dir=str(root), track="tensorboard, mlflow,wandb:offline")
    with pytest.raises(KeyboardInterrupt):
        simulate(config, on_record=stop)
    run = Run(root / "cut")
    (created,) = _mlflow_runs(root / "mlflow", root.name)
    assert created.info.status == "KILLED"
    shutil.rmtree(run.checkpoints_path / "2")  # as if the process had been killed before it was written
    return resume(run)


def _mlflow_client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def _mlflow_runs(folder: Path, experiment: str) -> list[Any]:
    client = _mlflow_client(folder)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def _expected(run: Run) -> dict[str, dict[int, float]]:
    """Name of a number → round → value, from the tables of the run."""
    found: dict[str, dict[int, float]] = {}
    metrics = run.metrics()
    for row in metrics[metrics.client_id.isna() & metrics.value.notna()].itertuples():
        found.setdefault(f"{row.phase}/{row.name}", {})[row.round] = row.value
    rounds = run.rounds().set_index("round")
    for column in ("fit_seconds", "round_seconds", "checkpoint_seconds"):
        found[f"seconds/{column.removesuffix('_seconds')}"] = rounds[column].dropna().to_dict()
    for column in ("bytes_down", "bytes_up"):
        found[column.replace("_", "/")] = rounds[column].dropna().astype(float).to_dict()
    found["evaluate/accuracy_p10"] = rounds.eval_accuracy_p10.dropna().to_dict()
    found["clients/num_clients"] = rounds.num_clients.dropna().astype(float).to_dict()
    return found


def _tensorboard_events(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_has_every_round_once_with_the_pictures_and_the_config(tracked: Run) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = _tensorboard_events(tracked)
    tags = events.Tags()
    expected = _expected(tracked)
    assert {"test/accuracy", "test/loss", "fit/loss", "evaluate/accuracy", "seconds/fit"} < set(expected)
    for name, values in expected.items():
        shown = {each.step: each.value for each in events.Scalars(name)}
        assert shown == {number: float(np.float32(value)) for number, value in values.items()}, name
    steps = [each.step for each in events.Scalars("seconds/round")]
    assert steps == [0, 1, 2, 3]
    assert {"accuracy", "loss", "fairness", "partition"} == set(tags["images"])
    texts = [each.tensor_proto.string_val[0].decode() for each in events.Tensors("config/text_summary")]
    assert 'strategy = "fedadam"' in texts[-1]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert started.hparams["strategy_args.eta"].number_value == 0.01


def test_mlflow_has_one_run_with_parameters_metrics_and_the_model(tracked: Run, tmp_path: Path) -> None:
    folder = tracked.path.parent / "mlflow"
    (found,) = _mlflow_runs(folder, tracked.path.parent.name)
    assert (found.info.run_name, found.info.status) == ("cut", "FINISHED")
    assert json.loads((tracked.path / "trackers.json").read_text())["mlflow"] == found.info.run_id
    assert found.data.params["strategy_args.eta"] == "0.01"
    assert found.data.params["num_clients"] == "10"
    client = _mlflow_client(folder)
    for name, values in _expected(tracked).items():
        history = [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, name)]
        if name.startswith("seconds/"):  # round 2 took another time when it was repeated
            assert sorted(number for number, _ in history) == sorted(values), name
        else:
            assert sorted(history) == sorted(values.items()), name
    model = client.download_artifacts(found.info.run_id, "model/model.safetensors", str(tmp_path))
    assert sha256(Path(model)) == sha256(tracked.model_path)
    pictures = {each.path for each in client.list_artifacts(found.info.run_id, "pictures")}
    assert pictures == {f"pictures/{name}.png" for name in ("accuracy", "loss", "fairness", "partition")}
    tables = {each.path for each in client.list_artifacts(found.info.run_id, "run")}
    assert {"run/config.toml", "run/rounds.csv", "run/metrics.csv"} <= tables


def _wandb_records(path: Path) -> Iterator[Any]:
    """The records in a file of W&B: pieces of LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, whole = 7, b""
    while position + 7 <= len(content):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        if kind == 0:
            position += left
            continue
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # the whole record, or its last piece
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_has_the_rounds_under_one_id_in_the_run_folder(tracked: Run) -> None:
    wandb_id = json.loads((tracked.path / "trackers.json").read_text())["wandb"]
    files = sorted((tracked.path / "wandb").glob(f"offline-run-*/run-{wandb_id}.wandb"))
    assert len(files) == 2  # one for each process; `wandb sync` puts them together by their id
    history: dict[int, dict[str, Any]] = {}
    artifacts, exits, config = [], [], {}
    for record in (record for file in files for record in _wandb_records(file)):
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            history.setdefault(record.history.step.num, {}).update(items)
        elif record.HasField("artifact"):
            artifacts.append([(entry.path, entry.local_path) for entry in record.artifact.manifest.contents])
        elif record.HasField("exit"):
            exits.append(record.exit.exit_code)
        elif record.HasField("run"):
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert (record.run.project, record.run.display_name) == (tracked.path.parent.name, "cut")
    assert exits == [130, 0]
    assert config["strategy_args.eta"] == 0.01
    for name, values in _expected(tracked).items():
        shown = {step: json.loads(items[name]) for step, items in history.items() if name in items}
        assert shown == pytest.approx(values, rel=1e-15), name
    assert artifacts[-1] == [("model.safetensors", str(tracked.model_path))]
    assert {f"pictures/{name}" for name in ("accuracy", "loss", "fairness", "partition")} <= set(history[3])


def test_trackers_change_no_bit_and_other_commands_ignore_their_folders(tracked: Run, command: Sim) -> None:
    root = str(tracked.path.parent)
    plain = simulate(RunConfig(**{**tracked.config(), "track": "", "name": "plain"}))
    assert sha256(plain.model_path) == sha256(tracked.model_path)
    assert [run.name for run in list_runs(root)] == ["cut", "plain"]
    listed = command("list", "--results-dir", root)
    assert "mlflow" not in listed.stdout
    assert command("clean", "--dry-run", "cut", "--results-dir", root).returncode == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_without_a_tracker_that_fails(
    tmp_path: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database of MLflow is damaged after round 1, and TensorBoard finds a file where its folder should be."""
    results = tmp_path / "results"

    def damage(record: Any) -> None:
        if record.round == 1:
            (results / "mlflow" / "mlflow.db").write_bytes(b"no database " * 1000)

    tracked = small(name="tracked", track="mlflow", on_record=damage)
    plain = small(name="plain")
    assert sha256(tracked.model_path) == sha256(plain.model_path)
    assert tracked.rounds()["round"].tolist() == [0, 1, 2]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sim: note")]
    (note,) = notes
    assert note.startswith("sim: note: --track mlflow: failed in round 2, and the run goes on without it: ")
    (plain.path / "tensorboard").touch()
    resume(plain, num_rounds=3, track="tensorboard")
    assert plain.rounds()["round"].tolist() == [0, 1, 2, 3]
    assert "sim: note: --track tensorboard: failed in round 3, and the run goes on without" in capsys.readouterr().err


def test_mlflow_takes_the_store_and_the_experiment_of_its_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracked: Run
) -> None:
    folder = tracked.path.parent / "mlflow"  # to make the tables of another store takes seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    client = _mlflow_client(folder)
    client.create_experiment("central", artifact_location=(tmp_path / "artifacts").as_uri())  # not the current folder
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "central")
    monkeypatch.chdir(tmp_path)
    run = train_centralized(CentralizedConfig(epochs=1, results_dir="results", name="one", track="mlflow"))
    (found,) = _mlflow_runs(folder, "central")
    assert found.info.run_name == "one"
    assert found.data.metrics["test/accuracy"] == run.rounds().test_accuracy.iloc[-1]
    assert found.data.params["epochs"] == "1"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["one"]
    assert list((tmp_path / "artifacts").rglob("model.safetensors"))


@pytest.mark.network
def test_a_server_that_does_not_answer_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ConfigError, match=r"^--track mlflow: MLFLOW_TRACKING_URI http://127\.0\.0\.1:1: MlflowException: "
    ):
        simulate(RunConfig(**SMALL, results_dir=str(tmp_path / "results"), track="mlflow"))
    with pytest.raises(ConfigError, match=r"^--track wandb: nobody is logged in; use wandb login, WANDB_API_KEY or"):
        simulate(RunConfig(**SMALL, results_dir=str(tmp_path / "results"), track="wandb"))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("words", [("run",), ("centralized",), ("sweep", "--vary", "alpha=1,2"), ("server",)])
def test_a_missing_library_is_one_line_before_anything_is_written(
    command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
) -> None:
    library = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    done = command(*words, "--track", name)
    package = "mlflow-skinny" if library == "mlflow" else library
    assert (done.returncode, done.stderr) == (
        2,
        f"sim: --track {name}: needs the package {library}; pip install {package} (the extra {library} of sim)\n",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--track", "tensorbord"],
            "--track tensorbord: tensorbord: must be one of tensorboard, mlflow, wandb, wandb:offline",
        ),
        (["--track", "wandb", "--track", "wandb:offline"], "--track wandb,wandb:offline: names wandb twice"),
    ],
)
def test_an_unknown_tracker_is_one_line(command: Sim, flags: list[str], message: str) -> None:
    done = command("run", *flags)
    assert (done.returncode, done.stderr) == (2, f"sim: {message}\n")


@pytest.mark.nightly
def test_a_sweep_puts_its_runs_side_by_side_into_one_store(command: Sim, tmp_path: Path) -> None:
    flags = ["--num-clients", "10", "--num-rounds", "1", "--max-local-steps", "1", "--engine", "inline"]
    tracked = ["--track", "mlflow", "--results-dir", "swept"]
    done = command("sweep", "--vary", "alpha=0.5,5", "--seeds", "1", "--jobs", "2", *flags, *tracked)
    assert done.returncode == 0, done.stderr
    names = ["alpha-0.5_seed-0", "alpha-5.0_seed-0"]
    runs = _mlflow_runs(tmp_path / "swept" / "mlflow", "swept")
    assert sorted(run.info.run_name for run in runs) == names
    assert sorted(run.data.params["alpha"] for run in runs) == ["0.5", "5.0"]
    assert pd.read_csv(tmp_path / "swept" / "runs.csv").status.tolist() == ["done", "done"]


def test_a_run_that_was_not_tracked_is_tracked_whole_after_a_resume(small: Small, pictures: None) -> None:
    run = small(name="late", num_rounds=1, evaluate_every=2, fraction_evaluate=0.5)
    resume(run, num_rounds=2, track="tensorboard,wandb:offline")
    events = _tensorboard_events(run)
    for name, values in _expected(run).items():
        found = {each.step: each.value for each in events.Scalars(name)}
        assert found == {number: float(np.float32(value)) for number, value in values.items()}, name
    (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    steps = [record.history.step.num for record in _wandb_records(file) if record.HasField("history")]
    assert sorted(set(steps)) == [0, 1, 2]


def test_the_names_of_numbers() -> None:
    from sim import MetricRecord, RoundRecord

    record = RoundRecord(
        3, num_clients=4, test_loss=2.0, eval_accuracy_p10=0.25, virtual_seconds=9.0, bytes_up=7, validation_loss=1.5
    )
    metrics = [
        MetricRecord(3, "fit", None, 4, "f1", 0.5),
        MetricRecord(3, "fit", 2, 4, "f1", 0.9),  # of one client
        MetricRecord(3, "test", None, 4, "auroc", float("nan")),
    ]
    assert numbers_of(record, metrics) == {
        "clients/num_clients": 4.0,
        "test/loss": 2.0,
        "validation/loss": 1.5,
        "evaluate/accuracy_p10": 0.25,
        "seconds/virtual": 9.0,
        "bytes/up": 7.0,
        "fit/f1": 0.5,
    }
    import mlflow

    assert mlflow.__version__  # the library itself, not a module of this package with its name
