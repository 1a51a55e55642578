"""Samplers of a user's own, and strategies that draw among the clients of a round: faults are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.server.criterion import Criterion
from flwr.serverapp.strategy import FedAvg as NewerFedAvg

from conftest import PROGRAMS, Small, sha256
from sim import Run, RunConfig, resume, simulate
from sim.errors import ConfigError, PluginError, RunError, StateError
from sim.server.run_sampler import RunSampler
from sim.server.sampled_clients import SampledClients
from sim.server.virtual_clients import virtual_clients

pytestmark = pytest.mark.usefixtures("no_pictures")

ASYNCHRONOUS = {"strategy": "fedbuff", "strategy_args": {"buffer_size": 2}, "concurrency": 4}


@pytest.fixture(autouse=True)
def _own_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROGRAMS)


@pytest.mark.parametrize("settings", [{}, {"strategy": "multikrum"}, ASYNCHRONOUS], ids=["older", "newer", "async"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Few", r"sample returned \d clients instead of \d"),
        ("Unknown", r"sample returned client -1, which is not among the 10 candidates"),
        ("Floats", r"sample returned .*0\.0.*, which is no client id"),
        ("Nothing", "sample raised TypeError: 'NoneType' object is not iterable"),
        ("Exiting", "sample raised SystemExit: 0"),
        ("Misnamed", r"sample raised TypeError: .*positional arguments"),
    ],
)
def test_what_a_sampler_does_wrong_is_one_line(small: Small, settings: dict[str, Any], name: str, problem: str) -> None:
    with pytest.raises(RunError, match=rf"^round 1: --sampler samplers:{name}: {problem}"):
        small(**settings, sampler=f"samplers:{name}")


def test_a_client_is_chosen_once(small: Small) -> None:
    with pytest.raises(RunError, match="round 1: --sampler samplers:Twice: sample returned client 0 twice"):
        small(sampler="samplers:Twice")


@pytest.mark.parametrize("settings", [{}, {"strategy": "multikrum"}, ASYNCHRONOUS], ids=["older", "newer", "async"])
def test_rounds_before_a_fault_are_done(small: Small, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"^round 3: --sampler samplers:Raising: sample raised ArithmeticError: enough"):
        small(**settings, sampler="samplers:Raising", num_rounds=9, name="faulty")
    assert Run(tmp_path / "results" / "faulty").last_checkpoint() == 2


def test_an_observer_that_raises_is_named_and_one_that_nobody_calls_is_refused(small: Small) -> None:
    with pytest.raises(RunError, match="round 1: --sampler samplers:Observing: observe raised ArithmeticError: not to"):
        small(sampler="samplers:Observing")
    with pytest.raises(ConfigError, match="--sampler samplers:Observing: has a method observe, but in mode async"):
        small(sampler="samplers:Observing", **ASYNCHRONOUS)


def test_what_no_checkpoint_can_keep_is_said_before_anything_is_written(small: Small, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="--sampler samplers:WithSlots: has __slots__"):
        small(sampler="samplers:WithSlots")
    with pytest.raises(
        StateError, match=r"--sampler samplers:WithLock: holds lock \(lock\), which a checkpoint cannot"
    ):
        small(sampler="samplers:WithLock")
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        RunError, match=r"round 1: --sampler samplers:WithLockLater now holds lock \(lock\), which no ch"
    ):
        small(sampler="samplers:WithLockLater")
    assert small(sampler="samplers:WithLockLater", checkpoint_every=0, name="without").rounds().num_clients[2] == 4


@pytest.mark.parametrize("settings", [{}, {"strategy": "multikrum"}, ASYNCHRONOUS], ids=["older", "newer", "async"])
@pytest.mark.parametrize("name", ["Counting", "Shuffling"])
def test_a_sampler_of_ones_own_is_resumed(small: Small, settings: dict[str, Any], name: str) -> None:
    settings = {**settings, "sampler": f"samplers:{name}", "num_rounds": 3}
    whole = small(**settings, name="whole")
    resumed = resume(small(**{**settings, "num_rounds": 1}, name="half"), num_rounds=3)
    assert sha256(resumed.model_path) == sha256(whole.model_path)
    if name == "Counting" and "concurrency" not in settings:
        # It is asked once in a round, however often a strategy asks who is there.
        chosen = whole.clients().groupby("round").client_id.apply(set)
        assert chosen.tolist() == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 0, 1}]


def test_newer_strategies_do_not_wait_for_clients_that_never_come(small: Small) -> None:
    """Evaluation needs more clients than a round has."""
    run = small(strategy="multikrum", sampler="round-robin", fraction_evaluate=0.8)
    assert run.clients().groupby(["round", "phase"]).size().tolist() == [8, 4, 8, 4]
    config = RunConfig(num_clients=10, clients_per_round=4, engine="inline", sampler="round-robin", num_rounds=1)
    with pytest.raises(ConfigError, match="waits for 6 clients, but there are 4 that --sampler round-robin offers it"):
        simulate(config, strategy=NewerFedAvg(fraction_train=0.4, min_available_nodes=6))
    with pytest.raises(ConfigError, match="draws 2 of the 4 clients that --sampler round-robin has chosen; give it"):
        simulate(config, strategy=NewerFedAvg(fraction_train=0.6))
    with pytest.raises(ConfigError, match=r"--over-select 1\.5: the strategy was made before"):
        simulate(RunConfig(num_clients=10, devices="uniform", over_select=1.5, engine="inline"), strategy=NewerFedAvg())


def test_clients_that_are_offline_are_never_offered() -> None:
    class Even(Criterion):
        def select(self, client: Any) -> bool:
            return int(client.cid) % 2 == 0

    config = RunConfig(num_clients=6, sampler="round-robin")
    manager = virtual_clients(6, clients := SampledClients(config, RunSampler(config, [])))
    clients.begin(1, 0, np.array([1, 2, 3, 4]))
    assert sorted(manager.all()) == ["1", "2", "3", "4"]
    assert [proxy.cid for proxy in manager.sample(3, criterion=Even())] == ["2", "4"]
    clients.end()
    assert len(manager.all()) == 6
