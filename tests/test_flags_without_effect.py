"""Flags that nothing in the user's program takes are noted or refused, not dropped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from program_text import extended, run

from sim.centralized import train_centralized
from sim.config.run_config import CentralizedConfig
from sim.errors import ConfigError, DataError
from tests.conftest import Sim, Small

OTHER_MEASURES = """
def train(net, loader):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in loader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

def test(net, loader):
    return {"loss": 1.0, "wer": 0.5}
"""


def test_settings_that_the_users_functions_do_not_use_are_noted(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = extended(program, OTHER_MEASURES).removesuffix(".py")
    given: dict[str, Any] = {"metric": "auroc", "accuracy_in_percent": True, "lr": 0.5, "optimizer": "adam"}
    run(program, **given, lr_decay=0.9, loss="mse", data_dir=".")
    notes = [line for line in capsys.readouterr().err.splitlines() if "has no effect" in line]
    assert notes == [
        f"sim: note: --metric auroc has no effect: --test {module}:test returns wer, loss",
        f"sim: note: --accuracy-in-percent has no effect on --test {module}:test, which returns wer, loss",
        f"sim: note: --lr 0.5 has no effect: --train {module}:train has no parameter for it",
        f"sim: note: --lr-decay 0.9 has no effect: --train {module}:train has no parameter for it",
        f"sim: note: --optimizer adam has no effect: --train {module}:train has no parameter for it",
        "sim: note: --loss mse has no effect: neither --train nor --test has a parameter for it",
        f"sim: note: --data-dir . has no effect: --dataset {module}:trainloader,testloader has no parameter for it",
    ]


OWN_BATCHES = """
def train(net, dataset):
    for x, y in DataLoader(dataset, 4, shuffle=True):
        net(x).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= parameter.grad
"""


def test_a_train_that_makes_its_own_batches_and_what_would_change_them(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = extended(program, OWN_BATCHES).removesuffix(".py")
    run(program, batch_size=2)
    note = f"sim: note: --batch-size 2 has no effect: --train {module}:train has no parameter for it"
    assert note in capsys.readouterr().err.splitlines()
    message = f"^--partial-work: --train {module}:train makes its own batches, so that it cannot be ended early$"
    with pytest.raises(ConfigError, match=message):
        run(program, devices="uniform", deadline=100.0, partial_work=True)


BATCHES_OF_A_GIVEN_SIZE = """
def train(net, dataset, batch_size{default}):
    for x, y in DataLoader(dataset, batch_size):
        net(x).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.1 * parameter.grad
    return {{"batch_size": batch_size}}

def test(net, dataset, batch_size):
    return {{"loss": 1.0, "batch_size_of_test": batch_size}}
"""


@pytest.mark.parametrize(
    ("default", "given", "expected"), [("", None, 4), ("", 3, 3), ("=2", None, 2), ("=2", 3, 3)], ids=str
)
def test_a_train_that_makes_its_own_batches_gets_their_size(
    program: str, default: str, given: int | None, expected: int
) -> None:
    extended(program, BATCHES_OF_A_GIVEN_SIZE.format(default=default))
    made = run(program, batch_size=given)
    rows = pd.read_csv(made.metrics_path)
    assert rows.loc[rows["name"] == "batch_size", "value"].unique().tolist() == [expected]
    assert rows.loc[rows["name"] == "batch_size_of_test", "value"].unique().tolist() == [12]  # as the program's loader
    config = CentralizedConfig(program=program, epochs=1, batch_size=given)
    rows = pd.read_csv(train_centralized(config).metrics_path)
    assert rows.loc[rows["name"] == "batch_size", "value"].unique().tolist() == [expected]


def test_settings_of_the_partition_that_a_program_makes_itself_are_noted(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extended(program, "\ndef load_data(partition_id):\n    return trainloader, testloader\n")
    arguments: dict[str, Any] = {"partitioner": "dirichlet", "alpha": 0.1, "min_partition_size": 3}
    run(program, **arguments, eval_share=0.4, fraction_evaluate=1.0)
    notes = [line for line in capsys.readouterr().err.splitlines() if "has no effect" in line]
    assert notes == [
        f"sim: note: --{flag} has no effect, because the program makes the partition itself"
        for flag in ("partitioner dirichlet", "alpha 0.1", "min-partition-size 3", "eval-share 0.4")
    ]
    with pytest.raises(
        DataError, match=r"^--image-size 8: --dataset .*:load_data gives the data of each client; resize"
    ):
        run(program, image_size=8)


def test_arguments_that_nothing_takes_are_noted(program: str, sim: Sim) -> None:
    extended(program, OTHER_MEASURES)
    done = sim("centralized", "--program", program, "--args", "lr=0.2")
    assert done.returncode == 0, done.stderr
    note = "sim: note: --args lr=0.2 has no effect: nothing in your program takes it, as a parameter args would"
    assert note in done.stderr.splitlines()


def test_the_default_data_set_beside_a_program_with_data_is_refused(program: str, command: Sim) -> None:
    module = program.removesuffix(".py")
    for name in ("run", "partition", "sweep"):
        done = command(name, "--program", program, "--dataset", "digits", cwd=Path.cwd())
        assert (done.returncode, done.stderr) == (
            2,
            f"sim: --dataset digits: --program {program} has data of its own, {module}:trainloader,testloader; name "
            f"its other parts instead: --dataset digits --model {module}:net\n",
        )


@pytest.mark.slow
def test_what_the_runs_of_a_sweep_or_a_scale_study_note_is_said_once(program: str, command: Sim) -> None:
    module = extended(program, OTHER_MEASURES).removesuffix(".py")
    few = "--program", program, "--engine", "inline"
    of_sweep = "--num-clients", "4", "--num-rounds", "1", "--results-dir", "sweep"
    swept = command("sweep", *few, *of_sweep, "--vary", "lr=0.2,0.3", "--seeds", "2", cwd=Path.cwd())
    assert swept.returncode == 0, swept.stderr
    notes = [line for line in swept.stderr.splitlines() if "has no effect" in line]
    assert notes == [
        f"sim: note: --lr {lr} has no effect: --train {module}:train has no parameter for it" for lr in (0.2, 0.3)
    ]
    grid = "--lr", "0.2", "--num-clients", "2", "--num-actors", "1", "--repeats", "2", "--results-dir", "scale"
    scaled = command("scale", *few, *grid, cwd=Path.cwd())
    assert scaled.returncode == 0, scaled.stderr
    assert [line for line in scaled.stderr.splitlines() if "has no effect" in line] == notes[:1]


ALWAYS = '{"0": {"active": [0], "inactive": [1000], "finish_time": 2000}}'
CAPACITY = '{"0": {"computation": 10, "communication": 9000}}'


def test_settings_of_virtual_time_in_whose_place_another_one_counts_are_noted(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("capacity.json").write_text(CAPACITY)
    Path("online.json").write_text(ALWAYS)
    constant: dict[str, Any] = {"staleness": "constant", "a": 0.3, "b": 2}
    small(
        num_rounds=1,
        strategy="fedasync",
        strategy_args=constant,
        clients_per_round=3,
        concurrency=2,
        devices="fedscale:capacity.json:online.json",
        availability="always",
    )
    notes = [line for line in capsys.readouterr().err.splitlines() if "has no effect" in line]
    assert notes == [
        "sim: note: --devices: the availability file online.json has no effect beside --availability always",
        "sim: note: --clients-per-round 3 has no effect beside --concurrency 2",
        "sim: note: --strategy-args a=0.3 has no effect with staleness=constant",
        "sim: note: --strategy-args b=2 has no effect with staleness=constant",
    ]


def test_a_client_fn_has_no_central_test(small: Small, in_programs: None, capsys: pytest.CaptureFixture[str]) -> None:
    small(client_fn="client_fns:by_context", test_every=2, num_rounds=1, max_local_steps=None)
    assert "--test-every 2 has no effect, because there is no central test" in capsys.readouterr().err
