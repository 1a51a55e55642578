"""Algorithms as a user starts them: the same bits in every way, states on disk, what stays with clients, bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from conftest import Small, sha256
from federation import Federation
from sim import Run, RunConfig, RunError, resume, simulate
from sim.algorithms.by_name import ALGORITHMS
from sim.algorithms.local_parameters import classifier_of, local_names
from sim.config import choices
from sim.errors import ConfigError, PluginError, RunFolderError
from sim.run_folder.client_states import ClientStateError, StatesInFolder, ValidStates
from sim.run_folder.records import RoundRecord
from sim.training.step_hooks import Step, watched

# Small steps, because pFedMe multiplies the learning rate by 15; each client evaluates its own model.
SHARED: dict[str, Any] = {"lr": 0.02, "fraction_evaluate": 0.5, "clients_per_round": 6}
PERSONAL = ("fedrep", "fedbn", "apfl", "pfedme")


def settings(strategy: str, **more: Any) -> dict[str, Any]:
    model = {"model": "own:WithBatchNorm"} if strategy == "fedbn" else {}
    return {**SHARED, "strategy": strategy, **model, **more}


def files(run: Run) -> dict[str, bytes]:
    """Weights, metrics and the valid states of the clients of a run."""
    states = StatesInFolder(run.client_states_path)
    last = {client_id: rounds[-1] for client_id, rounds in states.rounds().items()}
    found = {str(path): states.path(*path).read_bytes() for path in last.items()}
    return {"weights": run.model_path.read_bytes(), "metrics": run.metrics_path.read_bytes(), **found}


def stop_after(number: int) -> Callable[[RoundRecord], None]:
    def stop(record: RoundRecord) -> None:
        if record.round == number:
            raise KeyboardInterrupt

    return stop


def test_the_names_are_those_of_the_settings() -> None:
    assert tuple(ALGORITHMS) == choices.ALGORITHMS


@pytest.mark.parametrize("strategy", ["scaffold", "fednova", "moon", "fedrep", "fedbn", "apfl", "pfedme"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    small: Small, in_programs: None, tmp_path: Path, strategy: str
) -> None:
    """test_engines.py resumes SCAFFOLD on Ray; scripts/determinism.sh takes all algorithms."""
    whole = small(name="whole", num_rounds=3, **settings(strategy))
    with pytest.raises(KeyboardInterrupt):
        small(name="cut", num_rounds=3, on_record=stop_after(2), **settings(strategy))
    # What round 3 had written when the run ended is not what the resumed round 3 begins from.
    for path in (tmp_path / "results" / "cut" / "client_states").glob("*.2.safetensors"):
        shutil.copy(path, path.with_name(path.name.replace(".2.", ".3.")))
    assert files(resume(Run(tmp_path / "results" / "cut"))) == files(whole)
    assert bool(list(whole.client_states_path.glob("*"))) == (strategy != "fednova")
    metrics = whole.metrics()
    own = metrics[metrics.name == "global_accuracy"]
    assert bool(len(own)) == (strategy in PERSONAL)


@pytest.mark.parametrize("server_strategy", ["multikrum", "qfedavg"])
def test_a_server_step_of_the_newer_form_is_resumed(small: Small, server_strategy: str) -> None:
    """The clients of FedBABU need the settings of the training for their evaluation, too."""
    shared = settings("fedbabu", server_strategy=server_strategy)
    whole = small(name="whole", num_rounds=3, **shared)
    assert files(resume(small(name="cut", num_rounds=2, **shared), num_rounds=3)) == files(whole)


def test_a_robust_server_step_weights_clients_as_the_algorithm_says(small: Small) -> None:
    """Multi-Krum that keeps all clients is their mean."""
    found = {}
    for server_strategy in ("fedavg", "multikrum"):
        for weighting in ("examples", "uniform"):
            arguments = {"server_strategy": server_strategy, "strategy_args": {"weighting": weighting}}
            run = small(name=f"{server_strategy}-{weighting}", **settings("ditto", **arguments))
            found[server_strategy, weighting] = np.concatenate([a.ravel() for a in load_file(run.model_path).values()])
    for weighting in ("examples", "uniform"):
        assert np.abs(found["multikrum", weighting] - found["fedavg", weighting]).max() < 1e-6
    assert np.abs(found["multikrum", "examples"] - found["multikrum", "uniform"]).max() > 1e-4


@pytest.mark.nightly
def test_clients_of_a_network_keep_their_states(federation: Federation, small: Small) -> None:
    shared = ["--num-clients", "2", "--local-epochs", "1", "--fraction-evaluate", "1", "--strategy", "scaffold"]
    shared += ["--local-parameters", "fc3"]
    shared += ["--max-local-steps", "3"]
    server = federation.server(*shared, "--num-rounds", "2", "--lr", "0.05", "--batch-size", "16", "--min-clients", "2")
    clients = [federation.client(i, "--num-clients", "2") for i in range(2)]
    assert [program.end() for program in (server, *clients)] == [0] * 3, server.lines
    simulated = small(
        num_clients=2,
        clients_per_round=2,
        num_rounds=2,
        strategy="scaffold",
        local_parameters="fc3",
        fraction_evaluate=1.0,
        lr=0.05,
        batch_size=16,
    )
    assert sha256(federation.run.model_path) == sha256(simulated.model_path)
    columns = ["round", "phase", "client_id", "num_examples", "loss", "accuracy", "status"]
    assert federation.run.clients()[columns].equals(simulated.clients()[columns])
    assert not federation.run.client_states_path.exists()


def test_what_stays_with_clients_is_averaged_by_nobody(small: Small) -> None:
    run = small(num_rounds=3, **settings("fedavg", local_parameters="fc3.*", fraction_evaluate=1.0))
    weights = load_file(run.model_path)
    states = StatesInFolder(run.client_states_path)
    kept = [states.read(client_id, rounds[-1])["kept"] for client_id, rounds in states.rounds().items()]
    assert len(kept) > 4
    assert all([array.shape for array in each] == [(10, 84), (10,)] for each in kept)
    assert len({each[0].tobytes() for each in kept}) == len(kept)
    assert not any(np.array_equal(each[0], weights["fc3.weight"]) for each in kept)
    rounds = run.rounds()
    assert rounds.eval_accuracy.iloc[-1] > rounds.test_accuracy.iloc[-1]  # the central test has the initial classifier


def test_max_local_steps_of_pfedme_counts_batches(small: Small) -> None:
    shared = settings("pfedme", num_rounds=1, fraction_evaluate=0.0, strategy_args={"K": 5, "eta": 0.02})
    few, more = (small(name=str(steps), **{**shared, "max_local_steps": steps}) for steps in (1, 3))
    start = load_file(small(name="start", **{**shared, "strategy_args": {"K": 1, "eta": 1e-30}}).model_path)
    moved = [sum(np.abs(array - start[n]).sum() for n, array in load_file(r.model_path).items()) for r in (few, more)]
    assert 0 < moved[0] < moved[1]


def test_a_warm_start_averages_everything(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"strategy_args": {"warm_start_rounds": 2}}
    warm = small(name="warm", **settings("lg-fedavg", num_rounds=2, **arguments))
    assert " are averaged in all rounds\n" in capsys.readouterr().err
    plain = small(name="plain", **settings("fedavg", num_rounds=2))
    one, other = load_file(warm.model_path), load_file(plain.model_path)
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-6  # sums of kept arrays are in float64
    assert not list(warm.client_states_path.glob("*"))


def test_states_that_no_checkpoint_needs_are_removed(small: Small) -> None:
    run = small(**settings("scaffold", num_rounds=5, clients_per_round=10))
    assert StatesInFolder(run.client_states_path).rounds() == {client_id: [4, 5] for client_id in range(10)}
    run = small(name="none", **settings("scaffold", num_rounds=3, clients_per_round=10, checkpoint_every=0))
    assert StatesInFolder(run.client_states_path).rounds() == {client_id: [3] for client_id in range(10)}


def test_valid_states_are_those_of_the_round(tmp_path: Path) -> None:
    folder = StatesInFolder(tmp_path)
    for client_id, number in ((0, 1), (0, 3), (1, 2), (2, 4)):
        folder.write(client_id, number, {"c": [np.full(2, number, np.float32)]})
    valid = ValidStates(folder, {0: 1, 1: 2}, 3)
    assert folder.rounds() == {0: [1], 1: [2]}
    folder.write(0, 4, {"c": [np.zeros(2, np.float32)]})
    valid.renew({0: 4, 1: 2}, 4)
    valid.prune(3)
    assert folder.rounds() == {0: [1, 4], 1: [2]}
    valid.prune(4)
    assert folder.rounds() == {0: [4], 1: [2]}


def test_a_damaged_or_missing_state_is_named(small: Small, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small(name="cut", num_rounds=3, on_record=stop_after(2), **settings("scaffold", clients_per_round=10))
    run = Run(tmp_path / "results" / "cut")
    path = run.client_states_path / "3.2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"round 3 \(fit\): .*3\.2\.safetensors: the state of client 3 is damaged"):
        resume(run, on_client_error="drop")
    path.unlink()
    with pytest.raises(RunFolderError, match=r"3\.2\.safetensors: the state of client 3 is missing"):
        resume(run)


def test_a_state_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        ClientStateError, match=r"client 5 cannot be written: .*every node of a cluster needs the folder"
    ):
        StatesInFolder(tmp_path / "gone").write(5, 1, {"c": [np.zeros(2)]})


class Own(nn.Module):
    """A model that is not built in, whose last layer comes first in the order of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 30 * 30, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(images)).flatten(1))  # type: ignore[no-any-return]


def own_train(net: nn.Module, loader: Any, epochs: int, device: torch.device, lr: float) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images.to(device)), labels.to(device)).backward()
            optimizer.step()


def manual_train(net: nn.Module, loader: Any, epochs: int, device: torch.device, lr: float) -> None:
    for images, labels in loader:
        nn.functional.cross_entropy(net(images.to(device)), labels.to(device)).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(lr * (0 if parameter.grad is None else parameter.grad))
                parameter.grad = None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "fednova", "ditto", "fedprox"])
def test_an_own_train_is_corrected_as_the_built_in_one_is(tmp_path: Path, no_pictures: None, strategy: str) -> None:
    """The program knows nothing of the algorithm; its optimizer is torch.optim.SGD."""
    given = {"num_clients": 5, "clients_per_round": 3, "num_rounds": 2, "local_epochs": 1, "engine": "inline"}
    config = RunConfig(**given, strategy=strategy, lr=0.05, batch_size=16, results_dir=str(tmp_path))
    if strategy == "fedprox":
        config = replace(config, strategy_args={"proximal_mu": 2.0})
    built_in, own = simulate(config), simulate(config, train=own_train)
    one, other = load_file(built_in.model_path), load_file(own.model_path)
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-6


@pytest.mark.slow
def test_a_train_without_optimizer_cannot_be_corrected(tmp_path: Path) -> None:
    config = RunConfig(num_clients=5, strategy="scaffold", lr=0.05, engine="inline", results_dir=str(tmp_path / "r"))
    with pytest.raises(PluginError, match=r"scaffold: train took no step of an optimizer of torch.optim"):
        simulate(config, train=manual_train)
    assert not (tmp_path / "r").exists()


def test_names_of_local_parameters() -> None:
    net = Own()
    everything = list(net.state_dict())
    assert classifier_of(net) == "head"
    assert local_names(net, None, "classifier", "fedper") == ["head.weight", "head.bias"]
    assert local_names(net, None, "body", "lg-fedavg") == everything[:-2]
    assert local_names(net, None, "batchnorm", "fedbn") == [name for name in everything if name.startswith("norm.")]
    assert local_names(net, "norm, *.bias", "", "fedavg") == [
        name for name in everything if name.startswith("norm.") or name.endswith(".bias")
    ]
    assert local_names(net, "", "classifier", "fedper") == []
    with pytest.raises(ConfigError, match=r"--local-parameters foo: matches no parameter of the model; it has stem"):
        local_names(net, "foo", "", "fedavg")
    with pytest.raises(ConfigError, match="all parameters of the model would stay with the clients"):
        local_names(net, "*", "", "fedavg")
    with pytest.raises(ConfigError, match="fedbn: BatchNorm layers stay with the clients, but the model has none"):
        local_names(nn.Sequential(nn.Linear(2, 2)), None, "batchnorm", "fedbn")


@pytest.mark.slow
def test_steps_of_an_optimizer_with_a_closure_are_corrected() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight * 2).sum()
        loss.backward()
        return loss

    def add_one(index: int, parameter: torch.Tensor, rate: float) -> None:
        assert (index, rate) == (0, 0.5)
        assert parameter.grad is not None
        parameter.grad += 1

    with watched([weight], before=add_one) as steps:
        optimizer.step(closure)
    assert weight.item() == 1 - 0.5 * 3
    optimizer.step(closure)
    assert (steps.count, steps.taken, steps.optimizers) == (1, [[Step(0.5, 0.5, is_first=True)]], {"SGD"})
    assert steps.total_rate(0) == 0.5
    steps.taken[0] += [Step(0.5, 0.5)] * 2
    assert steps.total_rate(0) == 0.5 + 0.75 + 0.875  # a constant gradient of 1, with momentum


class _Around(torch.optim.Optimizer):
    """An optimizer around another one, which calls it with or without the closure, as Lookahead and SAM do."""

    def __init__(self, inner: torch.optim.Optimizer, *, hands_on: bool) -> None:
        super().__init__(inner.param_groups, {})
        self._inner, self._hands_on = inner, hands_on

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None and not self._hands_on:
            closure()
            closure = None
        self._inner.step(closure)


@pytest.mark.parametrize("hands_on", [True, False])
@pytest.mark.parametrize("with_closure", [True, False])
def test_a_step_of_two_optimizers_is_corrected_once(hands_on: bool, with_closure: bool) -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = _Around(torch.optim.SGD([weight], lr=0.5), hands_on=hands_on)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight * 2).sum()
        loss.backward()
        return loss

    after = []
    with watched([weight], before=_add_one, after=after.append) as steps:
        for _ in range(2):
            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    assert weight.item() == 1 - 2 * 0.5 * 3
    assert (steps.count, after) == (2, [[0], [0]])


def _add_one(index: int, parameter: torch.Tensor, rate: float) -> None:
    assert parameter.grad is not None
    parameter.grad += 1


def test_an_optimizer_that_maximizes_is_corrected_with_the_sign_of_the_loss() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5, maximize=True)
    with watched([weight], before=_add_one):
        (-2 * weight).sum().backward()
        optimizer.step()
    assert weight.item() == 1 - 0.5 * 3


def test_each_gradient_of_lbfgs_is_corrected() -> None:
    """LBFGS evaluates its closure several times in a step; with the correction it finds the minimum of w² + w."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.LBFGS([weight], lr=1.0, max_iter=10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with watched([weight], before=_add_one):
        optimizer.step(closure)
    assert weight.item() == pytest.approx(-0.5, abs=1e-4)


BAD = [
    (["--strategy", "scaffold", "--strategy-args", "option=3"], "option = 3: must be a whole number from 1 to 2"),
    (["--strategy", "scaffold", "--strategy-args", "option=two"], "option = two: must be a whole number from 1 to 2"),
    (["--strategy", "apfl", "--strategy-args", "adaptive=1"], "adaptive = 1: must be true or false"),
    (["--strategy", "ditto", "--strategy-args", "lambda=-1"], "lambda = -1: must be a number of at least 0"),
    (["--strategy", "ditto", "--strategy-args", "mu=1"], "ditto has no such argument; it has lambda, personal_epochs"),
    (["--strategy", "fedper", "--strategy-args", "weighting=all"], "weighting = all: must be examples or uniform"),
    (
        ["--strategy", "scaffold", "--server-strategy", "krum"],
        "--server-strategy krum: compares the weights of clients",
    ),
    (["--strategy", "scaffold", "--dp", "fixed"], "the clients of scaffold send something else"),
    (["--strategy", "scaffold", "--server-strategy", "fedadam", "--server-args", "eat=1"], "--server-args"),
    (["--server-strategy", "fedadam"], "--server-strategy fedadam: belongs to --strategy scaffold or fednova"),
    (["--server-args", "eta=1"], "--server-args eta: belong to --strategy scaffold"),
    (["--strategy", "ditto", "--local-parameters", "fc3"], "has a whole model of its own already"),
    (["--strategy", "moon", "--strategy-args", "features=fc9"], "features = fc9: the model has no such module"),
    (["--strategy", "fedrep", "--stragglers", "0.5"], "which --strategy-args of fedrep replaces"),
    (["--strategy", "fedrep", "--client", "own:Travelling"], "has its own client around train"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_what_cannot_work_is_one_line(
    words: list[str], message: str, in_programs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sim import cli

    results = tmp_path / "results"
    assert cli.main(["run", *words, "--engine", "inline", "--results-dir", str(results)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not results.exists()


def test_other_optimizers_and_epochs_are_explained(small: Small) -> None:
    run = small(name="adam", optimizer="adam", num_rounds=1, strategy="scaffold")
    assert "scaffold: is defined for SGD, but Adam takes the steps; its control variates" in run.log_path.read_text()
    run = small(name="fedrep", num_rounds=1, strategy="fedrep", strategy_args={"head_epochs": 1})
    log = run.log_path.read_text()
    assert "fedrep: head_epochs = 1 and body_epochs = 1 replace --local-epochs 1" in log
    assert "note: fc3.weight, fc3.bias are not averaged; the central test uses their initial values" in log


def test_states_of_wrong_arrays_are_told_apart(tmp_path: Path) -> None:
    folder = StatesInFolder(tmp_path)
    folder.write(1, 1, {"v": [np.zeros(2, np.float32), np.ones((2, 2))], "alpha": [np.array([0.5])]})
    state = folder.read(1, 1)
    assert list(state) == ["alpha", "v"]
    assert [array.tolist() for array in state["v"]] == [[0, 0], [[1, 1], [1, 1]]]
    save_file({"v.0": np.zeros(2, np.float32)}, folder.path(2, 1))
    with pytest.raises(ClientStateError, match=r"2\.1\.safetensors: the state of client 2 is damaged"):
        folder.read(2, 1)


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four texts, each a client of its own."""
    folder = tmp_path_factory.mktemp("poems")
    lines = ["the rose is red, the violet is blue", "the sea is deep and the sky is high", "a cat sat on a mat all day"]
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n".join((lines[number % 3 :] + lines) * 8), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [name for name in ALGORITHMS if name != "fedbn"])
def test_each_learns_regression_and_text(small: Small, poems: Path, strategy: str) -> None:
    """Columns of numbers with a loss of regression, and sequences of characters through an LSTM."""
    regression = {"dataset": "diabetes", "model": "Mlp", "loss": "huber", "num_clients": 5, "lr": 0.02}
    text = {"dataset": "text", "data_dir": str(poems), "model": "CharLstm", "num_clients": 4, "lr": 0.3}
    text |= {"model_args": {"hidden_size": 16, "embedding_size": 4}, "max_local_steps": 8}
    if strategy == "pfedme":  # lr · lambda below 1
        regression, text = {**regression, "lr": 0.05}, {**text, "lr": 0.05}
    for name, task in {"regression": regression, "text": text}.items():
        shared = {"clients_per_round": None, "fraction_fit": 1.0, "fraction_evaluate": 1.0, "num_rounds": 2}
        run = small(name=name, strategy=strategy, **shared, **task)
        rounds = run.rounds()
        before, after = rounds.test_loss.iloc[0], rounds.eval_loss.iloc[-1]  # of the clients' own models
        assert after < before, (name, before, after)
