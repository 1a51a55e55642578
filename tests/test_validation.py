"""The validation: what is held out, when a run stops early, and the weights of the best round."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from conftest import Sim, sha256
from sim import ConfigError, DataError, Run, RunConfig, resume
from sim.data import partition
from sim.data.load_dataset import load_dataset
from sim.errors import RunFolderError
from sim.metrics import MetricName
from sim.network.options import networked
from sim.run_folder.best_round import BestRound, metric_of_validation
from sim.run_folder.measurements import names_of
from sim.run_folder.plots import curves_figure, curves_of
from sim.run_folder.weights_file import content_of, read_model, round_of
from sim.setup.trained import TrainedModel

Small = Callable[..., Run]
# The first round makes the model worse, those after it make it better.
WORSE = {"validation_share": 0.1, "validation_metric": "accuracy:min", "lr": 0.2, "num_rounds": 12, "local_epochs": 2}


def _assigned(**settings: Any) -> tuple[partition.Partition, Any]:
    config = RunConfig(**{"num_clients": 10, **settings})
    dataset = load_dataset(config)
    return partition.assign(dataset, config), dataset


def test_a_share_of_the_training_examples_is_held_out_before_clients_get_any() -> None:
    assigned, dataset = _assigned(validation_share=0.25)
    count = len(dataset.train)
    held_out, rest = assigned.validation, assigned.indices
    assert len(held_out) == math.floor(count * 0.25)
    assert sorted([*held_out.tolist(), *rest.tolist()]) == list(range(count))
    assert (np.diff(held_out) > 0).all()
    others = [_assigned(**settings)[0].validation for settings in ({"validation_share": 0.25, "seed": 1}, {})]
    assert len(others[0]) == len(held_out)
    assert not np.array_equal(others[0], held_out)
    assert not len(others[1])
    # Who gets the rest is another matter.
    assert np.array_equal(_assigned(validation_share=0.25, num_clients=4, partitioner="iid")[0].validation, held_out)


def test_each_natural_client_keeps_an_example() -> None:
    values = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2, 3])
    for seed in range(20):
        held_out = partition.validation_of(values, RunConfig(validation_share=0.5, seed=seed))
        assert len(held_out) == 5
        assert set(np.delete(values, held_out)) == {0, 1, 2, 3}
    assert len(partition.validation_of(values, RunConfig(validation_share=0.9))) == 6
    numbers = np.linspace(0, 1, 10)
    assert len(partition.validation_of(numbers, RunConfig(validation_share=0.9))) == 9
    with pytest.raises(ConfigError, match=r"--validation-share 0\.09: holds out none of 10 training examples"):
        partition.validation_of(values, RunConfig(validation_share=0.09))


@pytest.mark.parametrize(
    ("smaller", "values", "rounds"),
    [
        (False, [0.1, 0.5, 0.5, 0.4, 0.6], [0, 1, 1, 1, 4]),
        (True, [2.0, math.nan, 1.0, 1.5, None], [0, 0, 2, 2, 2]),
        (False, [None, math.nan, 0.0], [None, None, 2]),
    ],
)
def test_the_best_round_is_the_first_with_the_best_value(
    smaller: bool, values: list[float | None], rounds: list[int | None]
) -> None:
    best = BestRound(MetricName("x", smaller))
    found = []
    for number, value in enumerate(values):
        is_best = best.see(number, value)
        assert is_best == (best.round == number)
        found.append(best.round)
    assert found == rounds


def test_patience_counts_validations_without_a_better_value() -> None:
    best = BestRound(MetricName("accuracy", smaller_is_better=False), patience=2)
    seen = []
    for number, value in enumerate([0.5, 0.4, 0.6, 0.6, 0.1]):
        best.see(10 * number, value)
        seen.append((best.num_worse, best.is_over))
    assert seen == [(0, False), (1, False), (0, False), (1, False), (2, True)]
    assert best.in_words == "accuracy 0.6000 of the validation in round 20"


@pytest.mark.parametrize(
    ("config", "measured", "metric"),
    [
        ({}, ["loss", "f1", "accuracy"], MetricName("accuracy", smaller_is_better=False)),
        ({"metric": "mae,r2"}, ["loss", "mae", "r2"], MetricName("mae", smaller_is_better=True)),
        ({}, ["loss"], MetricName("loss", smaller_is_better=True)),
        ({"validation_metric": "loss"}, ["loss", "accuracy"], MetricName("loss", smaller_is_better=True)),
        ({"validation_metric": "score:min"}, ["score"], MetricName("score", smaller_is_better=True)),
        ({"validation_metric": "score", "metric": "a:score:min"}, [], MetricName("score", smaller_is_better=True)),
    ],
)
def test_the_metric_by_which_rounds_are_compared(
    config: dict[str, Any], measured: list[str], metric: MetricName
) -> None:
    assert metric_of_validation(config, measured) == metric


def test_a_run_stops_early_and_keeps_its_best_weights(small: Small) -> None:
    run = small(name="early", patience=2, **WORSE)
    rounds = run.rounds()
    accuracies = rounds.validation_accuracy.tolist()
    best = int(np.argmin(accuracies))
    assert rounds["round"].max() == best + 2 < WORSE["num_rounds"]
    assert run.is_done()
    assert run.stopped_early()
    found = run.best()
    assert found is not None
    assert (found.round, found.value, found.num_worse) == (best, accuracies[best], 2)
    # The weights are those that a run with as many rounds ends with.
    short = small(name="short", **{**WORSE, "num_rounds": best})
    best_weights, weights = load_file(run.best_path), load_file(short.model_path)
    assert all(np.array_equal(best_weights[name], weights[name]) for name in weights)
    assert not all(np.array_equal(best_weights[name], w) for name, w in load_file(run.model_path).items())
    trained = TrainedModel.of(run, best=True)
    assert trained.number == best
    assert (
        trained.notes[0]
        == f"the model is the best one: accuracy {accuracies[best]:.4f} of the validation in round {best}"
    )
    assert TrainedModel.of(run).number == best + 2
    metrics = run.metrics().query("phase == 'validation'")
    assert metrics.name.tolist() == ["loss", "accuracy"] * len(rounds)
    assert metrics.value.tolist() == [
        value for pair in zip(rounds.validation_loss, rounds.validation_accuracy, strict=True) for value in pair
    ]
    assert set(metrics.num_examples) == {143}
    assert names_of(run) == ["loss", "accuracy"]
    figure = curves_figure(curves_of([run]), ["accuracy"])
    assert [line.get_label() for line in figure.axes[0].lines] == ["test examples", "validation examples"]


def test_the_validation_is_that_of_the_held_out_examples(small: Small) -> None:
    """Of a model that a client trained on all examples, as the clients see them."""
    run = small(validation_share=0.1, num_rounds=1)
    plain = small(name="plain", num_rounds=1)
    assert plain.rounds()[["validation_loss", "validation_accuracy", "validation_seconds"]].isna().all().all()
    assert not plain.best_path.exists()
    assert plain.best() is None
    assert run.rounds().test_loss[0] == plain.rounds().test_loss[0]
    assert run.rounds().validation_loss[0] != run.rounds().test_loss[0]
    assert run.clients().num_examples.sum() < 1437 * 0.9
    # Every clients' examples and the held out ones are all: their mean loss is that of the whole.
    from sim.client.runtime import ClientRuntime
    from sim.setup.prepare import prepare
    from sim.training.local import evaluation_sums, means

    settings = {"num_clients": 10, "clients_per_round": 4, "engine": "inline", "validation_share": 0.1}
    runtime = ClientRuntime(prepare(RunConfig(**settings)).spec)
    assert runtime.partition is not None
    loader = runtime.batches(runtime.train_split, runtime.partition.validation, 50, shuffle=False)
    loss, _ = means([evaluation_sums(runtime.net, loader, runtime.device)])
    assert run.rounds().validation_loss[0] == pytest.approx(loss, rel=1e-6)


def test_it_has_the_cadence_of_the_test(small: Small) -> None:
    run = small(validation_share=0.1, num_rounds=5, test_every=2)
    rounds = run.rounds()
    assert rounds.validation_loss.notna().tolist() == [True, False, True, False, True, True]
    assert rounds.test_loss.notna().tolist() == rounds.validation_loss.notna().tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"devices": "lognormal", "strategy": "fedadam"},
        {"strategy": "multikrum", "strategy_args": {"num_nodes_to_select": 2}},
    ],
)
def test_a_resume_gives_the_same_rounds_and_weights(small: Small, settings: dict[str, Any]) -> None:
    """Strategies of both forms; test_engines.py has the validation on Ray."""
    settings = {**WORSE, "patience": 3, **settings}
    whole = small(name="whole", **settings)
    last = int(whole.rounds()["round"].max())
    assert last < 12
    stopped = small(name="stopped", **{**settings, "num_rounds": last - 1})
    stopped.best_path.unlink()  # its weights are in the checkpoint, too
    continued = resume(stopped, num_rounds=12)
    assert continued.best_path.read_bytes() == whole.best_path.read_bytes()
    assert continued.model_path.read_bytes() == whole.model_path.read_bytes()
    assert continued.rounds().validation_loss.tolist() == whole.rounds().validation_loss.tolist()


@pytest.mark.usefixtures("in_programs")
def test_a_resume_begins_with_the_best_round_of_its_checkpoint(small: Small, tmp_path: Path) -> None:
    """Rounds after the checkpoint may have been better; they are made again, and perhaps not all of them."""
    own = {"model": "own:Stepped", "train": "own:train_stepped", "test": "own:test_stepped"}
    settings: dict[str, Any] = {"validation_share": 0.1, "num_rounds": 4, **own}
    whole = small(name="whole", **settings)
    accuracies = whole.rounds().validation_accuracy
    assert accuracies.tolist() == [0.1, 0.3, 0.5, 0.4, 0.6]
    other = small(name="other", checkpoint_every=1, keep_checkpoints=9, **settings)
    for number in (3, 4):
        shutil.rmtree(other.checkpoints_path / str(number))
    other.model_path.unlink()
    assert other.best_path.read_bytes() == whole.best_path.read_bytes()
    seen = []
    continued = resume(other, on_record=lambda record: seen.append((record.round, round_of(other.best_path))))
    assert seen == [(3, 2), (4, 4)]
    assert continued.best_path.read_bytes() == whole.best_path.read_bytes()
    assert continued.rounds().validation_accuracy.tolist() == accuracies.tolist()
    assert TrainedModel.of(other, best=True).number == 4
    other.best_path.write_bytes(content_of(*read_model(whole.best_path), 3))
    with pytest.raises(RunFolderError, match=r"best\.safetensors: is not of round 4, the best one in rounds\.csv"):
        TrainedModel.of(other, best=True)


def test_a_larger_patience_continues_and_the_same_one_is_refused(small: Small) -> None:
    run = small(name="early", patience=1, **WORSE)
    last = int(run.rounds()["round"].max())
    with pytest.raises(RunFolderError, match=f"stopped early in round {last}, because of --patience 1; a larger one"):
        resume(run, num_rounds=99)
    continued = resume(run, patience=3)
    assert continued.best_path.read_bytes() == small(name="whole", patience=3, **WORSE).best_path.read_bytes()
    assert continued.rounds()["round"].max() > last


@pytest.mark.slow
def test_the_command_line_says_why_it_ended(command: Sim, tmp_path: Path) -> None:
    words = "--num-clients 10 --clients-per-round 4 --local-epochs 2 --engine inline --lr 0.2 --num-rounds 9 --name one"
    more = "--validation-share 0.1 --validation-metric accuracy:min --patience 2"
    done = command("run", *words.split(), *more.split())
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "results" / "one")
    best = run.best()
    assert best is not None
    lines = done.stdout.splitlines()
    assert "stopped early   after 2 validations without a better one" in lines
    assert f"best round      {best.in_words}" in lines
    listed = command("list").stdout
    assert "ended early" in listed
    assert f"no better accuracy since round {best.round}" in listed
    assert f"{best.round + 2}/9" in listed  # type: ignore[operator]
    for words in ("export one --best -o best.safetensors", "export one -o last.safetensors"):
        assert command(*words.split()).returncode == 0
    exported, kept = load_file(tmp_path / "best.safetensors"), load_file(run.best_path)
    assert all(np.array_equal(exported[name], kept[name]) for name in kept)
    assert sha256(tmp_path / "best.safetensors") != sha256(tmp_path / "last.safetensors")
    assert f"after round {best.round}" in command("export", "one", "--best", "-o", "best.pt").stdout
    words = "--num-clients 10 --clients-per-round 2 --local-epochs 1 --engine inline --num-rounds 1 --name plain"
    plain = command("run", *words.split())
    assert plain.returncode == 0
    refused = command("export", "plain", "--best")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"sim: {tmp_path}/results/plain: --best: has no validation; that needs a run with --validation-share\n"
    )
    assert "ended early" not in command("list", "--filter", "patience=7").stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 3}, "--patience 3: needs --validation-share above 0, e.g. 0.1"),
        ({"validation_metric": "f1"}, "--validation-metric f1: needs --validation-share above 0, e.g. 0.1"),
        (
            {"validation_share": 0.1, "validation_metric": ":min"},
            "--validation-metric :min: must be the name of a metric, NAME:min or NAME:max",
        ),
        (
            {"validation_share": 0.1, "client_fn": "own:client_fn"},
            "--validation-share 0.1: has no effect with --client-fn; a Flower program has its own data, training and "
            "tests",
        ),
    ],
)
def test_what_it_needs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**settings)
    assert str(error.value) == message


def test_a_network_holds_nothing_out() -> None:
    with pytest.raises(ConfigError, match=r"--validation-share 0\.1: is held out by sim run only; the clients of a ne"):
        networked({"validation_share": 0.1})


def test_a_metric_that_nobody_measures_is_named(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--validation-metric f1: must be one of loss, accuracy"):
        small(validation_share=0.1, validation_metric="f1")
    (tmp_path / "own_test.py").write_text("def test(net, loader): return 0.5, {'recall': 0.5}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--validation-metric f1: must be one of recall, loss"):
        small(validation_share=0.1, validation_metric="f1", test="own_test:test")


def test_data_that_have_a_validation_or_partitions_already(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "splits.py").write_text(
        "import numpy as np\n"
        "def rows(n): return np.ones((n, 3), np.float32), np.arange(n) % 2\n"
        "def three(): return rows(20), rows(5), rows(5)\n"
        "def two(): return rows(20), rows(5)\n"
        "def own(partition_id, num_partitions): return rows(20), rows(5)\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = {"validation_share": 0.2, "num_clients": 2, "clients_per_round": 2, "num_rounds": 1}
    with pytest.raises(DataError) as error:
        small(dataset="splits:three", **settings)
    assert str(error.value) == (
        "--validation-share 0.2: --dataset splits:three returned 3 splits, perhaps one for validation already; let it "
        "return (train, test), or leave the flag out"
    )
    with pytest.raises(ConfigError, match=r"--validation-share 0\.2: --dataset splits:own gives the data of each clie"):
        small(dataset="splits:own", **settings)
    assert not (tmp_path / "results").exists()
    run = small(dataset="splits:two", **settings)
    assert set(run.metrics().query("phase == 'validation'").num_examples) == {4}
    assert run.clients().num_examples.sum() == 16


def test_another_metric_is_read_from_metrics_csv(small: Small) -> None:
    run = small(dataset="diabetes", validation_share=0.2, patience=1, num_rounds=6, lr=0.01, partitioner="iid")
    best = run.best()
    assert best is not None
    frame = run.metrics().query("phase == 'validation' and name == 'mae'")
    assert best.metric == MetricName("mae", smaller_is_better=True)
    assert best.value == pytest.approx(frame.value.min(), rel=1e-12)
    assert best.round == frame["round"].iloc[frame.value.argmin()]
    assert pd.read_csv(run.rounds_path).validation_accuracy.isna().all()
