from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.common import Context, RecordDict
from safetensors.numpy import load_file

from conftest import Small
from sim import Run, RunConfig
from sim.client.runtime import ClientRuntime
from sim.data import partition
from sim.data.load_dataset import load_dataset
from sim.errors import ClientError, RunError
from sim.run_folder.folder import open_run
from sim.seeds import Purpose, seeded
from sim.setup import prepare
from sim.training.weights import get_weights


def _weights(run: Run) -> dict[str, np.ndarray]:
    return load_file(run.model_path)


def test_one_round_is_federated_averaging_as_the_paper_writes_it(small: Small) -> None:
    """A bare loop over the sampled clients (McMahan et al. 2017, algorithm 1) gives the same weights."""
    run = small(num_rounds=1, local_epochs=2, max_local_steps=None)
    clients = run.clients()
    config = RunConfig(num_clients=10, clients_per_round=4, num_rounds=1, local_epochs=2, engine="inline")
    runtime = ClientRuntime(prepare.prepare(config).spec)
    start = get_weights(runtime.net)
    total = [np.zeros(array.shape) for array in start]
    for client_id in clients.client_id:
        with seeded(0, Purpose.FIT, 1, int(client_id)):
            context = Context(0, 0, {"partition-id": int(client_id)}, RecordDict(), {})
            client = runtime.client(context).numpy_client  # type: ignore[attr-defined]
            weights, num_examples, _ = client.fit(
                start, {"local_epochs": 2, "batch_size": 8, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
            )
        for array, sum_so_far in zip(weights, total, strict=True):
            np.add(sum_so_far, array.astype(float) * num_examples, out=sum_so_far)
    mean = [array / clients.num_examples.sum() for array in total]
    found = _weights(run)
    for name, expected in zip(runtime.net.state_dict(), mean, strict=True):
        assert np.abs(found[name] - expected).max() < 1e-6
        assert not np.array_equal(found[name], start[list(runtime.net.state_dict()).index(name)])


def test_records_add_up(small: Small) -> None:
    run = small(fraction_evaluate=0.5, num_rounds=3, local_epochs=5)
    rounds, clients = run.rounds(), run.clients()
    assert rounds["round"].tolist() == [0, 1, 2, 3]
    assert rounds.loc[0, ["num_clients", "train_loss", "eval_loss", "fit_seconds"]].isna().all()
    parts = rounds[["fit_seconds", "aggregate_seconds", "test_seconds", "eval_seconds"]].sum(axis=1)
    assert (parts <= rounds.round_seconds).all()
    # Other programs may interrupt a round between its parts, but not every round.
    assert (parts / rounds.round_seconds)[1:].max() >= 0.98
    for number, row in rounds[1:].iterrows():
        fit = clients[(clients["round"] == number) & (clients.phase == "fit")]
        own = clients[(clients["round"] == number) & (clients.phase == "evaluate")]
        assert (len(fit), len(own)) == (4, 5)
        assert fit.client_id.is_monotonic_increasing
        assert fit.client_id.is_unique
        assert row.train_loss == pytest.approx(np.average(fit.loss, weights=fit.num_examples))
        assert row.eval_loss == pytest.approx(np.average(own.loss, weights=own.num_examples))
        assert row.eval_accuracy == pytest.approx(np.average(own.accuracy, weights=own.num_examples))
        sizes = _sizes(own.client_id)
        assert own.num_examples.tolist() == [n // 5 for n in sizes]
        assert fit.num_examples.tolist() == [n - n // 5 for n in _sizes(fit.client_id)]


def _sizes(client_ids: pd.Series) -> list[int]:
    config = RunConfig(num_clients=10)
    assigned = partition.assign(load_dataset(config), config)
    return [int(assigned.sizes[client_id]) for client_id in client_ids]


def test_without_evaluation_every_example_trains(small: Small) -> None:
    clients = small().clients()
    assert clients.num_examples.tolist() == _sizes(clients.client_id)


def test_clients_too_small_to_evaluate_have_no_loss_and_are_not_averaged(small: Small) -> None:
    run = small(num_clients=480, partitioner="iid", fraction_evaluate=1.0, eval_share=0.2)
    own = run.clients().query("phase == 'evaluate'")
    assert set(own.num_examples) == {0}
    assert own.loss.isna().all()
    assert run.rounds().eval_loss.isna().all()


def test_a_client_that_raises_stops_the_run_and_keeps_what_was_done(
    small: Small, in_programs: None, tmp_path: Path
) -> None:
    seen = []
    with pytest.raises(
        ClientError, match=r"client \d*[13579] raised in round 2 \(fit\): ValueError: .* bad day"
    ) as raised:
        small(client="own:Failing", num_rounds=3, name="stopped", on_record=seen.append)
    assert isinstance(raised.value.__cause__, ValueError)
    assert [record.round for record in seen] == [0, 1]
    run = open_run("stopped", str(tmp_path / "results"))
    assert run.rounds()["round"].tolist() == [0, 1]
    assert set(run.clients()["round"]) == {1}
    one = small(client="own:Failing", num_rounds=1, name="one")
    assert all(np.array_equal(array, _weights(one)[name]) for name, array in _weights(run).items())


def test_with_drop_the_others_are_averaged_and_the_failures_counted(small: Small, in_programs: None) -> None:
    run = small(client="own:Failing", num_rounds=3, on_client_error="drop")
    rounds, second = run.rounds(), run.clients().query("round == 2")
    odd = second.client_id % 2 == 1
    assert 0 < odd.sum() < 4
    assert rounds.num_failures.tolist()[1:] == [0, odd.sum(), 0]
    assert rounds.num_clients.tolist()[1:] == [4, 4 - odd.sum(), 4]
    assert (second.status == "failed").tolist() == odd.tolist()
    assert second[odd].error.str.contains("bad day").all()
    assert rounds.train_loss[2] == pytest.approx(np.average(second[~odd].loss, weights=second[~odd].num_examples))


def test_when_every_client_failed_the_run_stops_even_with_drop(small: Small, in_programs: None) -> None:
    with pytest.raises(ClientError, match="MemoryError: all of them; so did all 4 clients of the round"):
        small(client="own:Lost", on_client_error="drop")


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ("own:SystemExits", "SystemExit: 0"),
        ("own:Refusing", "RuntimeError: the client answered FIT_NOT_IMPLEMENTED: not today"),
    ],
)
def test_what_a_client_must_not_do(small: Small, in_programs: None, client: str, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        small(client=client)


def test_a_strategy_that_raises_is_named_with_its_round(small: Small, in_programs: None) -> None:
    with pytest.raises(RunError, match="round 1: aggregate_fit raised ArithmeticError: no average today"):
        small(strategy="own:RaisingFedAvg")


def test_a_strategy_that_returns_other_arrays_is_named(small: Small, in_programs: None) -> None:
    with pytest.raises(RunError, match=r"round 1: the strategy returned arrays of shapes \[\(3,\)\], "):
        small(strategy="own:BadArrays")


def test_evaluation_that_fails_loses_its_own_numbers_only(small: Small, in_programs: None) -> None:
    run = small(client="own:EvaluationFails", fraction_evaluate=0.5, on_client_error="drop")
    assert run.rounds().num_failures.tolist()[1:] == [5, 5]
    assert run.rounds().eval_loss.isna().all()
    assert run.rounds().num_clients.tolist()[1:] == [4, 4]


def test_no_client_sees_the_mode_or_the_gradients_that_another_left(small: Small, in_programs: None) -> None:
    """The train function here relies on a net that is as new; evaluation leaves it in another mode."""
    own = {"model": "own:WithDropout", "train": "own:train_without_setting_the_mode", "num_rounds": 3}
    plain = small(**own, fraction_evaluate=0.1, name="plain")
    evaluated = small(**own, fraction_evaluate=1.0, name="evaluated")
    assert all(np.array_equal(array, _weights(evaluated)[name]) for name, array in _weights(plain).items())


def test_a_strategy_that_needs_each_client_gets_each_and_agrees_with_the_mean(small: Small, in_programs: None) -> None:
    summed, each = (
        _weights(small(num_rounds=1, name=name, strategy=name_of))
        for name, name_of in (("a", "fedavg"), ("b", "own:EachClientFedAvg"))
    )
    for name, array in summed.items():
        assert np.abs(array - each[name]).max() < 1e-6


def test_the_metrics_function_sees_every_client(
    small: Small, in_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import own

    made = []
    monkeypatch.setattr(own.MetricsFedAvg, "__init__", _remember(own.MetricsFedAvg.__init__, made))
    run = small(strategy="own:MetricsFedAvg")
    sizes = run.clients().groupby("round").num_examples.apply(list).tolist()
    assert [[n for n, _ in seen] for seen in made[-1].seen] == sizes
    assert made[-1].seen[0][0][1] == ["loss"]


def _remember(init: Callable[..., None], made: list[object]) -> Callable[..., None]:
    def wrapped(self: object, **kwargs: object) -> None:
        init(self, **kwargs)
        made.append(self)

    return wrapped


def test_fedadam_keeps_float32_and_batchnorm_keeps_its_integers(small: Small, in_programs: None) -> None:
    adam = _weights(small(strategy="fedadam", name="adam"))
    assert {array.dtype for array in adam.values()} == {np.dtype(np.float32)}
    norm = _weights(small(model="own:WithBatchNorm", name="norm"))
    assert norm["norm.num_batches_tracked"].dtype == np.int64
    assert int(norm["norm.num_batches_tracked"]) > 0


def test_the_proximal_term_reaches_the_clients(small: Small) -> None:
    config = {"num_rounds": 1, "local_epochs": 3, "clients_per_round": 2}
    free, held = (
        _weights(small(**config, strategy="fedprox", strategy_args={"proximal_mu": mu}, name=f"mu{number}"))
        for number, mu in enumerate((0.0, 5.0))
    )
    plain = _weights(small(**config, name="fedavg"))
    assert all(np.array_equal(free[name], plain[name]) for name in plain)
    initial = _weights(small(**{**config, "lr": 1e-12}, name="still"))

    def moved(weights: dict[str, np.ndarray]) -> float:
        return float(sum(((weights[name] - initial[name]) ** 2).sum() for name in initial))

    assert moved(held) < 0.5 * moved(free)
