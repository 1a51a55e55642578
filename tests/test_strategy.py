from __future__ import annotations

import numpy as np
import pytest
from flwr.server import SimpleClientManager
from flwr.server.strategy import FedAdam, FedProx

from sim import strategy
from sim.config import RunConfig
from sim.engine.inline import Registered
from sim.errors import ConfigError
from sim.knobs import rules_of
from sim.models import MODELS
from sim.partitioners import PARTITIONERS
from sim.sources import SOURCES

WEIGHTS = [np.zeros(3, np.float32)]


def _build(**knobs: object) -> strategy.Chosen:
    return strategy.build(RunConfig(**knobs), WEIGHTS, lambda *_: (0.0, {}))  # type: ignore[arg-type]


def test_every_name_that_the_config_offers_is_in_a_table() -> None:
    offered = {field.name: rules_of(field).choices for field in RunConfig.__dataclass_fields__.values()}
    assert offered["strategy"] == tuple(strategy.STRATEGIES)
    assert offered["model"] == tuple(MODELS)
    assert offered["dataset"] == tuple(SOURCES)
    assert offered["partitioner"] == tuple(PARTITIONERS)


@pytest.mark.parametrize("name", sorted(strategy.STRATEGIES))
@pytest.mark.parametrize(("num_clients", "count"), [(100, 29), (3, 1), (5, 5)])
def test_exactly_the_configured_number_of_clients_is_asked(name: str, num_clients: int, count: int) -> None:
    chosen = _build(strategy=name, num_clients=num_clients, clients_per_round=count, fraction_evaluate=1.0).strategy
    manager = SimpleClientManager()
    for client_id in range(num_clients):
        manager.register(Registered(client_id))
    parameters = chosen.initialize_parameters(manager)
    assert parameters is not None
    assert len(chosen.configure_fit(1, parameters, manager)) == count
    assert len(chosen.configure_evaluate(1, parameters, manager)) == num_clients
    chosen = _build(strategy=name, num_clients=num_clients, clients_per_round=count).strategy
    assert chosen.configure_evaluate(1, parameters, manager) == []


def test_arguments_reach_the_strategy_over_its_defaults() -> None:
    prox = _build(strategy="fedprox").strategy
    assert isinstance(prox, FedProx)
    assert prox.proximal_mu == 0.1
    adam = _build(strategy="fedadam", strategy_args={"eta": 0.5, "beta_1": 0}).strategy
    assert isinstance(adam, FedAdam)
    assert (adam.eta, adam.tau, adam.beta_1) == (0.5, 1e-3, 0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fedprox", {"mu": 1}, "--strategy-args mu=1: fedprox takes these arguments: accept_failures"),
        ("fedprox", {"fraction_fit": 1}, "--strategy-args fraction_fit=1: fedprox takes these arguments"),
        ("fedadam", {"eta": "big"}, "--strategy-args eta=big: must be a number"),
        ("fedavg", {"inplace": 1}, "--strategy-args inplace=1: must be true or false"),
    ],
)
def test_unfit_arguments_are_named(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _build(strategy=name, strategy_args=arguments)
    assert message in str(raised.value)
