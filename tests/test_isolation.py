"""What one client leaves behind reaches no other, and what user code returns is read as it was meant or refused."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import PROGRAMS, SMALL, Sim, Small, made_once, sha256
from sim import Run, resume, simulate
from sim.client.torch_client import fit_settings
from sim.config.run_config import RunConfig
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import ClientError, PluginError, RunError
from sim.process_settings import restored_settings
from sim.server.prepared_run import Prepared
from sim.setup.prepare import prepare

_SOURCE = ast.parse((PROGRAMS / "untidy.py").read_text(encoding="utf-8"))
# The keys of its table, without importing it before the test changes the folder.
HABITS = next(
    [ast.literal_eval(key) for key in node.value.keys if key is not None]
    for node in _SOURCE.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HABITS" and isinstance(node.value, ast.Dict)
)


@pytest.fixture(scope="module")
def untidy() -> Iterator[Prepared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROGRAMS)
        patch.syspath_prepend(PROGRAMS)
        yield prepare(
            RunConfig(model="untidy:Gained", client="untidy:Untidy", num_clients=10, local_epochs=1, engine="inline")
        )


def _results(prepared: Prepared, *habits: str, client: str = "untidy:Untidy") -> list[ClientResult]:
    """Execute one client for each habit in one process; the ids end with 9, so that the last is always the same."""
    worker = Worker(replace(prepared.spec, client=client), 10, 0)
    settings = fit_settings(prepared.config, 1)
    ids = range(10 - len(habits), 10)
    tasks = [Task(i, {**settings, "server_round": 1, "habit": h}) for i, h in zip(ids, habits, strict=True)]
    return worker.run(Chunk("fit", 1, tasks, prepared.initial_weights, summed=False)).results


@pytest.mark.parametrize("habit", HABITS)
def test_a_client_finds_everything_as_if_it_were_the_first(untidy: Prepared, habit: str) -> None:
    (alone,) = _results(untidy, "")
    _, after = _results(untidy, habit, "")
    assert alone.error is None
    assert after.error is None
    assert after.metrics == alone.metrics
    assert after.weights is not None
    assert alone.weights is not None
    for array, expected in zip(after.weights, alone.weights, strict=True):
        assert np.array_equal(array, expected)


def test_an_error_that_cannot_be_shown_is_a_failure_in_a_process_of_its_own_too(untidy: Prepared) -> None:
    worker = Worker(replace(untidy.spec, client="untidy:Odd"), 10, 0, own_process=True)
    task = Task(9, {**fit_settings(untidy.config, 1), "server_round": 1})
    (result,) = worker.run(Chunk("fit", 1, [task], untidy.initial_weights, summed=False)).results
    assert result.error == "OddError: (its text cannot be shown)"


def test_an_interrupt_that_a_client_raises_is_a_failure_in_a_process_of_its_own(untidy: Prepared) -> None:
    task = Task(9, {**fit_settings(untidy.config, 1), "server_round": 1})
    chunk = Chunk("fit", 1, [task], untidy.initial_weights, summed=False)
    spec = replace(untidy.spec, client="untidy:Interrupts")
    (result,) = Worker(spec, 10, 0, own_process=True).run(chunk).results
    assert result.error == "KeyboardInterrupt"
    with pytest.raises(KeyboardInterrupt):
        Worker(spec, 10, 0).run(chunk)


@pytest.mark.usefixtures("in_programs")
def test_what_a_module_sets_when_it_is_imported_stays_but_for_the_number_of_threads() -> None:
    with restored_settings():
        prepared = prepare(RunConfig(train="early:train", num_clients=10, engine="inline"))
        assert torch.get_default_dtype() == torch.float64
        worker = Worker(prepared.spec, 10, 0)
        assert worker.runtime.train.function.__module__ == "early"
        assert torch.get_num_threads() == 1


def test_what_a_client_returned_is_its_own(untidy: Prepared) -> None:
    first, second = _results(untidy, "", "", client="untidy:ChangesLater")
    for result in (first, second):
        assert result.weights is not None
        assert all(array.any() for array in result.weights)


@pytest.mark.ray
@pytest.mark.usefixtures("in_programs")
def test_untidy_clients_give_the_same_bits_on_any_number_of_processes_and_resumed(small: Small) -> None:
    """FedAvg, for which each of three actors adds up its clients; scripts/determinism.sh takes every strategy."""
    config: dict[str, Any] = {
        "dataset": "untidy:digits_and_their_scale",
        "model": "untidy:Gained",
        "client": "untidy:Everything",
        "num_clients": 40,
        "clients_per_round": 33,
        "num_rounds": 4,
        "max_local_steps": 2,
        "fraction_evaluate": 0.2,
        "on_client_error": "drop",
    }
    runs = [small(**config, name="inline"), small({"num_cpus": 3}, **config, engine="ray", num_cpus=1, name="ray")]
    assert runs[1].clients().actor.nunique() == 3
    measured = ["train_loss", "test_loss", "test_accuracy", "eval_loss", "eval_accuracy"]
    assert runs[0].rounds()[measured].equals(runs[1].rounds()[measured])
    first = small(**{**config, "num_rounds": 2}, name="resumed")
    runs.append(resume(first, num_rounds=4))
    assert len({sha256(run.model_path) for run in runs}) == 1
    tables = [run.clients()[["round", "client_id", "loss", "status", "error"]] for run in runs]
    assert all(table.equals(tables[0]) for table in tables)
    assert (tables[0].status == "failed").sum() > 10


MASKED: dict[str, Any] = {
    "model": "untidy:Masked",
    "num_clients": 20,
    "clients_per_round": 14,
    "max_local_steps": 4,
}


@pytest.fixture(scope="module")
def before_and_averaged(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The first weights of ``Masked``, and what FedAvg makes of them in a round."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(PROGRAMS)
            for name, lr in (("initial", 1e-30), ("averaged", 0.1)):
                settings = {**SMALL, **MASKED, "num_rounds": 1, "lr": lr, "results_dir": str(folder), "name": name}
                simulate(RunConfig(**settings))

    folder = made_once(tmp_path_factory, "masked", make)
    return [load_file(Run(folder / name).model_path) for name in ("initial", "averaged")]


@pytest.mark.usefixtures("in_programs")
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "krum", "fedmedian", "qfedavg", "fedavgm", "untidy:OwnAdam"])
def test_only_trained_weights_are_stepped_and_two_names_are_one_weight(
    small: Small, before_and_averaged: list[dict[str, Any]], strategy: str
) -> None:
    initial, averaged = before_and_averaged
    found = load_file(small(**MASKED, strategy=strategy, name="two").model_path)
    one = load_file(small(**MASKED, strategy=strategy, num_rounds=1, name="one").model_path)
    assert np.array_equal(found["block.weight"], found["again.weight"])
    assert not np.array_equal(found["block.weight"], initial["block.weight"])
    for name in ("never", "mask", "used", "frozen.weight", "frozen.bias"):
        assert np.array_equal(found[name], initial[name]), name
        assert found[name].dtype == initial[name].dtype
    assert (found["norm.running_var"] > 0).all()
    if strategy not in ("krum", "fedmedian"):  # which choose among the clients
        assert np.array_equal(one["norm.running_var"], averaged["norm.running_var"])


@pytest.mark.usefixtures("in_programs")
def test_what_a_strategy_writes_into_its_parameters_is_sent_and_is_the_model(small: Small) -> None:
    run = small(strategy="untidy:InPlace", client="untidy:Sent", max_local_steps=1)
    assert run.clients().loss.tolist() == [0.0] * 8
    assert not any(array.any() for array in load_file(run.model_path).values())


@pytest.mark.usefixtures("in_programs")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"strategy": "untidy:MakesNan"},
            RunError,
            "round 1: --strategy untidy:MakesNan made weights .*conv1.weight holds NaN",
        ),
        ({"strategy": "untidy:Exits"}, RunError, "round 1: aggregate_fit raised SystemExit"),
        ({"train": "untidy:exits"}, PluginError, "--train untidy:exits: raised SystemExit"),
        ({"test": "untidy:exits_in_test"}, RunError, "the central test raised SystemExit"),
        ({"train": "untidy:panics"}, PluginError, "--train untidy:panics: raised Panic: index out of bounds"),
        ({"test": "untidy:panics_in_test"}, RunError, "the central test raised Panic: index out of bounds"),
        ({"model": "untidy:panics_when_made"}, PluginError, r"cannot be built for .*: Panic: index out of bounds$"),
        ({"model": "untidy:PanicsWhenCalled"}, PluginError, r"does not take .*: Panic: index out of bounds$"),
        (
            {"model": "untidy:exits_when_made"},
            PluginError,
            r"--model untidy:exits_when_made: cannot be built for .*: SystemExit$",
        ),
        (
            {"model": "untidy:ExitsWhenCalled"},
            PluginError,
            r"--model untidy:ExitsWhenCalled: does not take .*: SystemExit$",
        ),
        (
            {"client": "untidy:Odd"},
            ClientError,
            r"client \d in|client \d+ raised in round 1 \(fit\): OddError: \(its text cannot be shown\)",
        ),
        (
            {"client": "untidy:Percent", "fraction_evaluate": 0.5},
            ClientError,
            r"client \d raised in round 1 \(evaluate\): WrongReturnError: evaluate returned accuracy 75.0; a fraction",
        ),
    ],
)
def test_user_code_that_goes_wrong_ends_in_one_line(
    small: Small, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small(**settings, max_local_steps=1)


@pytest.mark.usefixtures("in_programs")
def test_single_numbers_of_numpy_and_pytorch_are_measured(small: Small) -> None:
    run = small(client="untidy:Measures", fraction_evaluate=0.5, num_rounds=1, max_local_steps=1)
    last = run.rounds().iloc[-1]
    assert last.train_loss > 1
    assert (last.eval_loss, last.eval_accuracy) == (0.25, 0.75)
    assert set(run.clients().accuracy) == {0.5, 0.75}


@pytest.mark.usefixtures("in_programs")
def test_a_huge_error_is_whole_nowhere(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ClientError, match=r"ValueError: \\x1b\[31mxxx.*characters left out.*\\udcff$") as caught:
        small(client="untidy:Loud", name="loud", num_rounds=1)
    assert len(str(caught.value)) < 5000
    assert len(capfd.readouterr().err) < 50_000


def test_a_client_that_closes_the_files_of_its_process_is_named(sim: Sim, tmp_path: Path) -> None:
    words = ["--client", "untidy:Closes", "--num-clients", "8", "--fraction-fit", "1", "--num-rounds", "1"]
    result = sim("run", *words, "--engine", "inline", "--name", "x", env={**os.environ, "PYTHONPATH": str(PROGRAMS)})
    last = result.stderr.splitlines()[-1]
    assert (result.returncode, last) == (1, "sim: client 3 closed open files of the process that executes it")
    assert "Traceback" not in result.stderr
    assert Run(tmp_path / "results" / "x").rounds()["round"].tolist() == [0]
