"""``sim evaluate``: the figures of a run's global model and of each client's own model, on all clients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.common import Context, RecordDict
from safetensors.numpy import load_file

from conftest import ONE_ACTOR, ROOT, SMALL, Sim, Small, made_once
from sim import Run, RunConfig, evaluate, resume, simulate
from sim.client.runtime import ClientRuntime
from sim.client.torch_client import fit_settings
from sim.commands.evaluate import table_of
from sim.errors import ClientError, ConfigError, RunFolderError
from sim.metrics import MetricName
from sim.run_folder import plots
from sim.seeds import Purpose, seeded
from sim.setup.prepare import prepare
from sim.training.weights import set_weights

LOCAL = {"strategy": "fedper", "fraction_evaluate": 0.6, "max_local_steps": 5}


@pytest.fixture(scope="session")
def personal(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose clients keep their classifiers; in its two rounds, some clients never train."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("summary_figure", "curves_figure", "fairness_figure"):
                patch.setattr(plots, name, lambda *_: None)
            patch.setattr(plots, "render", lambda figure, image_format: b"")
            simulate(RunConfig(**{**SMALL, **LOCAL}, results_dir=str(folder), name="personal"))

    return Run(made_once(tmp_path_factory, "evaluated", make) / "personal")


@pytest.fixture
def copied(personal: Run, tmp_path: Path) -> Run:
    """A copy of that run which a test may change."""
    return Run(Path(shutil.copytree(personal.path, tmp_path / "results" / "personal")))


def recorded(run: Run, number: int) -> dict[int, dict[str, float]]:
    """What each client that evaluated in a round measured, by client_id."""
    rows = run.metrics()
    rows = rows[(rows["phase"] == "evaluate") & (rows["round"] == number) & rows["client_id"].notna()]
    return {int(c): dict(zip(own["name"], own["value"], strict=True)) for c, own in rows.groupby("client_id")}


def assert_as_recorded(frame: pd.DataFrame, run: Run, number: int) -> None:
    """The figures of both models are those that the round recorded, to the bit."""
    found = recorded(run, number)
    assert found
    for client_id, measured in found.items():
        row = frame.iloc[client_id]
        for name in ("loss", "accuracy"):
            assert row[f"own_{name}"] == measured[name]
            assert row[f"global_{name}"] == measured.get(f"global_{name}", measured[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "ditto"},
        {"strategy": "fedbabu", "strategy_args": {"fine_tune_epochs": 1}},
        {"strategy": "fedadam"},
        {"strategy": "fedavg", "local_parameters": "conv1"},
    ],
    ids=lambda settings: settings["strategy"],
)
def test_the_figures_are_those_of_the_last_round(small: Small, settings: dict[str, Any]) -> None:
    run = small(**{**LOCAL, **settings})
    frame = evaluate(run)
    assert_as_recorded(frame, run, 2)
    assert frame["client_id"].tolist() == list(range(10))
    differ = frame["own_loss"] != frame["global_loss"]
    trained = frame["num_rounds_trained"] > 0
    expected = {"fedadam": ~(trained | ~trained), "fedbabu": trained | ~trained}
    assert differ.tolist() == expected.get(settings["strategy"], trained).tolist()


@pytest.mark.slow
def test_clients_that_never_trained_have_the_global_model(copied: Run) -> None:
    frame = evaluate(copied, fine_tune_epochs=2)
    assert_as_recorded(frame, copied, 2)
    clients = copied.clients()
    trained = clients[clients["phase"] == "fit"]["client_id"].value_counts()
    assert frame["num_rounds_trained"].tolist() == [trained.get(client_id, 0) for client_id in range(10)]
    never = frame["num_rounds_trained"] == 0
    assert 0 < never.sum() < 10
    for tuned in ("", "tuned_"):
        same = frame[f"own_{tuned}loss"] == frame[f"global_{tuned}loss"]
        assert same.tolist() == never.tolist()
    for model in ("own", "global"):
        assert (frame[f"{model}_tuned_loss"] != frame[f"{model}_loss"]).all()


@pytest.mark.slow
def test_fine_tuning_is_train_from_the_model_with_the_settings_of_the_last_round(copied: Run, tmp_path: Path) -> None:
    frame = evaluate(copied, fine_tune_epochs=2)
    config = RunConfig.load(copied.config_path)
    runtime = ClientRuntime(prepare(config).torch_spec)
    weights = load_file(copied.model_path)
    (client_id, *_) = frame.index[frame["num_rounds_trained"] == 0]
    context = Context(0, 0, {"partition-id": client_id, "num-partitions": 10}, RecordDict(), {})
    client: Any = runtime.client(context)
    client = client.numpy_client
    set_weights(runtime.net, [weights[name] for name in runtime.weight_names])
    with seeded(config.seed, Purpose.FINE_TUNE, 2, client_id):
        client.train_net({**fit_settings(config, 2), "local_epochs": 2})
        loss, metrics = client.test_net()
    assert frame["global_tuned_loss"][client_id] == loss
    assert frame["global_tuned_accuracy"][client_id] == metrics["accuracy"]


@pytest.mark.slow
def test_no_epochs_change_nothing(copied: Run) -> None:
    tuned = evaluate(copied, fine_tune_epochs=1)
    assert Path(copied.evaluation_path).read_text(encoding="utf-8").count("tuned") == 4
    plain = evaluate(copied, fine_tune_epochs=0)
    first = ["client_id", "num_examples", "num_rounds_trained"]
    figures = [f"{model}_{name}" for model in ("global", "own") for name in ("loss", "accuracy")]
    assert [*plain.columns] == [*first, *figures]
    assert [*tuned.columns] == [*plain.columns, *(name.replace("_", "_tuned_") for name in figures)]
    pd.testing.assert_frame_equal(tuned[[*plain.columns]], plain, check_exact=True)
    read = pd.read_csv(copied.evaluation_path)
    pd.testing.assert_frame_equal(read, plain, check_exact=True, check_dtype=False)


@pytest.mark.nightly
@pytest.mark.ray
def test_engines_give_the_same_file(copied: Run, command: Sim) -> None:
    one = command("evaluate", "personal", "--fine-tune-epochs", "1", "-o", "inline.csv")
    other = command("evaluate", "personal", "--fine-tune-epochs", "1", "--engine", "ray", *ONE_ACTOR)
    assert (one.returncode, other.returncode) == (0, 0), other.stderr
    folder = copied.path.parent.parent
    assert copied.evaluation_path.read_bytes() == (folder / "inline.csv").read_bytes()
    assert one.stdout.replace("inline.csv", "") == other.stdout.replace("results/personal/evaluation.csv", "")
    assert "note" not in one.stderr + other.stderr


def test_an_interrupted_run_is_evaluated_at_its_last_checkpoint(small: Small, command: Sim, tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(**LOCAL, name="cut", num_rounds=3, on_record=stop)
    run = Run(tmp_path / "results" / "cut")
    found = command("evaluate", "cut")
    assert found.returncode == 0
    assert found.stderr == "sim: note: round 2 of 3 is evaluated, because the run is not done\n"
    assert_as_recorded(pd.read_csv(run.evaluation_path), run, 2)
    shutil.rmtree(run.checkpoints_path / "2")
    frame = evaluate(run)
    assert_as_recorded(frame, run, 1)
    assert frame["num_rounds_trained"].sum() == 4
    resume(run)
    assert_as_recorded(evaluate(run), run, 3)


def test_a_run_without_checkpoints_has_the_newest_states(small: Small, personal: Run, command: Sim) -> None:
    run = small(**LOCAL, checkpoint_every=0, name="none")
    found = command("evaluate", "none")
    assert "without a checkpoint, nobody knows whether code and data are those of the run" in found.stderr
    assert_as_recorded(pd.read_csv(run.evaluation_path), personal, 2)


OWN_CLIENT = """
from flwr.client import NumPyClient
from flwr.common import MetricRecord


class Counted(NumPyClient):
    def __init__(self, client_id, context):
        self.client_id, self.state = client_id, context.state

    def fit(self, parameters, config):
        self.state["count"] = MetricRecord({"fits": self.fits() + 1})
        return parameters, 1, {}

    def fits(self):
        return self.state["count"]["fits"] if "count" in self.state else 0

    def evaluate(self, parameters, config):
        return float(self.fits()), 1 + self.client_id, {"settings": len(config)}
"""


def test_a_client_of_the_users_own_evaluates_itself_as_in_a_round(command: Sim, tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(OWN_CLIENT, encoding="utf-8")
    words = ("--client", "counted:Counted", "--num-clients", "3", "--num-rounds", "2", "--engine", "inline")
    assert command("run", *words, "--fraction-evaluate", "1", "--fraction-fit", "0.34", "--name", "own").returncode == 0
    assert command("evaluate", "own").returncode == 0
    frame = pd.read_csv(tmp_path / "results" / "own" / "evaluation.csv")
    assert frame["num_examples"].tolist() == [1, 2, 3]
    assert frame["own_loss"].tolist() == frame["global_loss"].tolist() == frame["num_rounds_trained"].tolist()
    assert frame["own_settings"].tolist() == [0, 0, 0]
    command("clean", "own")
    assert "clients are evaluated without what they kept in context.state" in command("evaluate", "own").stderr
    refused = command("evaluate", "own", "--fine-tune-epochs", "1")
    assert refused.returncode == 2
    assert "the client of your own, counted:Counted, decides how it trains" in refused.stderr


@pytest.mark.usefixtures("in_programs")
def test_a_client_that_raises_stops_it_and_an_earlier_table_stays(small: Small) -> None:
    settings = {"client": "own:EvaluationFails", "num_clients": 4, "num_rounds": 1, "on_client_error": "drop"}
    run = small(**settings, fraction_evaluate=0.25)
    run.evaluation_path.write_text("earlier", encoding="utf-8")
    with pytest.raises(ClientError, match=r"raised in round 1 \(evaluate\)"):
        evaluate(run, on_client_error="stop")
    assert run.evaluation_path.read_text(encoding="utf-8") == "earlier"
    frame = evaluate(run)
    assert frame["num_examples"].isna().all()
    assert frame["own_loss"].isna().all()


@pytest.mark.slow
def test_other_metrics_are_columns_and_changed_code_is_refused(command: Sim, tmp_path: Path) -> None:
    program = tmp_path / "lines.py"
    program.write_text((ROOT / "tests" / "programs" / "regression.py").read_text(encoding="utf-8"), encoding="utf-8")
    words = ("--program", "lines.py", "--num-clients", "4", "--num-rounds", "1", "--engine", "inline")
    words += ("--fraction-evaluate", "1", "--local-parameters", "weights.bias", "--name", "own")
    assert command("run", *words).returncode == 0
    assert command("evaluate", "own", "--fine-tune-epochs", "1").returncode == 0
    run = Run(tmp_path / "results" / "own")
    table = run.evaluation_path.read_bytes()
    frame = pd.read_csv(run.evaluation_path)
    for model in ("global", "own", "global_tuned", "own_tuned"):
        assert {f"{model}_mae", f"{model}_r2"} <= {*frame.columns[11:]}
        assert frame[f"{model}_accuracy"].isna().all()
    for client_id, measured in recorded(run, 1).items():
        assert frame["own_mae"][client_id] == measured["mae"]
    program.write_text(program.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    refused = command("evaluate", "own")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "the code was changed after it was written: lines.py" in refused.stderr
    assert run.evaluation_path.read_bytes() == table
    allowed = command("evaluate", "own", "--allow-changed-code", "--fine-tune-epochs", "1")
    assert allowed.returncode == 0
    assert "the model is evaluated with other code than that of the run: lines.py" in allowed.stderr
    assert " mae\n" in allowed.stdout
    assert run.evaluation_path.read_bytes() == table


def _config(old: str, new: str) -> Callable[[Run], None]:
    def edit(run: Run) -> None:
        text = run.config_path.read_text(encoding="utf-8")
        assert old in text
        run.config_path.write_text(text.replace(old, new), encoding="utf-8")

    return edit


def _central(run: Run) -> None:
    run.config_path.write_text("epochs = 3\n", encoding="utf-8")


def _flower(run: Run) -> None:
    run.config_path.write_text('client_fn = "module:client_fn"\n', encoding="utf-8")


def _network(run: Run) -> None:
    run.environment_path.write_text('{"server": {}}', encoding="utf-8")


def _state(run: Run) -> None:
    next(run.client_states_path.iterdir()).unlink()


def _model(run: Run) -> None:
    run.model_path.write_bytes(run.model_path.read_bytes()[:1000])


def _other_model(run: Run) -> None:
    shutil.rmtree(run.checkpoints_path)
    _config('model = "Net"', 'model = "SimpleCnn"')(run)


def _cleaned(run: Run) -> None:
    shutil.rmtree(run.checkpoints_path)
    shutil.rmtree(run.client_states_path)


def _nothing(run: Run) -> None:
    shutil.rmtree(run.checkpoints_path)
    run.model_path.unlink()


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (_central, (), "a centralised run has no clients that could be evaluated"),
        (_flower, (), "a run of --client-fn cannot be evaluated, because a Flower program keeps data"),
        (_network, (), "a run over a network cannot be evaluated, because its clients have the data"),
        (_config("fraction_evaluate = 0.6", "fraction_evaluate = 0.0"), (), "needs a run with --fraction-evaluate abo"),
        (_config("seed = 0", "seed = 1"), (), "does not fit: "),
        (_state, (), "is missing"),
        (_model, (), "model.safetensors: damaged: "),
        (_other_model, (), "its weights are of another model"),
        (_cleaned, (), "has no client_states/, which sim clean removes; without it, the clients' own models of f"),
        (_nothing, (), "has neither model.safetensors nor a checkpoint to evaluate"),
        (None, ("--fine-tune-epochs", "-1"), "--fine-tune-epochs -1: must be a whole number, at least 0 and at most 1"),
        (None, ("--fine-tune-epochs", "two"), "--fine-tune-epochs two: must be a whole number, at least 0 and at most"),
        (None, ("--engine", "mpi"), "--engine mpi: must be one of ray, inline"),
        (None, ("--lr", "1"), "--lr: "),
        (None, ("-o", "table.txt"), "-o table.txt: the ending must be .csv"),
        (None, ("-o", "nowhere/table.csv"), "-o nowhere/table.csv: there is no folder nowhere"),
        (None, ("--results-dir", "elsewhere"), "run personal: neither a run in elsewhere nor a path to one"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    copied: Run, command: Sim, change: Callable[[Run], None] | None, words: tuple[str, ...], message: str
) -> None:
    if change is not None:
        change(copied)
    found = command("evaluate", "personal", *words)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert not copied.evaluation_path.exists()


def test_settings_that_change_figures_stay(copied: Run) -> None:
    with pytest.raises(ConfigError, match="--seed: an evaluated run keeps its config; it may change --num-cpus, "):
        evaluate(copied, seed=3)
    with pytest.raises(ConfigError, match="is a folder"):
        evaluate(copied, output=copied.path)
    (copied.path / "rounds.csv").unlink()
    with pytest.raises(RunFolderError, match=r"has no rounds\.csv"):
        evaluate(copied)


def test_the_table_on_the_screen() -> None:
    losses = np.arange(10.0)
    frame = pd.DataFrame(
        {
            "client_id": range(10),
            "num_examples": [1] * 9 + [11],
            "num_rounds_trained": [1] * 8 + [0] * 2,
            "global_loss": losses,
            "own_loss": [*losses[:9], np.nan],
        }
    )
    table = table_of(frame, MetricName.parse("loss"))
    rows = list(zip(*(column._cells for column in table.columns), strict=True))
    assert rows == [
        # The mean is weighted: (0 + … + 8 + 11 · 9) / 20; the worst losses are the largest.
        ("all", "global", "6.7500", "0.9000", "4.5000", "8.1000", "9.0000", "10"),
        ("all", "own", "4.0000", "0.8000", "4.0000", "7.2000", "8.0000", "9"),
        ("never trained", "global", "8.9167", "8.1000", "8.5000", "8.9000", "9.0000", "2"),
        ("never trained", "own", "8.0000", "8.0000", "8.0000", "8.0000", "8.0000", "1"),
    ]
    first = table_of(frame[:8], MetricName.parse("loss"))
    assert first.row_count == 2
