"""What Flower programs compute beside averages of floats: integers, nothing at all, rounds without clients."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flwr.server.strategy
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context, Message, ndarrays_to_parameters
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg, FedMedian
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg as MessageFedAvg
from flwr.serverapp.strategy import Result

from conftest import Sim
from sim import PluginError, Run, run_simulation, start_simulation
from sim.seeds import Purpose, seeded

pytestmark = pytest.mark.usefixtures("no_pictures")


class Steps(NumPyClient):
    """Client k adds ``step``, counts k + 1 examples in training and k in an evaluation, whose accuracy is k / 10."""

    def __init__(self, number: int, step: float) -> None:
        self.number, self.step = number, step

    def get_parameters(self, config: Any) -> Any:
        return [np.array([0, 0])]

    def fit(self, parameters: Any, config: Any) -> Any:
        if self.number == 1 and config.get("fails"):
            raise ValueError("no")
        return [array + self.step for array in parameters], self.number + 1, {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        value = float(sum(array.sum() for array in parameters))
        return value, self.number, {"accuracy": self.number / 10}


def started(folder: Path, strategy: Any, num_rounds: int = 2, step: float = 0.25, **settings: Any) -> Any:
    def client_fn(context: Context) -> Any:
        return Steps(int(context.node_config["partition-id"]), step).to_client()

    return start_simulation(
        client_fn=client_fn,
        num_clients=3,
        config=ServerConfig(num_rounds=num_rounds),
        strategy=strategy,
        results_dir=str(folder),
        name="run",
        **{"engine": "inline", **settings},
    )


class Plain(FedAvg):
    """Gets every client's weights, because it might be anything."""


@pytest.mark.parametrize("strategy", [FedAvg, Plain, FedMedian])
@pytest.mark.parametrize("of_strategy", [True, False])
def test_fractions_of_what_began_as_integers_are_kept(tmp_path: Path, strategy: Any, of_strategy: bool) -> None:
    first = {"initial_parameters": ndarrays_to_parameters([np.array([0, 0])])} if of_strategy else {}
    history = started(tmp_path, strategy(**first), num_rounds=3)
    assert history.losses_distributed == [(1, 0.5), (2, 1.0), (3, 1.5)]


class Skipping(FedAvg):
    """Makes no weights in round 1, and chooses no clients in round 2."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        made = super().aggregate_fit(server_round, results, failures)
        return (None, {}) if server_round == 1 else made

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return [] if server_round == 2 else super().configure_fit(server_round, parameters, client_manager)


def test_rounds_that_a_strategy_leaves_out_keep_the_weights(tmp_path: Path) -> None:
    history = started(tmp_path, Skipping(), num_rounds=4, seed=1)
    assert history.losses_distributed == [(1, 0.0), (2, 0.0), (3, 0.5), (4, 1.0)]
    run = Run(tmp_path / "run")
    assert run.rounds().num_clients.tolist()[1:] == [3, 0, 3, 3]
    notes = [line for line in run.log_path.read_text().splitlines() if "stay as they were" in line]
    expected = "note: round 1: the strategy returned no weights, so that the weights stay as they were"
    assert [note.partition("sim: ")[2] for note in notes] == [expected]  # once


class SkippingMessages(MessageFedAvg):
    """The same of the newer form."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        made = super().aggregate_train(server_round, replies)
        return (None, None) if server_round == 1 else made

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Any:
        return [] if server_round == 2 else super().configure_train(server_round, arrays, config, grid)


def test_rounds_that_a_strategy_of_messages_leaves_out_keep_the_weights(tmp_path: Path) -> None:
    history = started(tmp_path, SkippingMessages(), num_rounds=4, seed=1)
    assert [loss for _, loss in history.losses_distributed] == [0.0, 0.0, 0.5, 1.0]


def test_a_strategy_that_accepts_no_failures_leaves_their_round_out(tmp_path: Path) -> None:
    def settings(server_round: int) -> Any:
        return {"fails": server_round == 1}

    strategy = FedAvg(accept_failures=False, on_fit_config_fn=settings)
    history = started(tmp_path, strategy, on_client_error="drop")
    assert history.losses_distributed == [(1, 0.0), (2, 0.5)]
    note = "note: round 1: the strategy returned no weights (1 of its clients failed), so that the weights stay"
    assert note in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_strategy_gets_evaluations_that_count_no_examples(tmp_path: Path, engine: str) -> None:
    class Unweighted(FedAvg):
        def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
            found = [each.metrics["accuracy"] for _, each in results]
            return 1.5, {"count": len(found), "mean": sum(found) / len(found)}

    history = started(tmp_path, Unweighted(), num_rounds=1, engine=engine)
    assert history.metrics_distributed == {"count": [(1, 3)], "mean": [(1, pytest.approx(0.1))]}
    clients = Run(tmp_path / "run").clients()
    evaluated = clients[clients.phase == "evaluate"]
    assert evaluated.num_examples.tolist() == [0, 1, 2]
    assert evaluated.accuracy.tolist() == [0.0, 0.1, 0.2]


class AveragingReplies(MessageFedAvg):
    """Gets every reply, because its ``aggregate_train`` might do anything."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("strategy", [MessageFedAvg, AveragingReplies])
def test_a_weight_is_no_number_of_examples(tmp_path: Path, strategy: Any) -> None:
    """Flower's mean of the arrays is by weight, whoever makes it; means of what clients measured are by examples."""
    client_app, server_app, results = ClientApp(), ServerApp(), []

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        metrics = {"loss": 1.0 + number**2, "w": 0.5 + number}
        if "counts" in message.content["config"]:
            metrics["num-examples"] = 40 + 4 * number
        arrays = ArrayRecord([np.full(2, float(number))])
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        config = ConfigRecord({"counts": 1})
        used = strategy(fraction_evaluate=0.0, weighted_by_key="w")
        results.append(used.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=1, train_config=config))
        config.pop("counts")
        used.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=1, train_config=config)

    run = run_simulation(server_app, client_app, 3, results_dir=str(tmp_path), engine="inline")
    assert results[0].arrays.to_numpy_ndarrays()[0] == pytest.approx((1.5 * 1 + 2.5 * 2) / 4.5)
    assert run.clients().num_examples.tolist() == [40, 44, 48, 0, 0, 0]
    losses = run.rounds().train_loss.dropna().tolist()
    assert losses == [pytest.approx((40 * 1 + 44 * 2 + 48 * 5) / 132)]


def app(main: Callable[[Grid], Any], arrays_of: Callable[[list[Any], int], list[Any]]) -> tuple[ServerApp, ClientApp]:
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        arrays = ArrayRecord(arrays_of(message.content["arrays"].to_numpy_ndarrays(), number))
        metrics = MetricRecord({"num-examples": 5 + number, "value": float(number)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @client_app.query()
    def query(message: Message, context: Context) -> Message:
        answer = MetricRecord({"answer": 7 + int(context.node_config["partition-id"])})
        return Message(RecordDict({"metrics": answer}), reply_to=message)

    @server_app.main()
    def begin(grid: Grid, context: Context) -> None:
        main(grid)

    return server_app, client_app


def test_the_mean_of_integers_in_messages_is_that_of_flower(tmp_path: Path) -> None:
    results: list[Result] = []

    def main(grid: Grid) -> None:
        first = ArrayRecord([np.arange(2), np.array([True, False])])
        results.append(MessageFedAvg(fraction_evaluate=0.0).start(grid=grid, initial_arrays=first, num_rounds=1))

    both = app(main, lambda arrays, number: [arrays[0] + number, arrays[1]])
    run_simulation(*both, 3, results_dir=str(tmp_path), engine="inline")
    counts, flags = results[0].arrays.to_numpy_ndarrays()
    mean = (5 * 0 + 6 * 1 + 7 * 2) / 18
    assert counts == pytest.approx([mean, 1 + mean])
    assert flags.tolist() == [1.0, 0.0]


def test_an_analysis_without_arrays(tmp_path: Path) -> None:
    results: list[Result] = []

    def main(grid: Grid) -> None:
        strategy = MessageFedAvg(fraction_evaluate=0.0)
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord([]), num_rounds=2))

    run_simulation(*app(main, lambda arrays, number: []), 3, results_dir=str(tmp_path), engine="inline")
    assert dict(results[0].train_metrics_clientapp[2])["value"] == pytest.approx((6 * 1 + 7 * 2) / 18)


def test_clients_of_the_older_form_without_arrays(tmp_path: Path) -> None:
    strategy = FedAvg(initial_parameters=ndarrays_to_parameters([]), fit_metrics_aggregation_fn=len_of)
    history = started(tmp_path, strategy)
    assert history.metrics_distributed_fit == {"count": [(1, 3), (2, 3)]}


def len_of(metrics: list[Any]) -> Any:
    return {"count": len(metrics)}


def test_what_a_strategy_asks_belongs_to_its_round(tmp_path: Path) -> None:
    class Asking(MessageFedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Any:
            content = RecordDict({"config": ConfigRecord({"round": server_round})})
            asked = [Message(content, dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
            list(grid.send_and_receive(asked))
            return super().configure_train(server_round, arrays, config, grid)

    def main(grid: Grid) -> None:
        Asking(fraction_evaluate=0.0).start(grid=grid, initial_arrays=ArrayRecord([np.zeros(2)]), num_rounds=2)

    run = run_simulation(*app(main, lambda arrays, number: arrays), 2, results_dir=str(tmp_path), engine="inline")
    rows = run.metrics()
    asked = rows[rows["name"] == "answer"]
    # No row for all clients: they did not say of how many examples their answer is.
    assert asked[["round", "client_id", "value"]].values.tolist() == [[1, 0, 7], [1, 1, 8], [2, 0, 7], [2, 1, 8]]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["multikrum", "qfedavg"])
def test_strategies_of_messages_are_timed(command: Sim, strategy: str) -> None:
    done = command("size", "--strategy", strategy, "--num-clients", "12", "--engine", "inline")
    assert done.returncode == 0, done.stderr
    assert "cannot be timed" not in done.stderr


@pytest.mark.parametrize("strategy", ["FedXgbBagging", "FedXgbCyclic", "FedXgbNnAvg"])
def test_trees_of_the_older_form_are_refused(tmp_path: Path, strategy: str) -> None:
    made = getattr(flwr.server.strategy, strategy)()
    with pytest.raises(
        PluginError, match=f"--strategy {strategy}: its trees .* are no arrays; flwr.serverapp.strategy"
    ):
        started(tmp_path, made)
    assert not list(tmp_path.iterdir())


class SendingTwice(MessageFedAvg):
    """Sends two messages to each client, and has the replies in the order of the clients."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Any:
        return [
            Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"number": number})}), node, "train")
            for number in range(2)
            for node in reversed(list(grid.get_node_ids()))
        ]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        answered = [(each.metadata.src_node_id, each.content["metrics"]["number"]) for each in replies]
        assert answered == [(2, 0), (2, 1), (3, 0), (3, 1)]
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.parametrize("by_strategy", [True, False])
def test_messages_to_one_client_come_one_after_another(tmp_path: Path, by_strategy: bool, engine: str) -> None:
    """Each finds the state that the one before has left, and has random numbers of its own."""
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    @client_app.query()
    def count(message: Message, context: Context) -> Message:
        state = context.state.setdefault("own", ConfigRecord({"count": 0}))
        state["count"] += 1
        told = {"number": message.content["config"]["number"], "count": state["count"], "drawn": random.random()}
        content = {"arrays": ArrayRecord([np.zeros(2)]), "metrics": MetricRecord({**told, "num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        if by_strategy:
            SendingTwice(fraction_evaluate=0.0).start(grid, ArrayRecord([np.zeros(2)]), num_rounds=2)
            return
        for kind, nodes in (("train", (3, 2, 3, 2)), ("query", (2, 3, 2))):
            numbered = [(ConfigRecord({"number": nodes[:n].count(node)}), node) for n, node in enumerate(nodes)]
            messages = [Message(RecordDict({"config": number}), node, kind) for number, node in numbered]
            replies = list(grid.send_and_receive(messages))
            answered = [(each.metadata.src_node_id, each.content["metrics"]["number"]) for each in replies]
            assert answered == sorted((node, number["number"]) for number, node in numbered)

    run = run_simulation(server_app, client_app, 2, results_dir=str(tmp_path), engine=engine, seed=3)
    rows = run.metrics().dropna(subset="client_id").sort_values("client_id", kind="stable")
    counts = rows[rows["name"] == "count"].groupby("client_id").value.apply(list)
    assert counts.tolist() == ([[1, 2, 3, 4]] * 2 if by_strategy else [[1, 2, 3, 4], [1, 2, 3]])
    drawn = rows[rows["name"] == "drawn"].value
    assert drawn.nunique() == len(drawn) == sum(map(len, counts))
    stream = (Purpose.FIT, 1) if by_strategy else (Purpose.QUERY, 2**20)  # as where a client gets one message
    with seeded(3, *stream):
        assert drawn.iloc[0] == random.random()
