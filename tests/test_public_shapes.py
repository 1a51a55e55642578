"""Shapes of public Flower apps and scripts: a Server of the app's own, a strategy that asks its clients, own loops."""

from __future__ import annotations

import ast
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp
from safetensors.numpy import load_file

from conftest import PROGRAMS, sha256
from sim import resume, run_app, run_simulation, start_simulation
from sim.errors import RunFolderError
from sim.run_folder.folder import Run

pytestmark = pytest.mark.usefixtures("no_pictures")

PHASES = ("query", "fit", "evaluate")
APP = PROGRAMS / "apps" / "server_class_app"


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run the app whose Server and strategy are classes of its own."""

    def run(ray_init_args: dict[str, Any] | None = None, **settings: Any) -> Run:
        given = {"num_clients": 6, "engine": "inline", "results_dir": str(tmp_path), **settings}
        return run_app(APP, ray_init_args=ray_init_args, **given)

    return run


def _content(run: Run) -> tuple[str, str, str]:
    clients = run.clients()[["round", "phase", "client_id", "num_examples", "loss", "status"]]
    return sha256(run.model_path), run.metrics().to_csv(), clients.to_csv()


def _lines(text: str, word: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(word)]


def test_a_server_class_gets_the_rounds_of_flower(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ``fit`` calls that of Flower; what it finds afterwards is what the run folder holds."""
    found = run()
    printed = capsys.readouterr()
    rounds, clients = found.rounds(), found.clients()
    assert rounds["round"].tolist() == [0, 1, 2, 3]
    assert rounds.num_clients.tolist()[1:] == [3, 3, 3]
    assert clients.groupby(["round", "phase"]).size().to_dict() == {
        (0, "query"): 1,  # the first weights are those of client 0
        **{
            (number, phase): 6 if phase == "evaluate" else 3
            for number in (1, 2, 3)
            for phase in ("query", "fit", "evaluate")
        },
    }
    value = 0.0
    for number in (1, 2, 3):
        asked = [line for line in _lines(printed.out, "round ") if line[1] == str(number)]
        of_round = clients[(clients["round"] == number) & (clients.phase == "fit")].client_id
        assert sorted(int(line[3]) for line in asked) == of_round.tolist()
        weights = np.array([1 + int(line[3]) for line in asked])
        value += float(weights @ [int(line[3]) + float(line[5]) for line in asked]) / float(weights.sum())
    np.testing.assert_allclose(load_file(found.model_path)["array_0"], [value, value], rtol=1e-12)
    np.testing.assert_allclose(ast.literal_eval(printed.out.split("last ")[1]), [value, value], rtol=1e-12)
    losses = ast.literal_eval(printed.out.split("losses ")[1].splitlines()[0])
    assert [number for number, _ in losses] == [1, 2, 3]
    np.testing.assert_allclose(losses[-1][1], 2 * value, rtol=1e-12)
    assert "note" not in printed.err


def test_a_server_class_is_resumed_to_the_bit(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(name="whole")
    drawn = _lines(capsys.readouterr().out, "round 3")
    part = run(name="part", num_rounds=2)
    capsys.readouterr()
    assert _content(resume(part, num_rounds=3)) == _content(whole)
    assert _lines(capsys.readouterr().out, "round 3") == drawn


@pytest.mark.ray
def test_a_server_class_has_the_same_bits_on_ray(run: Any) -> None:
    assert _content(run({"num_cpus": 1}, engine="ray", name="ray")) == _content(run(name="inline"))


def test_a_server_with_rounds_of_its_own_runs_without_resume(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(run_config={"own-rounds": True})
    printed = capsys.readouterr()
    assert _lines(printed.out, "own round") == [["own", "round", number] for number in "123"]
    assert "this run cannot be resumed, because the ServerApp has the server OwnRounds" in printed.err
    assert found.rounds().num_clients.tolist()[1:] == [3, 3, 3]
    assert not found.model_path.exists()


def _apps(phase: str) -> tuple[ClientApp, ServerApp]:
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    @client_app.query()
    def answer(message: Message, context: Any) -> Message:
        return Message(RecordDict({"about": MetricRecord({"size": 3})}), reply_to=message)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        messages = [Message(RecordDict({"a": ArrayRecord()}), node, phase) for node in grid.get_node_ids()]
        if phase == "query":
            list(grid.send_and_receive(messages))
        else:
            grid.push_messages(messages)

    return client_app, server_app


@pytest.mark.parametrize(("phase", "number"), [("query", 0), ("train", 1)])
def test_what_a_main_sends_is_executed_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], phase: str, number: int
) -> None:
    """Also if it only asks, and if it waits for no reply, as the last message of a vertical app does."""
    client_app, server_app = _apps(phase)
    found = run_simulation(server_app, client_app, 3, results_dir=str(tmp_path), engine="inline")
    clients = found.clients()
    assert clients.client_id.tolist() == [0, 1, 2]
    assert clients["round"].tolist() == [number] * 3
    assert "without a message" not in capsys.readouterr().err


def test_replies_come_in_the_order_of_the_clients_whatever_was_asked(tmp_path: Path) -> None:
    """An app that asks with a set would get the order of this process."""
    client_app, _ = _apps("query")
    pulled = []

    def main(grid: Any, context: Any) -> None:
        nodes = [*reversed(list(grid.get_node_ids())), *grid.get_node_ids()]
        ids = grid.push_messages([Message(RecordDict({"a": ArrayRecord()}), node, "query") for node in nodes])
        replies = grid.pull_messages(sorted(ids, reverse=True))
        pulled.extend((reply.metadata.src_node_id, reply.metadata.reply_to_message_id) for reply in replies)

    server_app = ServerApp()
    server_app.main()(main)
    run_simulation(server_app, client_app, 3, results_dir=str(tmp_path), engine="inline")
    assert pulled == [(2, "3"), (2, "4"), (3, "2"), (3, "5"), (4, "1"), (4, "6")]


def test_a_client_manager_of_the_users_own_chooses(tmp_path: Path) -> None:
    class LastClients(SimpleClientManager):
        def sample(self, num_clients: int, *arguments: Any, **named: Any) -> list[Any]:
            return sorted(self.clients.values(), key=lambda client: int(client.cid))[-num_clients:]

    class Adds(NumPyClient):
        def get_parameters(self, config: Any) -> Any:
            return [np.zeros(1)]

        def fit(self, parameters: Any, config: Any) -> Any:
            return [parameters[0] + 1], 1, {}

    start_simulation(
        client_fn=lambda context: Adds().to_client(),
        num_clients=7,
        config=ServerConfig(num_rounds=1),
        strategy=FedAvg(fraction_fit=0.3, fraction_evaluate=0),
        client_manager=LastClients(),
        results_dir=str(tmp_path),
        engine="inline",
        name="r",
    )
    run = Run(tmp_path / "r")
    assert run.clients().client_id.tolist() == [5, 6]
    given: dict[str, Any] = {"client_fn": lambda context: Adds().to_client(), "num_rounds": 2}
    given["strategy"] = FedAvg(fraction_fit=0.3, fraction_evaluate=0)
    with pytest.raises(RunFolderError, match=r"does not fit: client_manager was \S+LastClients, is None"):
        resume(run, **given)
    resume(run, client_manager=LastClients(), **given)
    assert run.clients().client_id.tolist() == [5, 6, 5, 6]


def test_a_client_manager_of_the_users_own_chooses_who_gives_the_first_weights(tmp_path: Path) -> None:
    """As in ``flwr.server.Server``, so that one that takes turns goes on with the client after it."""

    class Turns(SimpleClientManager):
        turn = 0

        def sample(self, num_clients: int, *arguments: Any, **named: Any) -> list[Any]:
            self.turn += num_clients
            return [self.clients[str(self.turn - number)] for number in range(num_clients)]

    class Adds(NumPyClient):
        def __init__(self, number: int) -> None:
            self.number = number

        def get_parameters(self, config: Any) -> Any:
            return [np.full(1, 100.0 * self.number)]

        def fit(self, parameters: Any, config: Any) -> Any:
            return [parameters[0] + self.number], 1, {}

    def server_fn(context: Any) -> ServerAppComponents:
        used = FedAvg(fraction_fit=0.2, min_fit_clients=1, min_available_clients=1, fraction_evaluate=0)
        return ServerAppComponents(strategy=used, config=ServerConfig(num_rounds=2), client_manager=Turns())

    client_app = ClientApp(client_fn=lambda context: Adds(context.node_config["partition-id"]).to_client())
    found = run_simulation(ServerApp(server_fn=server_fn), client_app, 5, results_dir=str(tmp_path), engine="inline")
    assert found.clients()[["round", "phase", "client_id"]].values.tolist() == [
        [0, "query", 1],
        [1, "fit", 2],
        [2, "fit", 3],
    ]
    assert load_file(found.model_path)["array_0"].tolist() == [105.0]


def test_an_app_of_an_older_flower_runs_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it needs at most is not known: most such apps name the newest version of their day."""
    shutil.copytree(APP, tmp_path / "old")
    path = tmp_path / "old" / "pyproject.toml"
    path.write_text(path.read_text().replace("dependencies = []", 'dependencies = ["flwr[simulation]==1.17.0"]'))
    found = run_app(tmp_path / "old", num_clients=2, num_rounds=1, engine="inline", results_dir=str(tmp_path))
    assert found.rounds()["round"].tolist() == [0, 1]
    assert "note: the app asks for flwr==1.17.0; installed is" in capsys.readouterr().err


def test_clients_that_return_fewer_arrays_than_the_first_weights_have(tmp_path: Path) -> None:
    """As in FedRep: the server begins with the whole model, the clients keep their heads to themselves."""

    class Body(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return [parameters[0] + 1], 1, {}

    first = ndarrays_to_parameters([np.zeros(2), np.full(3, 7.0)])
    used = FedAvg(initial_parameters=first, fraction_evaluate=0)
    server_app = ServerApp(
        server_fn=lambda context: ServerAppComponents(strategy=used, config=ServerConfig(num_rounds=2))
    )
    client_app = ClientApp(client_fn=lambda context: Body().to_client())
    found = run_simulation(server_app, client_app, 2, results_dir=str(tmp_path), engine="inline")
    assert {name: array.tolist() for name, array in load_file(found.model_path).items()} == {"array_0": [2.0, 2.0]}


def test_a_strategy_that_comes_to_hold_what_no_checkpoint_keeps_runs_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keeps(FedAvg):
        best: Any = None

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            self.best = {"lock": threading.Lock(), "path": Path("best.pt")} if server_round == 2 else None
            self.seen = object() if server_round == 2 else None
            return super().aggregate_fit(server_round, results, failures)

    class Adds(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return [parameters[0] + 1], 1, {}

    used = Keeps(initial_parameters=ndarrays_to_parameters([np.zeros(1)]), fraction_evaluate=0)
    server_app = ServerApp(
        server_fn=lambda context: ServerAppComponents(strategy=used, config=ServerConfig(num_rounds=3))
    )
    client_app = ClientApp(client_fn=lambda context: Adds().to_client())
    found = run_simulation(server_app, client_app, 2, results_dir=str(tmp_path), engine="inline")
    assert load_file(found.model_path)["array_0"].tolist() == [3.0]
    note = "the strategy now holds best.lock (lock), seen (object), which no checkpoint can keep"
    assert f"note: this run cannot be resumed after round 1, because {note}\n" in capsys.readouterr().err
