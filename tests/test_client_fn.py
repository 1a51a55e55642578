"""Client functions of the user's own: no data set and no model of this package takes part."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import flwr.server.strategy
import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from safetensors.numpy import load_file

from conftest import PROGRAMS, Sim, sha256
from sim import Run, RunConfig, resume, simulate
from sim.errors import ClientError, EngineError, RunError, UsageError

pytestmark = pytest.mark.usefixtures("in_programs", "no_pictures")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run a client function of ``client_fns`` in this process."""

    def start(client_fn: str, *, objects: dict[str, Any] | None = None, ray: Any = None, **settings: Any) -> Any:
        given = {"num_clients": 4, "fraction_fit": 1.0, "fraction_evaluate": 1.0, "num_rounds": 2, "engine": "inline"}
        name = client_fn if ":" in client_fn else f"client_fns:{client_fn}"
        config = {**given, "results_dir": str(tmp_path / "results"), "client_fn": name, **settings}
        return simulate(RunConfig(**config), ray_init_args=ray, **(objects or {}))

    return start


def _means(start: list[float], rounds: int, step: float = 0.5) -> list[float]:
    """What FedAvg makes of ``Numbers`` without its noise, which is below 0.01 per round."""
    sizes = np.array([10, 11, 12, 13])
    for _ in range(rounds):
        start = [float((sizes * (value + step * (np.arange(4) - value))).sum() / sizes.sum()) for value in start]
    return start


@pytest.mark.parametrize("name", ["by_context", "by_cid"])
def test_clients_are_averaged_with_their_examples_as_weights(run: Any, name: str) -> None:
    done = run(name)
    weights = load_file(done.model_path)
    assert [weights[key].shape for key in sorted(weights)] == [(2, 2), (3,)]
    assert [str(weights[key].dtype) for key in sorted(weights)] == ["float32", "float64"]
    expected = _means([0.0, 1.0], 2)
    assert np.allclose(weights["array_0"], expected[0], atol=0.02)
    assert np.allclose(weights["array_1"], expected[1], atol=0.02)
    rounds = done.rounds()
    assert rounds.eval_accuracy.tolist()[1:] == [0.5, 0.5]
    assert rounds.test_loss.isna().all()
    assert rounds.train_loss.notna().tolist() == [False, True, True]


@pytest.mark.ray
def test_the_same_bits_on_ray_and_resumed(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    note = "sim: note: clients change client_fns.SEEN, which each of them finds as it was at first"
    whole = run("head_stays", num_rounds=3, name="whole")
    assert capsys.readouterr().err.splitlines().count(note) == 1
    on_ray = run("head_stays", num_rounds=3, engine="ray", ray={"num_cpus": 2}, name="ray")
    assert capsys.readouterr().err.splitlines().count(note) == 1
    assert on_ray.log_path.read_text().count(f" WARNING {note}\n") == 1
    part = run("head_stays", num_rounds=1, name="part")
    resumed = resume(part, num_rounds=3)
    assert len({sha256(each.model_path) for each in (whole, on_ray, resumed)}) == 1
    metrics = resumed.metrics()
    fits = metrics[(metrics.name == "fits") & metrics.client_id.notna()]
    assert fits.groupby("round").value.unique().map(list).to_dict() == {1: [1.0], 2: [2.0], 3: [3.0]}


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_modules_see_the_command_line_of_the_script(run: Any, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "0.5"])
    monkeypatch.delitem(sys.modules, "own_flags", raising=False)
    done = run("own_flags:client_fn", num_clients=2, engine=engine, ray={"num_cpus": 1})
    assert done.rounds().eval_loss.tolist()[1:] == [1.0, 2.0]


def test_modules_do_not_see_the_flags_of_sim(sim: Sim, tmp_path: Path) -> None:
    words = (
        "--num-clients",
        "2",
        "--num-rounds",
        "1",
        "--lr",
        "0.75",
        "--fraction-evaluate",
        "1",
        "--engine",
        "inline",
        "--name",
        "r",
    )
    done = sim("run", "--client-fn", "own_flags:client_fn", *words, "--results-dir", str(tmp_path), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").rounds().eval_loss.tolist()[1:] == [0.5]


def test_arrays_that_stay_with_clients_are_not_averaged(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(load_file(run("head_stays", name="a").model_path)) == ["array_0"]
    assert "client 0 returned accuracy 87.5, which is no fraction" in capsys.readouterr().err
    percent = run("head_stays", accuracy_in_percent=True, name="b")
    assert percent.rounds().eval_accuracy.tolist()[1:] == [0.875, 0.875]
    fewer = run("sends_fewer", num_rounds=1, fraction_evaluate=0.0, name="c")
    assert sorted(load_file(fewer.model_path)) == ["array_0"]


def test_a_client_with_flowers_own_types(run: Any) -> None:
    assert load_file(run("a_client").model_path)["array_0"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("empty", "said"),
    [
        ("fit", "no client trained on any example, so there is no mean of them"),
        ("evaluate", "no client evaluated on any example, so there is no mean of their losses"),
    ],
)
def test_a_round_without_any_example_is_named(run: Any, empty: str, said: str) -> None:
    with pytest.raises(RunError, match=f"^round 1: {said}$"):
        run("without_examples", run_config={"empty": empty})


def test_a_run_config_holds_what_was_given_and_then_the_settings(run: Any) -> None:
    given = run("with_run_config", run_config={"learning-rate": 1.0}, num_rounds=1, name="given")
    setting = run("with_run_config", lr=0.25, num_rounds=1, name="setting")
    for done, step in ((given, 1.0), (setting, 0.25)):
        assert np.allclose(load_file(done.model_path)["array_1"], _means([1.0], 1, step)[0], atol=0.01)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "krum", "fedmedian", "multikrum", "qfedavg"])
def test_strategies_by_name(run: Any, strategy: str) -> None:
    arguments = {"krum": {"num_clients_to_keep": 2}, "multikrum": {"num_nodes_to_select": 2}}
    weights = load_file(run("by_context", strategy=strategy, strategy_args=arguments.get(strategy, {})).model_path)
    assert all(np.isfinite(array).all() for array in weights.values())


def test_strategies_of_both_forms_as_objects(run: Any) -> None:
    first = [np.full((2, 2), 3.0, np.float32), np.full(3, 2.0)]
    legacy = flwr.server.strategy.FedAvg(initial_parameters=ndarrays_to_parameters(first), min_available_clients=4)
    newer = flwr.serverapp.strategy.FedAvg(min_available_nodes=4)
    weights = load_file(run("by_context", objects={"strategy": legacy}, num_rounds=1, name="legacy").model_path)
    assert np.allclose(weights["array_0"], _means([3.0], 1)[0], atol=0.01)
    same = [run("by_context", objects={"strategy": newer}, name="newer"), run("by_context", name="plain")]
    arrays = [load_file(each.model_path) for each in same]
    assert all(np.allclose(arrays[0][key], arrays[1][key], atol=0.02) for key in arrays[1])


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("makes_nothing", {}, UsageError, "client 0 cannot be made: TypeError: client_fn returned NoneType; a flwr"),
        ("without_parameters", {}, UsageError, "there are no first weights; get_parameters of the client"),
        ("by_context", {"alpha": 1.0}, UsageError, "--alpha 1.0: has no effect with --client-fn"),
        ("by_context", {"lr_schedule": "cosine"}, UsageError, "--lr-schedule cosine: has no effect with --client-fn"),
        ("by_context", {"optimizer": "adam"}, UsageError, "--optimizer adam: has no effect with --client-fn"),
        ("by_context", {"args": {"a": 3}}, UsageError, "--args a=3: has no effect with --client-fn without --model"),
        ("by_context", {"strategy": "ditto"}, UsageError, "--strategy ditto: changes what clients do, but those of"),
        ("by_context", {"model": "Net"}, UsageError, "--model Net: a Flower program needs its own model here"),
        ("unequal", {}, ClientError, "client 1 raised in round 1 .*: returned 2 arrays, clients before it 1: there"),
        ("infinite", {}, ClientError, "client 0 raised in round 1 .*holds infinite weights|holds NaN weights"),
        ("no_such", {}, UsageError, "--client-fn client_fns:no_such: client_fns has no no_such"),
    ],
)
def test_what_cannot_work_is_one_line(
    run: Any, tmp_path: Path, name: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(name, **settings)
    assert (tmp_path / "results").exists() == (error is not UsageError)


@pytest.mark.slow
def test_epsilon_is_that_of_the_gaussian_mechanism(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """ε(T) = min over α of T·α/(2σ²) + log(1 − 1/α) − log(δα)/(α − 1) (Mironov 2017; Canonne et al. 2020)."""
    alpha = np.linspace(1.01, 60, 600_000)
    expected = [
        float(np.min(rounds * alpha / 2 + np.log1p(-1 / alpha) - np.log(1e-5 * alpha) / (alpha - 1)))
        for rounds in (1, 2)
    ]
    private = {"dp": "fixed", "dp_args": {"noise_multiplier": 1.0, "clipping_norm": 1.0}}
    metrics = run("a_client", **private, name="equal").metrics()
    found = metrics[metrics.name == "epsilon"]
    assert found["round"].tolist() == [1, 2]
    assert np.allclose(found.value, expected, rtol=1e-3)  # Flower tries some orders α only
    assert (found.value >= np.array(expected) - 1e-9).all()
    unequal = run("by_context", **private, name="unequal").metrics()
    assert not (unequal.name == "epsilon").any()
    assert "no epsilon in metrics.csv, because clients have different numbers of examples" in capsys.readouterr().err
    adaptive = run("a_client", dp="adaptive", name="adaptive").metrics()
    assert not (adaptive.name == "epsilon").any()
    said = capsys.readouterr().err
    assert said.count("no epsilon in metrics.csv, because the noise of --dp adaptive follows the clipping norm") == 1


def test_the_config_of_a_run_has_no_setting_without_effect() -> None:
    text = RunConfig(client_fn="client_fns:by_context", num_clients=4).to_toml()
    assert "local_epochs" in text
    assert "lr_schedule" not in text  # so that --config and sweeps would refuse it


IN_ANOTHER_FOLDER = """
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
sys.path.append(str(Path(__file__).parent / "another"))
from flwr.server import ServerConfig
from of_another_folder import client_fn
from sim import start_simulation

history = start_simulation(client_fn=client_fn, num_clients=2, config=ServerConfig(num_rounds=1), engine="ray")
print(history.losses_distributed)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_processes_find_modules_where_the_script_finds_them(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    shutil.copy(PROGRAMS / "client_fns.py", tmp_path / "another" / "of_another_folder.py")
    with (tmp_path / "another" / "of_another_folder.py").open("a") as file:
        file.write("\nclient_fn = by_context\n")
    (tmp_path / "script.py").write_text(IN_ANOTHER_FOLDER)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[(1, ")


@pytest.mark.slow
@pytest.mark.ray
def test_a_function_that_no_process_can_import_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("made_in_memory")
    exec("from client_fns import by_context\ndef client_fn(context):\n    return by_context(context)", vars(made))
    monkeypatch.syspath_prepend(PROGRAMS)
    monkeypatch.setitem(sys.modules, "made_in_memory", made)
    with pytest.raises(EngineError, match=r"a process cannot take the clients: .*No module named 'made_in_memory'"):
        run("x:client_fn", engine="ray", objects={"client_fn": vars(made)["client_fn"]})
