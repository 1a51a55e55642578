"""Strategies that call their clients by themselves, outside of the instructions that they return."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from conftest import PROGRAMS, SMALL, Small, sha256
from sim import Run, RunConfig, resume, simulate
from sim.errors import ClientError, RunError

pytestmark = pytest.mark.usefixtures("no_pictures", "in_programs")
DESCRIBING: dict[str, Any] = {
    "client": "asking:Describing",
    "partitioner": "linear",
    "num_rounds": 3,
    "fraction_evaluate": 0.5,
}


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the strategies, as a run imports it."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("asking")


def _run(tmp_path: Path, strategy: Any, **settings: Any) -> Run:
    return simulate(RunConfig(**{**SMALL, "results_dir": str(tmp_path / "results"), **settings}), strategy=strategy)


@pytest.mark.slow
def test_it_chooses_by_what_clients_answer(asking: Any, tmp_path: Path) -> None:
    """The linear partition gives later clients more examples."""
    strategy = asking.Choosing()
    run = _run(tmp_path, strategy, **DESCRIBING)
    sizes = [row["examples"] for row in strategy.properties[0]]
    assert sizes == sorted(sizes)
    assert [[row["count"] for row in each] for each in strategy.properties] == [[2] * 10, [4] * 10, [6] * 10]
    assert len({row["random"] for each in strategy.properties for row in each}) == 30  # each call has a stream
    clients = run.clients()
    asked = clients[clients.phase == "query"]
    assert asked.groupby("round").client_id.agg(list).to_dict() == {number: list(range(10)) for number in (1, 2, 3)}
    evaluated = clients[clients.phase == "evaluate"]
    assert evaluated.client_id.tolist() == [9, 8, 7, 6] * 3
    assert evaluated.loss.tolist() == pytest.approx([loss for each in strategy.losses for loss in each])
    # The two that it chose, and the first of them once more, which gets what it has sent and a rate of 0.
    trained = clients[clients.phase == "fit"]
    assert trained[trained["round"] == 1].client_id.tolist() == [8, 8, 9]
    assert strategy.first == [(True, True)] * 3
    assert run.rounds().num_clients.tolist()[1:] == [2, 2, 2]


@pytest.mark.ray
def test_the_same_bits_on_ray_and_resumed(small: Small) -> None:
    settings = {**DESCRIBING, "strategy": "asking:Choosing"}
    whole = small(name="whole", **settings)
    on_ray = small({"num_cpus": 1}, engine="ray", name="ray", **settings)
    resumed = resume(small(name="part", **{**settings, "num_rounds": 1}), num_rounds=3)
    assert len({sha256(each.model_path) for each in (whole, on_ray, resumed)}) == 1
    columns = ["round", "phase", "client_id", "num_examples", "loss"]
    for other in (on_ray, resumed):
        assert other.clients()[columns].equals(whole.clients()[columns])


@pytest.mark.slow
def test_a_client_without_a_model_of_its_own_has_the_global_one(asking: Any, tmp_path: Path) -> None:
    strategy = asking.AskingForParameters()
    _run(tmp_path, strategy, num_rounds=2)
    after_one = load_file(_run(tmp_path, asking.AskingForParameters(), num_rounds=1).model_path)
    first, second = ({array.tobytes() for array in found} for found in strategy.found)
    assert second == {array.tobytes() for array in after_one.values()}
    assert first.isdisjoint(second)


def test_a_client_of_flower_that_is_no_numpy_client(asking: Any, tmp_path: Path) -> None:
    strategy = asking.Choosing()
    config = {"num_clients": 4, "num_rounds": 1, "engine": "inline", "client_fn": "asking:raw"}
    simulate(RunConfig(**config, results_dir=str(tmp_path / "results")), strategy=strategy)
    assert strategy.properties == [[{"examples": 4, "by": 2}] * 4]
    assert strategy.losses == [[1.0] * 4]
    assert strategy.first == [(True, False)]  # this client adds 1 whenever it is asked


def test_one_that_raises_stops_the_run_or_is_an_error_of_the_strategy(asking: Any, tmp_path: Path) -> None:
    settings = {"client": "asking:Refusing", "num_rounds": 1}
    with pytest.raises(ClientError, match=r"client 0 raised in round 1 \(query\): PermissionError: no properties"):
        _run(tmp_path, asking.Choosing(), **settings)
    with pytest.raises(RunError, match=r"round 1: configure_fit raised RuntimeError: client 0 raised PermissionError"):
        _run(tmp_path, asking.Choosing(), on_client_error="drop", **settings)


@pytest.mark.parametrize(
    "settings",
    [{"devices": "lognormal"}, {"compress": {"up": "topk:0.1", "error_feedback": True}}],
    ids=min,
)
def test_no_calls_with_virtual_time_or_error_feedback(asking: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A call takes no virtual time, and would replace what a client keeps for its next round."""
    with pytest.raises(RunError, match="configure_fit raised RuntimeError: client 0 cannot be called here"):
        _run(tmp_path, asking.Choosing(), **settings, **DESCRIBING)


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("attack", {"attack": "sign-flip", "attack_share": 0.2}),
        ("client-dropout", {"client_dropout": 0.01}),
        ("compress", {"compress": {"up": "int8"}}),
    ],
)
def test_no_call_to_train_where_a_flag_would_not_reach_it(
    asking: Any, tmp_path: Path, flag: str, settings: dict[str, Any]
) -> None:
    reason = f"aggregate_fit raised RuntimeError: client 8 cannot be asked to train here, where --{flag} would not"
    with pytest.raises(RunError, match=reason):
        _run(tmp_path, asking.Choosing(), **settings, **DESCRIBING)
