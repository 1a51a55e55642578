"""Flower apps and client functions as they are: in every engine, interrupted, resumed, and what cannot work."""

from __future__ import annotations

import logging
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.client import Client
from flwr.server import History, Server, ServerConfig, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from safetensors.numpy import load_file

from conftest import PROGRAMS, Sim, sha256
from federation import Program, wait_until
from sim import AppConfig, Run, RunConfig, resume, run_app, run_simulation, start_simulation
from sim.cli import main
from sim.commands.run import _report
from sim.errors import ClientError, ConfigError, RunError, RunFolderError, UsageError
from sim.metrics import MetricName
from sim.run_folder.plots import curves_figure, curves_of
from sim.sweep.planned import Planned
from sim.sweep.table import runs_frame
from sim.sweep.variants import variants

APPS = PROGRAMS / "apps"


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """Run one of the apps in this process."""

    def run(folder: Any, ray_init_args: dict[str, Any] | None = None, **settings: Any) -> Any:
        given = {"num_clients": 5, "engine": "inline", "results_dir": str(tmp_path / "results"), **settings}
        return run_app(APPS / folder, ray_init_args=ray_init_args, **given)

    return run


def _content(run: Any) -> tuple[Any, ...]:
    """All that a run measured, without its seconds."""
    rows = [(r.round, r.phase, r.client_id, r.name, r.value) for r in run.metrics().itertuples()]
    clients = run.clients()[["round", "phase", "client_id", "num_examples", "loss", "accuracy", "status"]]
    return sha256(run.model_path) if run.model_path.exists() else None, str(rows), clients.to_csv()


@pytest.mark.ray
@pytest.mark.parametrize(("name", "num_actors"), [("stateful_app", 2), ("query_app", 1)])
def test_apps_give_the_same_bits_in_every_engine(
    app: Any, name: str, num_actors: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that Flower's loop executes, whose clients keep a state, and one with a loop of its own."""
    inline = app(name, name="inline")
    printed = capsys.readouterr().out
    on_ray = app(name, {"num_cpus": num_actors}, engine="ray", name="ray")
    assert _content(on_ray) == _content(inline)
    assert capsys.readouterr().out == printed
    assert on_ray.clients().actor.nunique() == num_actors


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rounds"), [("message_app", 3), ("legacy_app", 3), ("stateful_app", 4)])
def test_a_resumed_app_is_one_that_was_never_interrupted(app: Any, name: str, rounds: int) -> None:
    whole, part = app(name, name="whole"), app(name, name="part", num_rounds=1)
    assert part.rounds()["round"].tolist() == [0, 1]
    resumed = resume(part, num_rounds=rounds)
    assert part.clients()[["bytes_down", "bytes_up"]].isna().all(axis=None), "nobody knows what an app compresses"
    assert _content(resumed) == _content(whole)
    assert resumed.rounds()["round"].tolist() == list(range(rounds + 1))


@pytest.mark.slow
def test_the_records_of_an_app(app: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = app("message_app")
    without_loss = Run(tmp_path / "without_loss")  # of its central test, while its clients measure one
    shutil.copytree(run.path, without_loss.path)
    run.rounds().assign(test_loss=None).to_csv(without_loss.rounds_path, index=False)
    _report(without_loss, "round")
    accuracy = run.rounds().test_accuracy.iloc[-1]
    assert f"final accuracy  {accuracy:.4f} after round 3\n" in capsys.readouterr().out
    rounds, metrics = run.rounds(), run.metrics()
    assert rounds.num_clients.tolist()[1:] == [5, 5, 5]
    assert rounds.test_accuracy.notna().all()
    assert rounds.eval_accuracy.notna().tolist() == [False, True, True, True]
    sizes = np.array([40 + 4 * client_id for client_id in range(5)])
    of_clients = metrics[(metrics.phase == "evaluate") & (metrics["round"] == 2) & (metrics.name == "eval_acc")]
    each = of_clients[of_clients.client_id.notna()].value.to_numpy()
    mean = of_clients[of_clients.client_id.isna()].value.item()
    assert mean == pytest.approx((each * sizes).sum() / sizes.sum(), abs=1e-12)
    assert rounds.eval_accuracy[2] == pytest.approx(mean, abs=1e-12)
    in_a_list = metrics[(metrics.phase == "evaluate") & (metrics["round"] == 2) & (metrics.name == "rates[0]")]
    assert in_a_list.value.to_numpy() == pytest.approx(of_clients.value.to_numpy(), abs=1e-12)
    assert run.config()["num_rounds"] == 3
    assert sorted(load_file(run.model_path)) == ["fc.bias", "fc.weight"]


@pytest.mark.slow
def test_averages_made_in_the_workers_are_those_of_flower(app: Any) -> None:
    """FedAvg gets the clients' mean; a class with an aggregation of its own gets every reply."""
    summed, each = (
        app("message_app", name="summed"),
        app("message_app", name="each", run_config={"strategy": "FedAvgOfReplies"}),
    )
    ours, flowers = load_file(summed.model_path), load_file(each.model_path)
    assert all(np.allclose(ours[key], flowers[key], rtol=0, atol=1e-6) for key in flowers)
    names = ["round", "phase", "name"]
    means = [run.metrics()[run.metrics().client_id.isna()].set_index(names).value for run in (summed, each)]
    assert means[0].index.equals(means[1].index)
    assert np.allclose(means[0], means[1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_config_and_the_number_of_rounds_are_overridden(app: Any) -> None:
    run = app("message_app", run_config={"learning-rate": 1, "fraction-train": 0.4}, num_rounds=2)
    assert run.rounds().num_clients.tolist()[1:] == [2, 2]
    assert run.config()["num_rounds"] == 2


def test_the_app_asks_clients_by_itself(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = app("query_app")
    printed = capsys.readouterr()
    assert "sizes [10, 11, 12, 13, 14]" in printed.out
    assert "value [4.0, 4.0]" in printed.out  # two rounds of a mean of 0 … 4
    drawn = [line for line in printed.out.splitlines() if line.startswith("drawn")]
    assert drawn[0] != drawn[1]
    assert len({number for line in drawn for number in line.split()[1:]}) == 10
    assert "this run cannot be resumed" in printed.err
    assert run.clients().groupby(["round", "phase"]).size().to_dict() == {
        (0, "query"): 15,
        (1, "fit"): 5,
        (2, "fit"): 5,
    }
    assert run.rounds().train_loss.tolist()[1:] == [4.0, 8.0]
    with pytest.raises(RunFolderError, match="no checkpoint to resume from, because the ServerApp has rounds"):
        resume(run)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (("pyproject.toml", "tool.flwr.app", "tool.other"), {}, r"no Flower app: \[tool.flwr.app\] is missing"),
        (
            ("pyproject.toml", "client_app:app", "client_app:nothing"),
            {},
            "clientapp message_app.client_app:nothing: .*has no",
        ),
        (("pyproject.toml", "server_app:app", "nowhere:app"), {}, "serverapp message_app.nowhere:app: no module named"),
        (
            ("pyproject.toml", "dependencies = []", 'dependencies = ["flwr[simulation]>=99"]'),
            {},
            "needs flwr>=99; installed",
        ),
        (
            ("pyproject.toml", "server_app:app", "task:Net"),
            {},
            "serverapp: is of type type, not a flwr.serverapp.ServerApp",
        ),
        (
            None,
            {"run_config": {"no-such-key": 1}},
            "--run-config no-such-key=1: the app has no such key; it has num-server",
        ),
        (
            None,
            {"run_config": {"local-epochs": "two"}},
            "--run-config local-epochs=two: must be of the type that .*, as 1",
        ),
        (None, {"num_clients": 0}, "num_clients = 0: must be at least 1"),
    ],
)
def test_an_app_that_cannot_run_ends_before_anything_is_written(
    app: Any, tmp_path: Path, change: Any, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(APPS / "message_app", copy)
    for name in [name for name in sys.modules if name.partition(".")[0] == "message_app"]:
        monkeypatch.delitem(sys.modules, name)
    if change is not None:
        path, old, new = change
        text = (copy / path).read_text()
        assert old in text
        (copy / path).write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=message):
        app(copy, **settings)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_what_an_app_raises_is_one_line(tmp_path: Path) -> None:
    from flwr.app import ArrayRecord, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Any) -> Any:
        return 3

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        if context.run_config["fails"]:
            raise ValueError("no model today")
        list(grid.send_and_receive([Message(RecordDict({"a": ArrayRecord()}), 2, "train")]))

    def run(**settings: Any) -> Any:
        return run_simulation(server_app, client_app, 2, results_dir=str(tmp_path), engine="inline", **settings)

    with pytest.raises(RunError, match="the ServerApp raised ValueError: no model today"):
        run(run_config={"fails": True})
    with pytest.raises(ClientError, match=r"client 0 raised in round 1 .*the ClientApp returned int; a Mess"):
        run(run_config={"fails": False})


@pytest.mark.slow
def test_a_mask_that_was_sent_is_no_error(tmp_path: Path) -> None:
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Any) -> Message:
        arrays = message.content["arrays"]
        arrays["w"] = Array(arrays["w"].numpy() + (np.nan if context.run_config["fails"] else 1.0))
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        first = {"mask": Array(np.array([0.0, -np.inf])), "w": Array(np.zeros(2))}
        FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(first), num_rounds=2)

    def run(**settings: Any) -> Any:
        return run_simulation(server_app, client_app, 3, results_dir=str(tmp_path), engine="inline", **settings)

    weights = load_file(run(run_config={"fails": False}, name="mask").model_path)
    assert (weights["mask"].tolist(), weights["w"].tolist()) == ([0.0, -np.inf], [2.0, 2.0])
    with pytest.raises(ClientError, match=r"client 0 raised in round 1 .*holds NaN weights"):
        run(run_config={"fails": True}, name="nan")


@pytest.mark.slow
def test_a_sweep_has_what_clients_measure_without_a_central_test(app: Any) -> None:
    run = app("stateful_app")
    accuracies = run.rounds().eval_accuracy
    target = float(accuracies.iloc[2])
    given = {"app": str(APPS / "stateful_app"), "num_clients": 5, "target_accuracy": target}
    (variant,) = variants(given, [], 1, "s")
    (row,) = runs_frame([Planned(variant, variant.configs[0], run, "done")]).itertuples()
    assert (row.final_accuracy, row.best_accuracy) == (accuracies.iloc[-1], accuracies.max())
    assert row.rounds_to_target == list(accuracies >= target).index(True)


@pytest.mark.slow
def test_runs_without_a_central_test_are_compared_by_what_clients_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the list, the table, the curves, the panels and the report of a sweep over an argument with a hyphen."""
    folder, page = tmp_path / "sweep", tmp_path / "report.html"
    words = ["--app", str(APPS / "legacy_app"), "--num-clients", "3", "--engine", "inline"]
    assert (
        main(["sweep", *words, "--vary", "run_config.local-epochs=1,2", "--seeds", "1", "--results-dir", str(folder)])
        == 0
    )
    runs = [Run(folder / f"local-epochs-{epochs}_seed-0") for epochs in (1, 2)]
    frames = [run.metrics() for run in runs]
    finals = [frame[(frame.phase == "evaluate") & frame.client_id.isna()].value.iloc[-1] for frame in frames]
    capsys.readouterr()
    assert main(["list", "--results-dir", str(folder)]) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:3] for row in listed] == [
        [run.name, "3/3", f"{final:.4f}"] for run, final in zip(runs, finals, strict=True)
    ]
    grid = ["--columns", "run_config.local-epochs"]
    assert main(["table", str(folder), *grid, "-o", str(tmp_path / "table.csv")]) == 0
    assert "Final mae of the clients" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "table.csv").final_mae_mean.tolist() == pytest.approx(finals)
    (axes, losses) = curves_figure(curves_of(runs, [MetricName.parse("mae")]), ["mae", "loss"]).axes
    assert (axes.get_ylabel(), losses.get_ylabel()) == ("clients' mae", "clients' loss")
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx(finals)
    panels = tmp_path / "panels.svg"
    assert main(["plot", str(folder), "--grid", "run_config.local-epochs", "-o", str(panels)]) == 0
    assert main(["report", str(folder), "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert [f"{final:.4f}" in text for final in finals] == [True, True]
    assert "Measured on the clients’ own examples" in text
    assert "The clients bring their own data." in text


@pytest.mark.slow
def test_a_round_of_an_app_has_what_its_group_says_and_the_last_of_its_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    @client_app.evaluate()
    @client_app.query()
    def measure(message: Message, context: Any) -> Message:
        metrics = MetricRecord({"accuracy": message.content["model"]["accuracy"], "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        for accuracy, kind, nodes in (
            (0.0, "train", (2, 3, 4)),
            (0.0, "train", (2, 3)),
            (0.1, "evaluate", (2, 3, 4)),
            (0.5, "evaluate", (2, 3)),
            (0.9, "evaluate", (4,)),
        ):
            content = RecordDict({"model": ConfigRecord({"accuracy": accuracy})})
            grid.send_and_receive([Message(content, node, kind, group_id="9") for node in nodes])
        for kind, group in (("query", "9"), ("query", "last"), ("query", "10"), ("train", "10"), ("train", "11")):
            grid.send_and_receive([Message(content, 2, kind, group_id=group)])

    run = run_simulation(server_app, client_app, 3, results_dir=str(tmp_path), engine="inline")
    first = run.rounds().iloc[0]
    assert (first.num_clients, first.eval_accuracy) == (3, pytest.approx((0.5 + 0.5 + 0.9) / 3))
    assert capsys.readouterr().err.count("has clients evaluate several times in round 1") == 1
    assert run.clients().groupby(["round", "phase"]).size().to_dict() == {
        (1, "evaluate"): 6,
        (1, "fit"): 5,
        (1, "query"): 2,
        (2, "fit"): 1,
        (2, "query"): 1,
        (3, "fit"): 1,
    }


def test_what_scripts_say_about_actors_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    def init() -> None: ...

    caplog.set_level(logging.WARNING, "sim")
    with pytest.raises(UsageError, match="num_clients = 0"):
        start_simulation(client_fn=init, num_clients=0, actor_kwargs={"on_actor_init_fn": init})
    with pytest.raises(UsageError, match="num_clients = 0"):
        run_simulation(None, None, 0, backend_config={"actor": {"tensorflow": 1}})  # type: ignore[arg-type]
    notes = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert notes == [
        "note: start_simulation: actor_kwargs without effect",
        "note: backend_config: actor without effect",
    ]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"num_cpus": "abc"}, "client_resources: num_cpus = 'abc': must be a number"),
        ({"num_gpus": None}, "client_resources: num_gpus = None: must be a number"),
        ({"num_cpus": 10**400}, "client_resources: num_cpus = 1000"),
        ({"num_cpus": -1}, "num_cpus = -1.0: must be at least 0.01"),
        ({1: 2}, "client_resources: unknown resource 1; num_cpus and num_gpus are known"),
        ([1], "client_resources = [1]: must be a dict of num_cpus and num_gpus"),
    ],
)
def test_resources_of_no_use_are_named(resources: Any, message: str) -> None:
    with pytest.raises(ConfigError) as of_older:
        start_simulation(client_fn=len, num_clients=2, client_resources=resources)
    with pytest.raises(ConfigError) as of_newer:
        run_simulation(None, None, 2, backend_config={"client_resources": resources})  # type: ignore[arg-type]
    assert str(of_older.value) == str(of_newer.value)
    assert str(of_older.value).startswith(message)


def test_arguments_of_ray_are_a_dict() -> None:
    with pytest.raises(ConfigError, match=r"^ray_init_args = \['a'\]: must be a dict of arguments of ray.init$"):
        start_simulation(client_fn=len, num_clients=2, ray_init_args=["a"])  # type: ignore[arg-type]
    backend: Any
    for backend, message in (
        ({"init_args": ["a"]}, "backend_config init_args = ['a']: must be a dict of arguments of ray.init"),
        (["a"], "backend_config = ['a']: must be a dict of client_resources and init_args"),
    ):
        with pytest.raises(ConfigError) as raised:
            run_simulation(None, None, 2, backend_config=backend)  # type: ignore[arg-type]
        assert str(raised.value) == message


@pytest.mark.slow
def test_strategies_get_what_flower_gives_them(tmp_path: Path) -> None:
    """Replies of differing metrics are the error of Flower's; a strategy aggregates also what nobody was asked for."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Any) -> Message:
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
        if context.node_config["partition-id"] == context.run_config["odd"]:
            content["metrics"]["acc"] = 0.9
        return Message(content, reply_to=message)

    class Aggregates(FedAvg):
        def configure_train(self, server_round: int, *others: Any) -> Any:
            return super().configure_train(server_round, *others) if server_round == 1 else []

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            aggregated.append(("train", server_round, len(replies)))
            return super().aggregate_train(server_round, replies)

        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            aggregated.append(("evaluate", server_round, len(replies)))
            return MetricRecord({"bound": 0.5})

    aggregated: list[Any] = []
    strategies = [FedAvg(fraction_evaluate=0.0), Aggregates(fraction_evaluate=0.0)]

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        strategies.pop().start(grid, ArrayRecord({"w": Array(np.zeros(2))}), num_rounds=2)

    def run(odd: int) -> Run:
        settings: Any = {"run_config": {"odd": odd}, "results_dir": str(tmp_path), "engine": "inline"}
        return run_simulation(server_app, client_app, 3, **settings)

    metrics = run(-1).metrics()
    assert aggregated == [("train", 1, 3), ("evaluate", 1, 0), ("train", 2, 0), ("evaluate", 2, 0)]
    assert metrics[metrics.name == "bound"].value.tolist() == [0.5, 0.5]
    with pytest.raises(RunError, match="InconsistentMessageReplies: All MetricRecords must have the same keys"):
        run(0)


class _CallingProxy(ClientProxy):
    """Flower's view of a client, which calls it in this process."""

    def __init__(self, cid: str, client: Client) -> None:
        super().__init__(cid)
        self.client = client

    def get_properties(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        return self.client.get_properties(ins)

    def get_parameters(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        return self.client.get_parameters(ins)

    def fit(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        return self.client.fit(ins)

    def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        return self.client.evaluate(ins)

    def reconnect(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        return None


def _loop_of_flower(client_fn: Any, num_clients: int, config: ServerConfig, strategy: Any, **_: Any) -> History:
    manager = SimpleClientManager()
    for client_id in range(num_clients):
        manager.register(_CallingProxy(str(client_id), client_fn(str(client_id))))
    history, _seconds = Server(client_manager=manager, strategy=strategy).fit(config.num_rounds, timeout=None)
    return history


@pytest.mark.ray
def test_old_scripts_get_the_history_of_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script in a process of its own, as it is started; the loop of Flower here, on the same clients."""
    script = (PROGRAMS / "old_script.py").read_text()
    (tmp_path / "script.py").write_text(script.replace("flwr.simulation", "sim"))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("flwr.simulation.start_simulation", _loop_of_flower)
    runpy.run_path(str(PROGRAMS / "old_script.py"), run_name="__main__")
    printed = (done.stdout, capsys.readouterr().out)
    histories = [line for text in printed for line in text.splitlines() if line.startswith("history")]
    assert len(histories) == 2
    assert histories[0] == histories[1]
    assert "'got': [(1, 1.25)" in histories[0]
    assert [path.name for path in tmp_path.glob("results/*/rounds.csv")] == ["rounds.csv"]


@pytest.mark.slow
def test_an_app_survives_the_death_of_the_driver(tmp_path: Path, app: Any) -> None:
    words = ["app", str(APPS / "stateful_app"), "--num-clients", "5", "--engine", "inline", "--name", "killed"]
    program = Program(tmp_path, "app", [*words, "--run-config", "num-server-rounds=2000"])
    killed = Run(tmp_path / "results" / "killed")
    wait_until(lambda: (killed.last_checkpoint() or 0) >= 3 or not program.process.is_alive())
    program.process.kill()
    assert program.end() == -signal.SIGKILL
    num_rounds = int(killed.rounds()["round"].max()) + 2
    assert num_rounds < 2000
    resume(killed, num_rounds=num_rounds)
    whole = app("stateful_app", num_rounds=num_rounds, name="whole")
    assert sha256(killed.model_path) == sha256(whole.model_path)


@pytest.mark.ray
def test_clients_of_an_app_that_die_or_hang(app: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One dies and is executed again, one hangs and is left out, as one that raises."""
    raising = app("faulty_app", name="raising", on_client_error="drop", run_config={"raises": True})
    capsys.readouterr()
    faults = {"marker": str(tmp_path / "died"), "hangs": True}
    settings = {"client_timeout": 3.0, "on_client_error": "drop", "run_config": faults}
    run = app("faulty_app", {"num_cpus": 1}, engine="ray", name="hung", **settings)
    assert (tmp_path / "died").exists()
    assert sha256(run.model_path) == sha256(raising.model_path)
    clients = run.clients()
    failed = clients[clients.status == "failed"]
    assert failed[["round", "client_id", "error"]].to_numpy().tolist() == [[2, 2, "Timeout: no end after 3 s"]]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("errors")]
    assert printed == ["errors 1 []", "errors 2 ['Timeout']", "errors 3 []"]


def test_the_folder_of_an_app_may_be_given_to_sim_run(command: Sim) -> None:
    done = command("run", str(APPS / "legacy_app"), "--num-clients", "3", "--engine", "inline", "--name", "r")
    assert done.returncode == 0, done.stderr
    assert "final mae" in done.stdout
    refused = command("run", "--app", str(APPS / "legacy_app"), "--alpha", "1")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--alpha 1.0: has no effect with --app" in refused.stderr


def test_configs_of_apps_are_checked() -> None:
    assert AppConfig(app="x").num_rounds == 0
    with pytest.raises(UsageError, match="--model Net: has no effect with --app"):
        AppConfig(app="x", model="Net")
    with pytest.raises(UsageError, match="--run-config lr: belongs to --app or --client-fn"):
        RunConfig(run_config={"lr": 1})
