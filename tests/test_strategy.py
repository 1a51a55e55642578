from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from flwr.common import ArrayRecord, ConfigRecord, Parameters
from flwr.server import SimpleClientManager
from flwr.server.strategy import FedAdam, FedAvg, FedProx
from flwr.serverapp.strategy import FedAdam as NewerFedAdam
from flwr.serverapp.strategy import Strategy as MessageStrategy
from safetensors.numpy import load_file

from conftest import Small, sha256
from sim import private_names
from sim.config.fields import rules_of
from sim.config.run_config import RunConfig
from sim.data.partitioners import PARTITIONERS
from sim.data.sources.by_name import SOURCES
from sim.engine.aggregation import WeightedSum
from sim.engine.interface import ClientResult
from sim.errors import ConfigError, PluginError, RunError
from sim.server import strategy
from sim.server.async_rules import RULES
from sim.server.executor import Executor
from sim.server.flower_grid import EngineGrid
from sim.server.message_to_fit_ins import NodesOnly
from sim.server.results import PhaseResults
from sim.server.virtual_clients import VirtualClientProxy, virtual_clients
from sim.simulation import simulate
from sim.training.models import MODELS
from sim.training.weights import WeightLayout

WEIGHTS = [np.zeros(3, np.float32)]
LAYOUT = WeightLayout(["w"], (0,), (0,), {})


def _build(**settings: object) -> strategy.BuiltStrategy:
    return strategy.build(RunConfig(**settings), WEIGHTS, LAYOUT, lambda *_: (0.0, {}))  # type: ignore[arg-type]


def test_clients_are_made_when_they_are_asked_for_and_sampled_as_by_flower() -> None:
    made: list[int] = []

    def proxy_of(client_id: int) -> VirtualClientProxy:
        made.append(client_id)
        return VirtualClientProxy(client_id)

    ours, flowers = virtual_clients(1000, proxy_of=proxy_of), SimpleClientManager()
    for client_id in range(1000):
        flowers.register(VirtualClientProxy(client_id))
    random.seed(5)
    expected = [proxy.cid for proxy in flowers.sample(7)]
    random.seed(5)
    sampled = ours.sample(7)
    assert [proxy.cid for proxy in sampled] == expected
    assert sorted(made) == sorted(map(int, expected))
    assert sampled[0] is ours.all()[sampled[0].cid]
    for manager in (ours, flowers):
        manager.unregister(manager.all()["3"])
        manager.unregister(manager.all()["4"])
        manager.register(VirtualClientProxy(3))
        manager.register(VirtualClientProxy(5000))
        manager.unregister(manager.all()["5000"])
    assert list(ours.all()) == list(flowers.all())
    assert (len(ours.all()), "4" in ours.all(), "01" in ours.all(), "1000" in ours.all()) == (999, False, False, False)
    assert "9" * 5000 not in ours.all()
    with pytest.raises(KeyError):
        ours.all()["4"]


@pytest.mark.parametrize(
    "choose",
    [
        lambda: FedAdam(initial_parameters=Parameters([], "")).configure_fit(
            1, Parameters([], ""), virtual_clients(1, SimpleClientManager())
        ),
        lambda: NewerFedAdam().configure_train(1, ArrayRecord(), ConfigRecord(), NodesOnly(virtual_clients(1))),
        lambda: NewerFedAdam().configure_train(1, ArrayRecord(), ConfigRecord(), _grid(1)),
    ],
)
def test_a_strategy_that_waits_for_clients_that_never_come_is_an_error(choose: Callable[[], object]) -> None:
    with pytest.raises(RunError, match=r"the strategy waits for 2 clients, and there is 1 \(num_clients\)"):
        choose()


def test_an_app_that_waits_for_clients_that_never_come_is_noted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("time.monotonic", iter(range(20)).__next__)
    grid = _grid(1)
    for _ in range(10):
        assert len(list(grid.get_node_ids())) < 2
    assert [record.getMessage()[:61] for record in caplog.records] == [
        "note: the ServerApp asks again and again for its nodes; all 1"
    ]


def _grid(num_clients: int) -> EngineGrid:
    return EngineGrid(Executor(None, on_client_error="stop"), num_clients, lambda *_: 0, lambda *_: None)  # type: ignore[arg-type]


def test_every_name_that_the_config_offers_is_in_a_table() -> None:
    offered = {field.name: rules_of(field).choices for field in RunConfig.__dataclass_fields__.values()}
    assert offered["strategy"] == (*strategy.STRATEGIES, *strategy.ALGORITHMS, *RULES)
    assert offered["model"] == ("auto", *MODELS)
    assert offered["dataset"] == tuple(SOURCES)
    assert offered["partitioner"] == ("auto", *PARTITIONERS)


@pytest.mark.parametrize("name", sorted(strategy.STRATEGIES))
@pytest.mark.parametrize(("num_clients", "count"), [(100, 29), (3, 1), (5, 5)])
def test_exactly_the_configured_number_of_clients_is_asked(name: str, num_clients: int, count: int) -> None:
    if name == "bulyan" and count < 3:
        with pytest.raises(
            ConfigError, match=r"bulyan: needs at least 3 clients in a round against 0 .* not 1; use more"
        ):
            _build(strategy=name, num_clients=num_clients, clients_per_round=count)
        return
    chosen = _build(strategy=name, num_clients=num_clients, clients_per_round=count, fraction_evaluate=1.0).strategy
    if isinstance(chosen, MessageStrategy):
        private_names.set_task_identity(1)
        grid, arrays = NodesOnly(virtual_clients(num_clients)), ArrayRecord()
        assert len(list(chosen.configure_train(1, arrays, ConfigRecord(), grid))) == count
        assert len(list(chosen.configure_evaluate(1, arrays, ConfigRecord(), grid))) == num_clients
        chosen = _build(strategy=name, num_clients=num_clients, clients_per_round=count).strategy
        assert chosen.configure_evaluate(1, arrays, ConfigRecord(), grid) == []
        return
    manager = SimpleClientManager()
    for client_id in range(num_clients):
        manager.register(VirtualClientProxy(client_id))
    parameters = chosen.initialize_parameters(manager)
    assert parameters is not None
    assert len(chosen.configure_fit(1, parameters, manager)) == count
    assert len(chosen.configure_evaluate(1, parameters, manager)) == num_clients
    chosen = _build(strategy=name, num_clients=num_clients, clients_per_round=count).strategy
    assert chosen.configure_evaluate(1, parameters, manager) == []


@pytest.mark.parametrize("form", [FedAdam, NewerFedAdam])
def test_a_class_that_takes_any_arguments_gets_those_of_its_own_form(form: type) -> None:
    def make(self: object, **arguments: object) -> None:
        form.__init__(self, **arguments)

    own = type("Own", (form,), {"__init__": make})
    config = RunConfig(num_clients=20, clients_per_round=5)
    built = strategy.build(config, WEIGHTS, LAYOUT, lambda *_: (0.0, {}), own).strategy
    assert vars(built)["fraction_fit" if form is FedAdam else "fraction_train"] == 0.25


def test_arguments_reach_the_strategy_over_its_defaults() -> None:
    prox = _build(strategy="fedprox").strategy
    assert isinstance(prox, FedProx)
    assert prox.proximal_mu == 0.1
    adam = _build(strategy="fedadam", strategy_args={"eta": 0.5, "beta_1": 0}).strategy
    assert isinstance(adam, FedAdam)
    assert (adam.eta, adam.tau, adam.beta_1) == (0.5, 0.01, 0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fedprox", {"mu": 1}, "--strategy-args mu=1: fedprox takes these arguments: accept_failures"),
        ("fedprox", {"fraction_fit": 1}, "--strategy-args fraction_fit=1: fedprox takes these arguments"),
        ("fedadam", {"eta": "big"}, "--strategy-args eta=big: must be a number"),
        ("fedavg", {"inplace": 1}, "--strategy-args inplace=1: must be true or false"),
        (
            "fedavg",
            {"on_fit_config_fn": "abc"},
            "--strategy-args on_fit_config_fn=abc: fedavg takes these arguments: accept_failures, inplace",
        ),
        (
            "multikrum",
            {"train_metrics_aggr_fn": "abc"},
            "--strategy-args train_metrics_aggr_fn=abc: multikrum takes these arguments: num_malicious_nodes",
        ),
        (
            "bulyan",
            {"first_aggregation_rule": 1},
            "first_aggregation_rule=1: bulyan takes these arguments: num_malicious_clients",
        ),
    ],
)
def test_unfit_arguments_are_named(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _build(strategy=name, strategy_args=arguments)
    assert message in str(raised.value)


QUICKSTART = {"num_clients": 100, "clients_per_round": None, "num_rounds": 30, "local_epochs": 5}


@pytest.mark.nightly
@pytest.mark.slow
def test_the_quickstart_learns_the_digits(small: Small) -> None:
    """Within its rounds; the run ends when the accuracy is reached."""
    accuracy = small(**QUICKSTART, max_local_steps=None, target_accuracy=0.90).rounds().test_accuracy
    assert accuracy.iloc[0] < 0.90 <= accuracy.iloc[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(strategy.STRATEGIES) - {"fedavg"}))
def test_each_strategy_learns_the_digits_at_its_defaults(small: Small, name: str) -> None:
    """With a linear model, which takes a tenth of the time of the quickstart's and fewer rounds."""
    settings = {**QUICKSTART, "num_rounds": 6, "model": "Logistic", "max_local_steps": None}
    accuracy = small(**settings, strategy=name, target_accuracy=0.80).rounds().test_accuracy
    assert accuracy.iloc[0] < 0.80 <= accuracy.iloc[-1]


@pytest.mark.parametrize("kind", sorted(strategy.PRIVACY))
def test_private_averages_follow_the_seed(small: Small, kind: str) -> None:
    config = {"num_clients": 20, "clients_per_round": 10, "num_rounds": 1, "dp": kind, "max_local_steps": 1}
    first, again, other = (
        small(**config, seed=seed, name=name).model_path.read_bytes() for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first == again
    assert first != other


def test_privacy_clips_each_client_and_adds_the_noise_that_it_says(small: Small) -> None:
    """Updates clipped to next to nothing leave noise of standard deviation multiplier · norm / clients."""
    config = {"num_rounds": 1, "dp": "fixed", "clients_per_round": 10, "max_local_steps": 3}
    start = load_file(small(num_rounds=1, lr=1e-30, name="start").model_path)
    end = load_file(small(**config, dp_args={"clipping_norm": 1e-3, "noise_multiplier": 50.0}, name="end").model_path)
    noise = np.concatenate([(end[key] - start[key]).ravel() for key in start])
    assert noise.std() == pytest.approx(50.0 * 1e-3 / 10, rel=0.02)
    clipped = load_file(small(**config, dp_args={"clipping_norm": 1e-3, "noise_multiplier": 0}, name="c").model_path)
    moved = np.concatenate([(clipped[key] - start[key]).ravel() for key in start])
    assert 1e-4 < np.linalg.norm(moved) <= 1e-3 * 1.001


@pytest.mark.usefixtures("in_programs")
@pytest.mark.parametrize("form", ["fedavg", "own:AveragedMessages"])
@pytest.mark.parametrize(
    "lost", [{"client_dropout": 0.4}, {"client": "own:Failing", "on_client_error": "drop"}], ids=str
)
def test_the_noise_is_that_of_the_clients_that_are_left(small: Small, form: str, lost: dict[str, object]) -> None:
    config = {"clients_per_round": 10, "max_local_steps": 3, "dp": "fixed", "strategy": form, **lost}
    noise = {"dp_args": {"clipping_norm": 1e-3, "noise_multiplier": 50.0}}
    one, two = (small(num_rounds=number, name=str(number), **config, **noise) for number in (1, 2))
    start, end, left = load_file(one.model_path), load_file(two.model_path), int(two.rounds().num_clients[2])
    assert left < 10
    added = np.concatenate([(end[key] - start[key]).ravel() for key in start])
    assert added.std() == pytest.approx(50.0 * 1e-3 / left, rel=0.02)


@pytest.mark.usefixtures("in_programs")
@pytest.mark.parametrize("form", ["fedavg", "own:AveragedMessages"])
@pytest.mark.parametrize("kind", sorted(strategy.PRIVACY))
def test_a_private_round_without_any_client_left_keeps_the_model(small: Small, form: str, kind: str) -> None:
    rounds = small(strategy=form, dp=kind, client_dropout=0.97).rounds()
    assert rounds.num_clients.tolist()[1:] == [0, 0]
    assert rounds.test_loss.nunique() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strategy": "krum"},
            "--dp fixed: its noise is calibrated for an average of clients, which krum does not compute; use one of",
        ),
        ({"dp_args": {"noise": 1}}, "--dp-args noise=1: --dp fixed takes these arguments: noise_multiplier, clip"),
        (
            {"dp_args": {"clipping_norm": 0}},
            "--dp-args of --dp fixed: The clipping norm should be a positive value",
        ),
    ],
)
def test_privacy_that_is_impossible_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _build(dp="fixed", **settings)
    assert message in str(raised.value)


def test_clipping_at_the_client_is_refused_since_no_client_would_clip(in_programs: None) -> None:
    with pytest.raises(PluginError, match="no client here uses Flower's clipping mod"):
        _build(strategy="own:client_side_privacy")


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi", "qfedavg"])
def test_batchnorm_under_averaging_and_adaptive_strategies(
    small: Small, in_programs: None, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Running statistics are the clients' mean, whatever the strategy does to weights; counters stay integers."""
    config = {"model": "own:WithBatchNorm", "num_rounds": 1, "local_epochs": 2, "batch_size": 4, "lr": 0.001}
    averaged = load_file(small(**config, name="averaged").model_path)
    found = load_file(small(**config, strategy=name, name=name).model_path)
    for key in ("norm.running_mean", "norm.running_var"):
        assert found[key] == pytest.approx(averaged[key], abs=1e-6)
    assert np.isfinite(found["out.weight"]).all()
    assert found["norm.num_batches_tracked"].dtype == np.int64
    assert found["norm.num_batches_tracked"] == averaged["norm.num_batches_tracked"] > 0
    assert np.array_equal(found["out.weight"], averaged["out.weight"]) == (name == "fedavg")
    line = "sim: note: own:WithBatchNorm keeps running statistics (BatchNorm)"
    assert capfd.readouterr().err.count(line) == 2


@pytest.mark.parametrize(("dp", "buffer"), [(None, 4.0), ("fixed", 7.0)])
def test_noise_in_a_buffer_is_not_replaced_by_the_mean_of_the_clients(
    in_programs: None, dp: str | None, buffer: float
) -> None:
    """Of a strategy of the user's own, which sees all arrays; without noise the mean counts."""
    layout = WeightLayout(["weight", "buffer"], (0,), (0, 1), {})
    before, noised = ([np.full(1, value, np.float32)] * 2 for value in (0, 7))
    config = RunConfig(strategy="own:MetricsFedAvg", dp=dp)
    view = strategy.build(config, before, layout, lambda *_: (0.0, {})).view
    clients = [ClientResult(i, num_examples=1, weights=[np.full(1, 3 + 2 * i, np.float32)] * 2) for i in range(2)]
    weight, other = view.with_untrained(noised, before, clients, WeightedSum())
    assert (weight[0], other[0]) == (7.0, buffer)


def test_with_noise_a_strategy_sees_the_same_arrays_by_name_and_as_an_object() -> None:
    layout = WeightLayout(["weight", "buffer"], (0,), (0, 1), {})
    before, noised = ([np.full(1, value, np.float32)] * 2 for value in (0, 7))
    clients = [ClientResult(i, num_examples=1, weights=[np.full(1, 3, np.float32)] * 2) for i in range(2)]
    found = []
    for given in (None, FedAvg(fraction_fit=0.2, min_fit_clients=20, min_available_clients=20)):
        view = strategy.build(RunConfig(dp="fixed"), before, layout, lambda *_: (0.0, {}), given).view
        whole = view.whole(view.of(noised), before, 1)
        found.append([array[0] for array in view.with_untrained(whole, before, clients, WeightedSum())])
    assert found == [[7.0, 0.0], [7.0, 0.0]], "nothing of the clients' mean of the buffer, which has no noise"


def test_privacy_and_batchnorm_do_not_go_together(small: Small, in_programs: None) -> None:
    with pytest.raises(ConfigError, match="own:WithBatchNorm keeps running statistics of the clients"):
        small(model="own:WithBatchNorm", dp="fixed")


class SlowMean(FedAvg):
    """Flower's mean, by a method of its own, so that it is called with the mean of the clients in Flower's form."""

    averages_clients = True

    def aggregate_fit(self, *arguments: object) -> object:
        return super().aggregate_fit(*arguments)


@pytest.mark.parametrize("settings", [{}, {"model": "own:WithBatchNorm"}], ids=str)
@pytest.mark.usefixtures("in_programs")
def test_flowers_own_mean_is_the_same_to_the_bit_without_its_form(small: Small, settings: dict[str, object]) -> None:
    config = {"clients_per_round": 4, "dataset": "digits", "min_partition_size": 2, **settings}
    given = {"fraction_fit": 1e-6, "min_fit_clients": 4, "fraction_evaluate": 0.0}
    short = small(name="short", strategy="fedavg", **config)
    long = simulate(RunConfig(**{**short.config(), "name": "long"}), strategy=SlowMean(**given))  # type: ignore[arg-type]
    assert sha256(long.model_path) == sha256(short.model_path)


def test_seconds_before_the_round_belong_to_none_of_its_parts() -> None:
    results = PhaseResults(spans=[(0, 1.0, 4.0), (1, 3.5, 6.0), (1, 0.5, 2.0)])
    assert results.parts(3.0, 7.0) == {
        "broadcast_seconds": 0.0,
        "train_seconds": 1.75,
        "wait_seconds": 1.25,
        "return_seconds": 1.0,
    }
