"""Callbacks: what they are told, and what happens if one raises or the run is stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT, SMALL, sha256
from sim import (
    Callback,
    CentralizedConfig,
    ClientError,
    ClientRecord,
    ConfigError,
    MetricRecord,
    RoundRecord,
    Run,
    RunConfig,
    RunError,
    resume,
    simulate,
    train_centralized,
)

pytestmark = pytest.mark.usefixtures("no_pictures")


class Told(Callback):
    """Keeps what it is told, and what is on disk at that moment."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.clients: list[int] = []
        self.metrics: list[tuple[str, float | None]] = []

    def before_round(self, run: Run, number: int) -> None:
        self.calls.append(("before", number, len(run.rounds())))

    def after_round(
        self, run: Run, record: RoundRecord, clients: Sequence[ClientRecord], metrics: Sequence[MetricRecord]
    ) -> None:
        self.calls.append(("after", record.round, len(run.rounds())))
        self.clients += [client.client_id for client in clients]
        self.metrics += [(each.name, each.value) for each in metrics if each.phase == "test"]

    def at_end(self, run: Run, error: BaseException | None) -> None:
        self.calls.append(("end", None if error is None else type(error).__name__, run.model_path.exists()))


class Raises(Callback):
    """Raises in one of its methods, in round 2 if it is called in each."""

    def __init__(self, method: str, error: BaseException) -> None:
        self.method, self.error = method, error

    def before_round(self, run: Run, number: int) -> None:
        self._raise("before_round", number)

    def after_round(
        self, run: Run, record: RoundRecord, clients: Sequence[ClientRecord], metrics: Sequence[MetricRecord]
    ) -> None:
        self._raise("after_round", record.round)

    def at_end(self, run: Run, error: BaseException | None) -> None:
        self._raise("at_end", 2)

    def _raise(self, method: str, number: int) -> None:
        if (method, number) == (self.method, 2):
            raise self.error


class Disturbs(Callback):
    """Draws random numbers and changes the settings of the process."""

    def before_round(self, run: Run, number: int) -> None:
        torch.manual_seed(number)
        torch.set_default_dtype(torch.float64)

    def after_round(
        self, run: Run, record: RoundRecord, clients: Sequence[ClientRecord], metrics: Sequence[MetricRecord]
    ) -> None:
        torch.rand(3)
        torch.set_grad_enabled(False)


ROUNDS = [("before", 0, 0), ("after", 0, 1), ("before", 1, 1), ("after", 1, 2), ("before", 2, 2), ("after", 2, 3)]


def _config(tmp_path: Path, **settings: Any) -> RunConfig:
    return RunConfig(**{**SMALL, "results_dir": str(tmp_path), **settings})


def test_a_callback_is_told_of_each_round_and_of_the_end(tmp_path: Path) -> None:
    told, order = Told(), []
    run = simulate(
        _config(tmp_path),
        callbacks=[told],
        on_record=lambda record: order.append((record.round, len(told.calls))),
    )
    assert told.calls == [*ROUNDS, ("end", None, True)]
    assert order == [(0, 1), (1, 3), (2, 5)]  # on_record is called first
    assert told.clients == run.clients().client_id.tolist()
    rounds = run.rounds()
    assert told.metrics == [
        pair
        for loss, accuracy in zip(rounds.test_loss, rounds.test_accuracy, strict=True)
        for pair in (("loss", loss), ("accuracy", accuracy))
    ]


@pytest.mark.slow
def test_callbacks_change_no_bit_of_a_run(tmp_path: Path) -> None:
    plain = simulate(_config(tmp_path, name="plain"))
    disturbed = simulate(_config(tmp_path, name="disturbed"), callbacks=[Disturbs()])
    assert sha256(disturbed.model_path) == sha256(plain.model_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["before_round", "after_round"])
def test_a_callback_that_raises_stops_the_run_which_can_be_resumed(tmp_path: Path, method: str) -> None:
    told = Told()
    config = _config(tmp_path, num_rounds=3, name="cut")
    with pytest.raises(RunError) as stopped:
        simulate(config, callbacks=[Raises(method, ValueError("no more\nspace")), told])
    assert str(stopped.value) == f"round 2: {method} of the callback Raises raised ValueError: no more space"
    done = 1 if method == "before_round" else 2
    # A callback behind the one that raised is not told of that moment, but of the end.
    assert told.calls == [*ROUNDS[: 4 if done == 1 else 5], ("end", "RunError", True)]
    run = Run(tmp_path / "cut")
    assert run.rounds()["round"].tolist() == list(range(done + 1))
    assert "Traceback" in run.log_path.read_text()
    again = Told()
    resume(run, callbacks=[again])
    assert [call[:2] for call in again.calls][:2] == [("before", done + 1), ("after", done + 1)]
    whole = simulate(_config(tmp_path, num_rounds=3, name="whole"))
    assert sha256(run.model_path) == sha256(whole.model_path)


def test_a_callback_that_raises_at_the_end_leaves_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    first, second = Raises("at_end", OSError("gone")), Raises("at_end", SystemExit("bye"))
    with pytest.raises(RunError, match=r"^after the last round: at_end of the callback Raises raised OSError: gone$"):
        simulate(_config(tmp_path, name="one"), callbacks=[first, second, told])
    assert told.calls[-1] == ("end", None, True)
    assert Run(tmp_path / "one").is_done()
    printed = capsys.readouterr().err
    assert "sim: note: after the last round: at_end of the callback Raises raised SystemExit: bye\n" in printed


def test_the_error_of_a_client_remains_the_one_to_report(tmp_path: Path, in_programs: None) -> None:
    told = Told()
    with pytest.raises(ClientError):
        simulate(
            _config(tmp_path, client="own:Failing", num_rounds=3), callbacks=[Raises("at_end", OSError("gone")), told]
        )
    assert told.calls[-1] == ("end", "ClientError", True)


def test_a_callback_is_told_of_an_interruption(tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        simulate(_config(tmp_path), callbacks=[told, Raises("after_round", KeyboardInterrupt())])
    assert told.calls == [*ROUNDS, ("end", "KeyboardInterrupt", True)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Told, "callbacks: Told is a class; give an object of it, for example Told()"),
        (object(), "callbacks: object has no before_round, after_round, at_end; derive the class from sim.Callback"),
    ],
    ids=["class", "no methods"],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path: Path, given: Any, message: str) -> None:
    for start in (
        lambda: simulate(_config(tmp_path), callbacks=[given]),
        lambda: train_centralized(CentralizedConfig(results_dir=str(tmp_path)), callbacks=[given]),
    ):
        with pytest.raises(ConfigError) as refused:
            start()
        assert str(refused.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_centralized_training_tells_of_its_epochs(tmp_path: Path) -> None:
    told = Told()
    run = train_centralized(CentralizedConfig(epochs=2, results_dir=str(tmp_path)), callbacks=[told])
    assert told.calls == [*ROUNDS, ("end", None, True)]
    assert told.clients == []
    assert [value for name, value in told.metrics if name == "accuracy"] == run.rounds().test_accuracy.tolist()
    config = CentralizedConfig(epochs=2, results_dir=str(tmp_path), name="cut")
    with pytest.raises(RunError, match=r"^round 2: before_round of the callback Raises raised ValueError: x$"):
        train_centralized(config, callbacks=[Raises("before_round", ValueError("x"))])
    assert Run(tmp_path / "cut").rounds()["round"].tolist() == [0, 1]


@pytest.mark.slow
def test_the_examples_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "callbacks-and-trackers.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(example, {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    accuracies = Run(tmp_path / "results" / "printed").rounds().test_accuracy
    assert printed[:4] == [f"{number} {accuracy}" for number, accuracy in enumerate(accuracies)]
    assert printed[4:] == [f"round {number} begins" for number in range(4)]
    watched = Run(tmp_path / "results" / "watched")
    trained = watched.clients()
    worst = trained.loc[trained.groupby("round").loss.idxmax()].set_index("round").client_id
    expected = {"ended": "complete", "worst": {str(number): client for number, client in worst.items()}}
    assert json.loads((watched.path / "worst.json").read_text()) == expected
