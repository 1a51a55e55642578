"""``--final-evaluate``: the model after the last round on all clients, as ``sim evaluate`` measures it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import Sim
from sim import ConfigError, Run, RunConfig, evaluate, resume
from sim.network.options import networked

Small = Callable[..., Run]


@pytest.mark.parametrize("strategy", ["fedavg", "fedrep"])
def test_it_is_the_table_of_sim_evaluate(small: Small, tmp_path: Path, strategy: str) -> None:
    run = small(final_evaluate=True, strategy=strategy)
    found = run.evaluation_path.read_bytes()
    evaluate(run, output=tmp_path / "again.csv")
    assert found == (tmp_path / "again.csv").read_bytes()
    frame = pd.read_csv(run.evaluation_path)
    assert frame.client_id.tolist() == list(range(10))
    assert frame.global_accuracy.between(0, 1).all()
    assert frame.own_loss.equals(frame.global_loss) == (strategy == "fedavg")
    # Each client kept a fifth, which it did not train on.
    plain = small(name="plain", strategy=strategy).clients().set_index(["round", "client_id"]).num_examples
    kept = frame.set_index("client_id").num_examples
    for key, num_examples in run.clients().set_index(["round", "client_id"]).num_examples.items():
        assert num_examples + kept[key[1]] == plain[key]
    rounds = run.rounds()
    assert rounds.eval_accuracy.isna().all()
    assert run.is_done()


@pytest.mark.usefixtures("in_programs")
def test_a_client_of_ones_own_evaluates_the_global_model(small: Small, tmp_path: Path) -> None:
    run = small(final_evaluate=True, client="own:CountingBoth")
    evaluate(run, output=tmp_path / "again.csv")
    assert run.evaluation_path.read_bytes() == (tmp_path / "again.csv").read_bytes()


def test_a_resume_gives_the_same_table(small: Small) -> None:
    """test_engines.py has it on Ray."""
    whole = small(name="whole", final_evaluate=True, num_rounds=3)
    stopped = small(name="stopped", final_evaluate=True, num_rounds=2)
    before = stopped.evaluation_path.read_bytes()
    continued = resume(stopped, num_rounds=3)
    assert continued.evaluation_path.read_bytes() == whole.evaluation_path.read_bytes() != before


def test_a_target_ends_the_rounds_and_the_last_model_is_evaluated(small: Small) -> None:
    run = small(final_evaluate=True, num_rounds=9, target_accuracy=0.01)
    assert run.rounds()["round"].tolist() == [0, 1] or run.rounds()["round"].tolist() == [0]
    assert len(pd.read_csv(run.evaluation_path)) == 10


def test_sim_run_prints_the_clients(command: Sim) -> None:
    done = command(
        *("run", "--num-clients", "10", "--clients-per-round", "2", "--num-rounds", "1", "--local-epochs", "1"),
        *("--engine", "inline", "--final-evaluate", "--name", "one"),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (row,) = [line.split() for line in lines if line.split()[:2] == ["all", "global"]]
    assert row[-1] == "10"
    assert any(line.startswith("table ") and line.endswith("evaluation.csv") for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"eval_share": 0.0},
            "--eval-share 0: must be above 0, because --final-evaluate needs examples to evaluate on",
        ),
        (
            {"client_fn": "own:client_fn"},
            "--final-evaluate: has no effect with --client-fn; a Flower program has its own data, training and tests",
        ),
    ],
)
def test_what_it_needs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(final_evaluate=True, **settings)
    assert str(error.value) == message


def test_a_network_has_no_final_evaluation() -> None:
    with pytest.raises(ConfigError, match="--final-evaluate: asks clients that may no longer be connected"):
        networked({"final_evaluate": True})
    assert np.isclose(networked({"final_evaluate": False})["fraction_fit"], 1.0)
