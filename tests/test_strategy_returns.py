"""What a strategy, or a function that it was given, returns wrongly is named and not dropped."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Array, ArrayRecord, Context, Message, MetricRecord, Parameters, RecordDict
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg, Strategy
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg as MessageFedAvg

from sim import ConfigError, PluginError, RunError, run_simulation, start_simulation


class Plus(NumPyClient):
    """Adds one to what it gets."""

    def get_parameters(self, config: Any) -> Any:
        return [np.zeros(2)]

    def fit(self, parameters: Any, config: Any) -> Any:
        return [array + 1 for array in parameters], 1, {"train_loss": 0.25}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return float(parameters[0][0]), 1, {}


def started(tmp_path: Path, strategy: Any, **settings: Any) -> Any:
    shared: dict[str, Any] = {"results_dir": str(tmp_path), "name": "run", "engine": "inline"}
    config: Any = ServerConfig(num_rounds=2)
    given = {"num_clients": 2, "config": config, "strategy": strategy, **shared, **settings}
    return start_simulation(client_fn=lambda context: Plus().to_client(), **given)


def returning(method: str, returned: Any, of: type = FedAvg) -> Any:
    return type("Own", (of,), {method: lambda *_: returned})()


EVALUATED = r"\(loss, dict of metrics\) or None"
FITTED = r"\(Parameters, which ndarrays_to_parameters makes, dict\) or \(None, dict\)"
TRAINED = r"\(ArrayRecord or None, MetricRecord or None\)"
ARRAYS = ArrayRecord({"a": Array(np.zeros(2)), "b": Array(np.zeros(2))})  # two, as many as must be returned
PARAMETERS = Parameters([], "numpy.ndarray")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FedAvg(evaluate_fn=lambda *_: 0.5), rf"round 0: evaluate_fn must return {EVALUATED} \(TypeError: "),
        (FedAvg(evaluate_fn=lambda *_: (0.5,)), rf"round 0: evaluate_fn must return {EVALUATED} \(ValueError: "),
        (FedAvg(evaluate_fn=lambda *_: (0.5, None)), rf"evaluate_fn must return {EVALUATED}, not \(float, NoneType\)"),
        (FedAvg(evaluate_fn=lambda *_: ({}, 0.5)), rf"evaluate_fn must return {EVALUATED}, not \(dict, float\)"),
        (returning("evaluate", 0.5), rf"round 0: evaluate must return {EVALUATED}, not float$"),
        (FedAvg(on_fit_config_fn=lambda _: None), "round 1: on_fit_config_fn must return a dict, not NoneType"),
        (FedAvg(on_evaluate_config_fn=lambda _: None), "round 1: on_evaluate_config_fn must return a dict, not None"),
        (returning("configure_fit", [1]), "round 1: configure_fit must return pairs of a client and its FitIns or Eva"),
        (returning("aggregate_fit", PARAMETERS), f"round 1: aggregate_fit must return {FITTED}, not Parameters$"),
        (returning("aggregate_fit", ([], {})), rf"aggregate_fit must return {FITTED}, not \(list, dict\)$"),
        (returning("aggregate_fit", (None, 3)), "aggregate_fit must return a dict of metrics in the second place, not"),
        (FedAvg(fit_metrics_aggregation_fn=lambda _: 0.5), "fit_metrics_aggregation_fn must return a dict of metrics"),
        (returning("aggregate_evaluate", 0.5), r"aggregate_evaluate must return \(loss or None, dict\), not float$"),
        (returning("aggregate_evaluate", (0.5, 0.2)), "aggregate_evaluate must return a dict of metrics in the second"),
        (
            returning("aggregate_train", ARRAYS, MessageFedAvg),
            rf"aggregate_train must return {TRAINED}, not ArrayRecor",
        ),
        (returning("aggregate_train", ([], None), MessageFedAvg), r"aggregate_train must return .*, not \(list, NoneT"),
    ],
)
def test_a_wrong_return_is_named(tmp_path: Path, strategy: Strategy, message: str) -> None:
    with pytest.raises(RunError, match=message):
        started(tmp_path, strategy)


def test_an_error_of_the_users_own_function_stays_its_own(tmp_path: Path) -> None:
    def evaluate_fn(*_: Any) -> Any:
        raise TypeError("of mine")

    with pytest.raises(RunError, match="round 0: evaluate raised TypeError: of mine"):
        started(tmp_path, FedAvg(evaluate_fn=evaluate_fn))


@pytest.mark.parametrize("method", ["configure_fit", "configure_evaluate", "aggregate_fit", "aggregate_evaluate"])
def test_none_is_nothing(tmp_path: Path, method: str) -> None:
    history = started(tmp_path, returning(method, None))
    losses = {"configure_fit": [0.0, 0.0], "aggregate_fit": [0.0, 0.0]}.get(method, [])
    assert [loss for _, loss in history.losses_distributed] == losses


def test_an_app_may_measure_what_has_no_name_as_with_flower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server_app, client_app, results = ServerApp(), ClientApp(), []

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    @server_app.main()
    def main(grid: Any, context: Context) -> None:
        first = ArrayRecord([np.zeros(2)])
        made = MessageFedAvg(fraction_evaluate=0.0).start(
            grid, first, num_rounds=2, evaluate_fn=lambda server_round, arrays: server_round / 2
        )
        results.append(made.evaluate_metrics_serverapp)

    run = run_simulation(server_app, client_app, 2, results_dir=str(tmp_path), engine="inline")
    assert results == [{0: 0.0, 1: 0.5, 2: 1.0}]
    assert run.rounds().test_loss.isna().all()
    note = "note: evaluate_fn returned float, which is in the app's result alone; what a MetricRecord holds is recorded"
    assert capsys.readouterr().err.splitlines().count(f"sim: {note}") == 1


def test_a_loss_in_another_spelling_is_recorded(tmp_path: Path) -> None:
    started(tmp_path, FedAvg())
    from sim import open_run

    run = open_run("run", str(tmp_path))
    assert run.rounds().train_loss.tolist()[1:] == [0.25, 0.25]


def test_what_a_script_gives_wrongly_is_said_before_anything_is_made(tmp_path: Path) -> None:
    first: Any = [np.zeros(2)]
    for error, message, given in (
        (PluginError, "begins with a list, not with Parameters", {"strategy": FedAvg(initial_parameters=first)}),
        (ConfigError, "strategy: FedAvg is a class; give an object of it", {"strategy": FedAvg}),
        (ConfigError, "config: must be a ServerConfig, not dict", {"config": {"num_rounds": 2}}),
        (ConfigError, "start_simulation: unknown setting nosuch", {"nosuch": 1}),
    ):
        with pytest.raises(error, match=message):
            started(tmp_path, **{"strategy": FedAvg(), **given})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_app_objects_of_a_script_run_on_ray(tmp_path: Path) -> None:
    program = """
        import numpy as np
        from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp
        from flwr.serverapp import ServerApp
        from flwr.serverapp.strategy import FedAvg
        from sim import run_simulation

        client_app, server_app = ClientApp(), ServerApp()

        @client_app.train()
        def train(message, context):
            arrays = ArrayRecord([array + 1 for array in message.content["arrays"].to_numpy_ndarrays()])
            content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
            return Message(content, reply_to=message)

        @server_app.main()
        def main(grid, context):
            first = ArrayRecord([np.zeros(3, np.float32)])
            FedAvg(fraction_evaluate=0.0).start(grid=grid, initial_arrays=first, num_rounds=2)

        if __name__ == "__main__":
            print(run_simulation(server_app, client_app, 4).rounds().num_clients.tolist()[1:])
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(program))
    result = subprocess.run([sys.executable, script], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "[4, 4]\n"), result.stderr
