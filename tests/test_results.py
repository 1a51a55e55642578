"""How clients differ in a round, and runs that end when they are good enough."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import Small
from sim import Run, resume
from sim.errors import RunFolderError
from sim.server.results import client_quantiles


def test_quantiles_and_the_worst_tenth_of_clients() -> None:
    assert client_quantiles([0.0, 1.0]) == {
        "eval_accuracy_p10": 0.1,
        "eval_accuracy_p25": 0.25,
        "eval_accuracy_p50": 0.5,
        "eval_accuracy_p75": 0.75,
        "eval_accuracy_p90": 0.9,
        "eval_accuracy_worst10": 0.0,
    }
    eleven = [number / 10 for number in (10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3)]  # the worst 10 % are two clients
    assert client_quantiles(eleven)["eval_accuracy_worst10"] == pytest.approx(0.15)
    assert client_quantiles([]) == {}


def test_the_rounds_show_how_accuracy_differs_among_the_clients(finished: Run, small: Small) -> None:
    rounds, clients = finished.rounds(), finished.clients()
    own = clients[(clients["round"] == 2) & (clients.phase == "evaluate")].accuracy.dropna()
    assert rounds.eval_accuracy_p25[2] == pytest.approx(np.percentile(own, 25))
    assert rounds.eval_accuracy_worst10[2] == own.min()  # one of at most ten clients
    assert rounds.eval_accuracy_p50[1:].notna().all()
    assert np.isnan(rounds.eval_accuracy_p50[0])
    assert finished.fairness_path.read_bytes().startswith(b"\x89PNG")
    without = small()
    assert without.rounds().eval_accuracy_p50.isna().all()
    assert not without.fairness_path.exists()


def test_a_run_ends_when_the_target_is_reached_and_continues_with_a_higher_one(small: Small) -> None:
    settings = {"num_rounds": 6, "num_clients": 5, "clients_per_round": 5, "max_local_steps": 8, "partitioner": "iid"}
    whole = small(**settings, name="whole")
    accuracy = whole.rounds().test_accuracy
    target = float(accuracy[3])
    reached = small(**settings, name="reached", target_accuracy=target)
    last = int((accuracy >= target).idxmax())
    assert 0 < last < 6
    assert reached.rounds()["round"].tolist() == list(range(last + 1))
    assert reached.checkpoints()[-1] == last
    assert reached.is_done()
    with pytest.raises(RunFolderError, match=rf"reached --target-accuracy {target:g} in round {last}; a higher one"):
        resume(reached)
    higher = resume(reached, target_accuracy=1.0)
    assert higher.model_path.read_bytes() == whole.model_path.read_bytes()
