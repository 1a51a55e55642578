"""Runs of the twelve algorithms against numpy references from the papers alone (tests/algorithm_references.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import algorithm_references as papers
from algorithm_references import BODY, FEATURES, HEAD, INPUTS, NONE, OUTPUTS, Batch, Federation, Vector
from sim import Run, RunConfig, reaper, simulate

pytestmark = pytest.mark.usefixtures("no_pictures", "no_reaper")

ALL_EXAMPLES = 100  # a batch that holds all of a client's examples


@pytest.fixture
def no_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process that ends what user code leaves; the code here starts nothing, and it takes a fifth of a run."""
    monkeypatch.setattr(reaper, "nothing_left", nullcontext)


def examples(client_id: int, count: int, split: int) -> Batch:
    """Return examples of one client; the clients' best models differ."""
    rng = np.random.default_rng([7, client_id, split])
    x = rng.normal(size=(count, INPUTS))
    return x, x @ np.random.default_rng([8, client_id]).normal(size=(INPUTS, OUTPUTS)) + 0.5 * client_id


def initial(shapes: dict[str, tuple[int, ...]] = papers.LINEAR) -> Vector:
    """Return the initial weights; running variances are positive."""
    rng = np.random.default_rng(9)
    w = papers.joined({name: rng.normal(size=shape) * 0.5 for name, shape in shapes.items()})
    return np.where(np.arange(len(w)) >= len(w) - FEATURES, 1 + abs(w), w) if shapes is papers.NORMALISED else w


class Model(nn.Module):
    """Two linear layers in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(INPUTS, FEATURES, dtype=torch.float64)
        self.head = nn.Linear(FEATURES, OUTPUTS, dtype=torch.float64)
        self.begin(papers.LINEAR)

    def begin(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Take the initial weights."""
        arrays = {name: torch.tensor(array) for name, array in papers.named(initial(shapes)).items()}
        self.load_state_dict(arrays, strict=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.body(x))


class NormalisedModel(Model):
    """Two linear layers with BatchNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES, dtype=torch.float64)
        self.begin(papers.NORMALISED)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.norm(self.body(x)))


def train(net: nn.Module, loader: Any, epochs: int, lr: float, momentum: float) -> None:
    """A user's own training that knows nothing of any algorithm."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()


def test(net: nn.Module, loader: Any) -> dict[str, float]:
    """A user's own test."""
    net.eval()
    with torch.no_grad():
        (x, y), *rest = loader
        assert not rest
        return {"loss": nn.functional.mse_loss(net(x), y).item()}


def train_with_decay(net: nn.Module, loader: Any, epochs: int, lr: float, momentum: float) -> None:
    """A user's own training that halves the learning rate after each step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
            scheduler.step()


test.__test__ = False  # type: ignore[attr-defined]


def federation(num_clients: int = 2, num_rounds: int = 2, **settings: Any) -> Federation:
    """Return a federation whose clients have 4, 6, 8 … examples and all train in each round."""
    sizes = [4 + 2 * k for k in range(num_clients)]
    return Federation(
        train=[examples(k, size, 0) for k, size in enumerate(sizes)],
        test=[examples(k, 3, 1) for k in range(num_clients)],
        rounds=[list(range(num_clients))] * num_rounds,
        **{"initial": initial(), "lr": 0.1, "epochs": 2, "batch_size": ALL_EXAMPLES, **settings},
    )


def run_of(
    f: Federation, strategy: str, arguments: dict[str, Any], folder: Path, built_in: bool = False, **settings: Any
) -> Run:
    """Run an algorithm on a federation; all clients evaluate in each round. No checkpoint is read or written."""

    def load_data(partition_id: int, num_partitions: int) -> tuple[Any, Any]:
        assert num_partitions == f.count
        sets = [TensorDataset(*map(torch.tensor, split[partition_id])) for split in (f.train, f.test)]
        return DataLoader(sets[0], batch_size=1, shuffle=False), DataLoader(sets[1], batch_size=ALL_EXAMPLES)

    config = RunConfig(
        num_clients=f.count,
        num_rounds=len(f.rounds),
        local_epochs=f.epochs,
        batch_size=f.batch_size,
        lr=f.lr,
        momentum=f.momentum,
        loss="mse" if built_in else None,
        strategy=strategy,
        strategy_args=arguments,
        fraction_evaluate=1.0,
        engine="inline",
        checkpoint_every=0,
        results_dir=str(folder),
        name=f"run-{len(list(folder.iterdir()))}",
        **{"fraction_fit": None if "clients_per_round" in settings else 1.0, **settings},
    )
    model = NormalisedModel if len(f.initial) == len(initial(papers.NORMALISED)) else Model
    own_train = {1.0: train, 0.5: train_with_decay}[f.lr_decay]
    return simulate(config, model=model, train=None if built_in else own_train, test=test, load_data=load_data)


def weights_of(run: Run) -> Vector:
    """Return the global weights of a finished run."""
    return papers.joined(load_file(run.model_path))


def losses_of(run: Run, name: str) -> list[float]:
    """Return a loss of each client in the last evaluation."""
    frame = run.metrics()
    rows = (frame["phase"] == "evaluate") & (frame["round"] == frame["round"].max()) & (frame["name"] == name)
    return frame[rows & frame["client_id"].notna()].sort_values("client_id")["value"].tolist()


@dataclass(frozen=True)
class Case:
    """A run and what it is compared with.

    Attributes:
        shared: which weights the server averages; the others of its model say nothing.
        has_global: the global model alone is evaluated beside the personal ones.
        built_in: the training is the built-in one instead of the user's own.
        loss: of the model.
        keywords: of the reference, where they are not arguments.
    """

    strategy: str
    arguments: dict[str, Any]
    f: Federation
    shared: Any = ...
    has_global: bool = True
    config: dict[str, Any] | None = None
    built_in: bool = False
    loss: Callable[[Vector, Batch], float] = papers.loss
    keywords: dict[str, Any] | None = None

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in {**self.arguments, **(self.config or {})}.items()]
        words += ["batch 2"] * (self.f.batch_size == 2) + ["momentum"] * (self.f.momentum > 0)
        words += ["decay"] * (self.f.lr_decay < 1)
        return " ".join([self.strategy, *words, *(["built-in train"] * self.built_in)])

    def check(self, run: Run, f: Federation) -> None:
        """Compare the global weights and the losses of all clients."""
        weights, personal = papers.reference(self.strategy, f, {**self.arguments, **(self.keywords or {})})
        assert weights_of(run)[self.shared] == pytest.approx(weights[self.shared], rel=1e-6, abs=1e-6)
        expected = [self.loss(w, batch) for w, batch in zip(personal, f.test, strict=True)]
        assert losses_of(run, "loss") == pytest.approx(expected, rel=1e-6, abs=1e-6)
        if self.has_global:
            expected = [self.loss(weights, batch) for batch in f.test]
            assert losses_of(run, "global_loss") == pytest.approx(expected, rel=1e-6, abs=1e-6)


WHOLE, BATCHES = federation(), federation(batch_size=2)
SLOW = federation(lr=0.02)  # λ = 15 pulls by 0.3 of the distance
HEADS: dict[str, Any] = {"shared": BODY, "has_global": False}  # the head stays with the client
HEAD_IS_LOCAL = {"local_parameters": "head.*"}
BODIES: dict[str, Any] = {"shared": HEAD, "has_global": False}
ONE: dict[str, Any] = {"has_global": False}  # there is one model only
NORMS: dict[str, Any] = {"shared": ~papers.NORM, "has_global": False, "loss": papers.normalised_loss}
NORMALISED = federation(initial=initial(papers.NORMALISED), lr=0.05)
CASES = [
    Case("fedavg", {}, BATCHES, **ONE),
    Case("scaffold", {}, WHOLE, **ONE),
    Case("scaffold", {"option": 1}, WHOLE, **ONE),
    Case("scaffold", {"option": 1, "eta_g": 0.7}, BATCHES, **ONE),
    Case("scaffold", {"option": 2, "eta_g": 0.7}, BATCHES, **ONE),
    Case("scaffold", {}, replace(BATCHES, momentum=0.9, lr=0.02), **ONE),
    Case("scaffold", {}, replace(BATCHES, lr_decay=0.5), **ONE),
    Case("scaffold", {}, replace(BATCHES, lr_decay=0.5, momentum=0.9), **ONE),
    *(
        Case("scaffold", {"option": number}, BATCHES, keywords={"local": HEAD}, config=HEAD_IS_LOCAL, **HEADS)
        for number in (1, 2)
    ),
    Case("scaffold", {"weighting": "examples"}, WHOLE, **ONE),
    Case("fednova", {}, BATCHES, **ONE),
    Case("fednova", {}, replace(BATCHES, momentum=0.9, lr=0.02), **ONE),
    Case("fednova", {"mu": 0.5}, BATCHES, **ONE),
    Case("fednova", {"mu": 0.5}, replace(BATCHES, momentum=0.9, lr=0.02), **ONE),
    Case("fednova", {}, replace(BATCHES, lr_decay=0.5), **ONE),
    Case("fednova", {}, replace(BATCHES, lr_decay=0.5, momentum=0.9), **ONE),
    Case("fednova", {"weighting": "uniform"}, BATCHES, **ONE),
    Case("feddyn", {}, WHOLE, **ONE),
    Case("feddyn", {"alpha": 0.5}, BATCHES, **ONE),
    Case("feddyn", {"alpha": 0.5, "weighting": "examples"}, WHOLE, **ONE),
    Case("moon", {}, WHOLE, **ONE),
    Case("moon", {"mu": 5, "tau": 0.2}, BATCHES, **ONE),
    Case("moon", {"mu": 5, "weighting": "uniform"}, WHOLE, **ONE),
    Case("ditto", {}, WHOLE),
    Case("ditto", {"lambda": 2.0, "personal_epochs": 3}, BATCHES),
    Case("ditto", {"lambda": 2.0, "weighting": "examples"}, WHOLE),
    Case("fedper", {}, WHOLE, **HEADS),
    Case("fedper", {"weighting": "uniform"}, BATCHES, config=HEAD_IS_LOCAL, **HEADS),
    Case("fedrep", {}, WHOLE, **HEADS),
    Case("fedrep", {"head_epochs": 3, "body_epochs": 2, "weighting": "examples"}, BATCHES, **HEADS),
    Case("lg-fedavg", {}, WHOLE, **BODIES),
    Case("lg-fedavg", {"weighting": "uniform"}, BATCHES, config={"local_parameters": "body.*"}, **BODIES),
    Case("fedbabu", {}, WHOLE),
    Case("fedbabu", {"fine_tune": "whole"}, WHOLE),
    Case("fedbabu", {"fine_tune": "body", "fine_tune_epochs": 2, "weighting": "uniform"}, BATCHES),
    Case("fedbn", {}, NORMALISED, **NORMS),
    Case("fedbn", {"weighting": "uniform"}, replace(NORMALISED, batch_size=2), **NORMS),
    Case("apfl", {}, WHOLE),
    Case("apfl", {"alpha": 0.25, "weighting": "examples"}, BATCHES),
    Case("apfl", {"adaptive": True}, BATCHES),
    Case("pfedme", {}, SLOW),
    Case("pfedme", {"lambda": 2.0, "K": 3, "eta": 0.2, "beta": 0.6}, BATCHES),
    Case("pfedme", {"weighting": "examples"}, SLOW),
]
_NAMES = dict.fromkeys(case.strategy for case in CASES)
_LAST = {case.strategy: case for case in CASES}
CASES += [replace(_LAST[name], built_in=True) for name in _NAMES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_clients_against_the_papers(case: Case, tmp_path: Path) -> None:
    run = run_of(case.f, case.strategy, case.arguments, tmp_path, case.built_in, **(case.config or {}))
    case.check(run, case.f)


PARTIAL = federation(num_clients=10, num_rounds=6)  # 12 places for 10 clients: somebody comes back
PARTIAL_CASES = [
    Case("fedavg", {}, PARTIAL, **ONE),
    Case("scaffold", {}, PARTIAL, **ONE),
    Case("scaffold", {"option": 1}, PARTIAL, **ONE),
    Case("feddyn", {"alpha": 0.5}, PARTIAL, **ONE),
    Case("moon", {"mu": 5}, PARTIAL, **ONE),
    Case("ditto", {"lambda": 2.0}, PARTIAL),
    Case("fedper", {}, PARTIAL, **HEADS),
    Case("fedrep", {}, PARTIAL, **HEADS),
    Case("lg-fedavg", {}, PARTIAL, **BODIES),
    Case("apfl", {}, PARTIAL),
    Case("pfedme", {"beta": 0.6}, replace(PARTIAL, lr=0.02)),
]


@pytest.mark.parametrize("case", PARTIAL_CASES, ids=str)
def test_two_of_ten_clients_a_round_against_the_papers(case: Case, tmp_path: Path) -> None:
    """SCAFFOLD's server variate and FedDyn's h are divided by all ten; who is away keeps what it had."""
    run = run_of(case.f, case.strategy, case.arguments, tmp_path, clients_per_round=2, evaluate_every=6)
    fits = run.clients()
    fits = fits[fits["phase"] == "fit"]
    rounds = [sorted(part["client_id"].tolist()) for _, part in fits.groupby("round")]
    assert [len(clients) for clients in rounds] == [2] * 6
    case.check(run, replace(case.f, rounds=rounds))


@dataclass(frozen=True)
class Reduction:
    """Settings with which an algorithm is FedAvg, for its global model.

    Attributes:
        keywords: of the reference, where they are not arguments.
        to_the_bit: with the same seed, the file of the model is the same.
    """

    strategy: str
    arguments: dict[str, Any]
    f: Federation = BATCHES
    config: dict[str, Any] | None = None
    keywords: dict[str, Any] | None = None
    to_the_bit: bool = False

    def __str__(self) -> str:
        return self.strategy


EXAMPLES = {"weighting": "examples"}
NOTHING_LOCAL: dict[str, Any] = {"config": {"local_parameters": ""}, "to_the_bit": True}
REDUCTIONS = [
    Reduction("scaffold", {"option": 1}, federation(num_clients=1, batch_size=2)),
    Reduction("scaffold", {"option": 2}, federation(num_clients=1, batch_size=2)),
    Reduction("fednova", {}, WHOLE),  # all clients take two steps
    Reduction("fednova", {}, replace(WHOLE, momentum=0.9, lr=0.02)),
    Reduction("moon", {"mu": 0}),
    Reduction("ditto", EXAMPLES, to_the_bit=True),
    Reduction("apfl", EXAMPLES, to_the_bit=True),
    Reduction("fedper", {}, keywords={"local": NONE}, **NOTHING_LOCAL),
    Reduction("lg-fedavg", {}, keywords={"local": NONE}, **NOTHING_LOCAL),
    # Each K of 1 step begins at θ = w, where the gradient of λ/2 ‖θ − w‖² is 0; w − ηλ (w − θ) = θ.
    Reduction("pfedme", {"K": 1, "lambda": 4.0, "eta": 0.25, **EXAMPLES}),
]


@pytest.mark.parametrize("case", REDUCTIONS, ids=str)
def test_reductions_to_fedavg(case: Reduction, tmp_path: Path) -> None:
    run = run_of(case.f, case.strategy, case.arguments, tmp_path, **(case.config or {}))
    plain = run_of(case.f, "fedavg", {}, tmp_path)
    assert weights_of(plain) == pytest.approx(papers.fedavg(case.f)[0], rel=1e-6, abs=1e-6)
    assert weights_of(run) == pytest.approx(weights_of(plain), rel=1e-6, abs=1e-6)
    assert not case.to_the_bit or run.model_path.read_bytes() == plain.model_path.read_bytes()


@pytest.mark.parametrize("clients_per_round", [2, 10])
def test_the_first_round_of_feddyn_without_regularization(clients_per_round: int, tmp_path: Path) -> None:
    """With α → 0 the clients train as in FedAvg, but the server does not average as in FedAvg.

    h¹ / α = −(1/N) Σ_{k ∈ P} (θ_k − θ⁰) = −(|P| / N) (θ̄ − θ⁰) does not depend on α, so that the new model
    θ̄ − h¹ / α is θ̄ + (|P| / N) (θ̄ − θ⁰), where θ̄ is the mean over the |P| clients of the round.
    """
    f = federation(num_clients=10, num_rounds=1)
    run = run_of(f, "feddyn", {"alpha": 1e-8}, tmp_path, clients_per_round=clients_per_round)
    fits = run.clients()
    clients = fits[fits["phase"] == "fit"]["client_id"].tolist()
    mean = papers.fedavg(replace(f, rounds=[clients]), "uniform")[0]
    expected = mean + clients_per_round / 10 * (mean - f.initial)
    assert weights_of(run) == pytest.approx(expected, rel=1e-6, abs=1e-6)


# The references themselves.


def test_the_gradient_of_the_references() -> None:
    w, batch, tiny = initial(), examples(0, 5, 0), 1e-6
    slopes = [
        (papers.loss(w + step, batch) - papers.loss(w - step, batch)) / (2 * tiny) for step in np.eye(len(w)) * tiny
    ]
    assert papers.gradient(w, batch) == pytest.approx(np.array(slopes), abs=1e-7)


@pytest.mark.parametrize("case", REDUCTIONS, ids=str)
def test_reductions_of_the_references(case: Reduction) -> None:
    strategy = "fedper" if case.strategy == "lg-fedavg" else case.strategy
    found = papers.reference(strategy, case.f, {**case.arguments, **(case.keywords or {})})[0]
    assert found == pytest.approx(papers.fedavg(case.f)[0], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_coefficients_of_fednova(steps: int) -> None:
    """The closed forms of Wang et al. 2020, section 4: SGD, momentum ρ, a decaying rate, a proximal term."""
    f, rho, mu = federation(), 0.9, 0.5
    assert papers.coefficient_sum(f, steps, 0) == pytest.approx(steps)
    momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert papers.coefficient_sum(replace(f, momentum=rho), steps, 0) == pytest.approx(momentum)
    decayed = 2 * (1 - 0.5**steps)
    assert papers.coefficient_sum(replace(f, lr_decay=0.5), steps, 0) == pytest.approx(decayed)
    proximal = (1 - (1 - f.lr * mu) ** steps) / (f.lr * mu)
    assert papers.coefficient_sum(f, steps, mu) == pytest.approx(proximal)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_gives_one_client_its_own_model(momentum: float) -> None:
    f = federation(num_clients=1, batch_size=2, momentum=momentum, lr=0.02)
    trained = f.initial
    for _ in f.rounds:
        trained = f.sgd(trained, f.batches(0), lambda v, b, w=trained: papers.gradient(v, b) + 0.5 * (v - w))  # type: ignore[misc]
    assert papers.fednova(f, 0.5)[0] == pytest.approx(trained)


@pytest.mark.parametrize(("strategy", "arguments"), [("scaffold", {}), ("feddyn", {"alpha": 3.0})])
def test_scaffold_and_feddyn_find_the_common_minimum(strategy: str, arguments: dict[str, Any]) -> None:
    """What FedAvg with several local steps does not: the gradient of the mean loss vanishes."""
    f = federation(num_rounds=300, epochs=5, lr=0.05)

    def slope(w: Vector) -> float:
        return float(np.abs(sum(papers.gradient(w, batch) for batch in f.train)).max())

    assert slope(papers.reference(strategy, f, arguments)[0]) < 1e-4
    assert slope(papers.fedavg(f, "uniform")[0]) > 1


def test_personal_models_of_the_references() -> None:
    """λ = 0 and α = 1 train alone; α = 0 is the global model; nothing to personalise is the global model."""
    alone = [f_k.sgd(f_k.initial, f_k.batches(0) * 2) for f_k in (replace(WHOLE, train=[part]) for part in WHOLE.train)]
    assert papers.ditto(WHOLE, lam=0.0)[1] == pytest.approx(np.array(alone))
    assert papers.apfl(WHOLE, alpha=1.0)[1] == pytest.approx(np.array(alone))
    assert papers.fedper(WHOLE, ~NONE)[1] == pytest.approx(np.array(alone))
    w, personal = papers.apfl(WHOLE, alpha=0.0)
    assert personal == pytest.approx(np.array([w, w]))
    w, personal = papers.fedbabu(WHOLE, fine_tune_epochs=0)
    assert personal == pytest.approx(np.array([w, w]))
    assert np.array_equal(w[HEAD], WHOLE.initial[HEAD])


def test_the_step_with_batch_norm_is_that_of_pytorch() -> None:
    net, f = NormalisedModel(), NORMALISED
    loader = [tuple(map(torch.tensor, f.train[0]))]
    train(net, loader, 3, f.lr, 0.0)
    w = f.initial
    for batch in f.batches(0, 3):
        w = papers.normalised_step(w, batch, f.lr)
    expected = papers.joined({name: value.numpy() for name, value in net.state_dict().items()})
    assert w == pytest.approx(expected, rel=1e-9)
    held = [tuple(map(torch.tensor, f.test[0]))]
    assert papers.normalised_loss(w, f.test[0]) == pytest.approx(test(net, held)["loss"])
