"""Unusual programs under the algorithms: exactly what the usual form gives, or one line that says why not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program_text import extended
from program_text import run as run_program
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sim import Run, RunConfig, simulate
from sim.algorithms.local_parameters import classifier_of
from sim.algorithms.moon import Moon
from sim.errors import PluginError
from sim.training.step_hooks import watched

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def steps(
    net: nn.Module, loader: Any, epochs: int, optimizers: list[torch.optim.Optimizer], outputs: Any = None
) -> None:
    for _ in range(epochs):
        for x, y in loader:
            net.zero_grad()
            nn.functional.cross_entropy((outputs or net)(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()


def plain(net: nn.Module, loader: Any, epochs: int, lr: float) -> None:
    steps(net, loader, epochs, [torch.optim.SGD(net.parameters(), lr=lr)])


def by_hand(net: nn.Module, loader: Any, lr: float) -> None:
    for x, y in loader:
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(lr * parameter.grad)  # type: ignore[operator]


def copied(net: nn.Module, loader: Any, epochs: int, lr: float) -> None:
    other = copy.deepcopy(net)
    plain(other, loader, epochs, lr)
    net.load_state_dict(other.state_dict())


def accumulating(net: nn.Module, loader: Any, epochs: int, lr: float) -> None:
    """A step for every two batches, of which the dry run and client 0 have one."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(epochs):
        for number, (x, y) in enumerate(loader):
            nn.functional.cross_entropy(net(x), y).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Run two rounds of three clients, which have 2, 5 and 6 examples."""

    def start(strategy: str, train: Any = plain, model: Any = Net, drop_last: bool = False, **settings: Any) -> Run:
        def load_data(partition_id: int, num_partitions: int) -> Any:
            rng = np.random.default_rng(partition_id)
            size = (2, 5, 6)[partition_id]
            sets = TensorDataset(torch.tensor(rng.normal(size=(size, 3)), dtype=torch.float32), torch.arange(size) % 2)
            loader = DataLoader(sets, batch_size=3, shuffle=True, drop_last=drop_last)
            return loader, DataLoader(sets, batch_size=size)

        shared = {"num_clients": 3, "num_rounds": 2, "local_epochs": 2, "fraction_fit": 1.0, "engine": "inline"}
        config = RunConfig(**{**shared, "lr": 0.05, "strategy": strategy, "results_dir": str(tmp_path), **settings})
        return simulate(config, model=model, train=train, load_data=load_data)

    return start


def weights_of(run: Run) -> dict[str, Any]:
    return load_file(run.model_path)


@pytest.mark.parametrize("train", [by_hand, copied])
@pytest.mark.parametrize("strategy", ["fednova", "ditto", "apfl", "pfedme"])
def test_a_train_whose_steps_nobody_sees_is_refused(run: Callable[..., Run], strategy: str, train: Any) -> None:
    with pytest.raises(PluginError, match=f"--strategy {strategy}: train took no step of an optimizer of torch.optim"):
        run(strategy, train)


@pytest.mark.parametrize("strategy", ["scaffold", "fednova", "feddyn", "ditto", "apfl"])
def test_a_train_that_accumulates_gradients_steps_where_there_are_enough_batches(
    run: Callable[..., Run], strategy: str
) -> None:
    first = run(strategy, accumulating, num_rounds=1)
    assert first.clients().status.tolist() == ["ok"] * 3
    second = run(strategy, accumulating, num_rounds=2)
    assert not np.array_equal(*(weights_of(each)["head.weight"] for each in (first, second)))


@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        ("scaffold", {}),
        ("scaffold", {"option": 1}),
        ("fednova", {}),
        ("feddyn", {}),
        ("ditto", {}),
        ("pfedme", {}),
        ("qfedavg", {}),
    ],
)
def test_a_client_whose_examples_fill_no_batch_sends_what_it_got(
    run: Callable[..., Run], strategy: str, arguments: dict[str, Any]
) -> None:
    """The loader drops a batch that is not full, so that client 0 has none of 3 examples, and nobody has one of 9."""
    settings = {"drop_last": True, "strategy_args": arguments, "batch_size": 9}
    one, other = (weights_of(run(strategy, num_rounds=number, **settings)) for number in (1, 3))
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-7
    trained = weights_of(run(strategy, num_rounds=1, **{**settings, "batch_size": 3}))
    assert min(np.abs(one[name] - trained[name]).max() for name in one) > 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        [{"momentum": 0.9}, {"momentum": 0.9}],  # an optimizer for each epoch, which begins without velocity
        [{"momentum": 0.9, "nesterov": True}],
        [{"momentum": 0.5}, {"momentum": 0.9}, {"momentum": 0.0}],
        [{"momentum": 0.5, "dampening": 0.25}, {"momentum": 0.0, "dampening": 0.25}],
    ],
)
def test_the_total_rate_is_how_far_a_gradient_of_one_leads(settings: list[dict[str, Any]]) -> None:
    weights = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2)]
    with watched(weights) as steps:
        for each in settings:
            # The other weight has an optimizer of its own, which comes last in each step.
            optimizers = [torch.optim.SGD(weights[:1], lr=0.5, **each), torch.optim.SGD(weights[1:], lr=0.25)]
            for _ in range(3):
                for weight, optimizer in zip(weights, optimizers, strict=True):
                    weight.grad = torch.ones(1, dtype=torch.float64)
                    optimizer.step()
    assert [steps.total_rate(index) for index in range(2)] == [-weight.item() for weight in weights]


@pytest.mark.parametrize("scale", [1.0, 1024.0, math.inf])
def test_a_correction_is_that_of_the_gradient_without_the_factor_of_a_grad_scaler(scale: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale if scale < math.inf else 2.0**100)
    seen = []

    def add_one(index: int, parameter: torch.Tensor, rate: float) -> None:
        assert parameter.grad is not None
        parameter.grad += 1

    with watched([weight], before=add_one, after=seen.extend) as steps:
        scaler.scale((weight * (2.0 if scale < math.inf else 2.0**100)).sum()).backward()
        scaler.step(optimizer)
    is_taken = scale < math.inf  # a step that is not finite is skipped
    assert weight.tolist() == [1 - 0.5 * 3 if is_taken else 1.0] * 2
    assert (steps.count, seen) == ((1, [0]) if is_taken else (0, []))


def test_weights_of_an_earlier_step_are_noticed() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    for undoes in (False, True):
        with watched([weight]) as steps:
            weight.sum().backward()
            optimizer.step()
            if undoes:
                with torch.no_grad():
                    weight.copy_(torch.ones(2))
        assert steps.are_undone is undoes


SPARSE = """
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(3, 2, sparse=True)

    def forward(self, x):
        return self.words((x > 0).long().sum(1).clamp(max=2))

def train(net, loader, epochs):
    optimizer = torch.optim.SparseAdam(net.parameters(), lr=0.01)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
"""


def test_an_optimizer_that_takes_no_dense_gradients_cannot_be_corrected(program: str) -> None:
    extended(program, SPARSE)
    with pytest.raises(PluginError, match="the correction of a sparse gradient is dense, and SparseAdam takes no"):
        run_program(program, model=f"{program.removesuffix('.py')}:Words", strategy="scaffold")


DRAWS = """
import random

own = random.Random(3)

def train(net, loader, epochs):
    seen = 0.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in loader:
        x = x + own.random()
        seen += x.sum().item()
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    return {"seen": seen}
"""


def test_both_trainings_of_apfl_see_the_same_draws_of_own_generators(program: str) -> None:
    rows = run_program(extended(program, DRAWS), strategy="apfl").metrics()
    rows = rows[rows.client_id.notna()].set_index(["round", "client_id"])
    seen, again = (rows[rows["name"] == name]["value"] for name in ("seen", "personal_seen"))
    assert len(seen) == 12
    assert (seen == again).all()


BEST = """
import copy

def train(net, loader, epochs):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    best = copy.deepcopy(net.state_dict())
    for x, y in loader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    return best
"""


@pytest.mark.parametrize("strategy", ["scaffold", "fednova", "feddyn"])
def test_who_divides_by_steps_says_where_steps_are_undone(program: str, strategy: str) -> None:
    log = run_program(extended(program, BEST), strategy=strategy).log_path.read_text()
    assert ("divides by all steps of a client, but train writes to the weights" in log) is (strategy != "feddyn")


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1)), "0"),
        (nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1)), "0"),
        (nn.Sequential(nn.BatchNorm1d(1), nn.LayerNorm(1)), ""),
    ],
)
def test_a_normalisation_is_no_classifier(net: nn.Module, name: str) -> None:
    if name:
        assert classifier_of(net) == name
        return
    with pytest.raises(ValueError, match="no modules with parameters but for normalisation"):
        classifier_of(net)


def with_two_optimizers(net: Any, loader: Any, epochs: int, lr: float) -> None:
    steps(net, loader, epochs, [torch.optim.SGD(part.parameters(), lr=lr) for part in (net.body, net.head)])


def over_a_loader_of_its_own(net: nn.Module, loader: Any, epochs: int, lr: float) -> None:
    plain(net, DataLoader(loader.dataset, batch_size=3), epochs, lr)


def for_one_batch(net: nn.Module, loader: Any, lr: float) -> None:
    plain(net, [next(iter(loader))], 1, lr)


def test_pfedme_takes_body_and_head_with_an_optimizer_each_as_one(run: Callable[..., Run]) -> None:
    one, other = (weights_of(run("pfedme", train)) for train in (plain, with_two_optimizers))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def doubling(net: nn.Module, loader: Any, epochs: int, lr: float) -> None:
    steps(net, ((x * 2, y) for _ in range(epochs) for x, y in loader), 1, [torch.optim.SGD(net.parameters(), lr=lr)])


def doubling_in_place(net: nn.Module, loader: Any, epochs: int, lr: float) -> None:
    steps(
        net, ((x.mul_(2), y) for _ in range(epochs) for x, y in loader), 1, [torch.optim.SGD(net.parameters(), lr=lr)]
    )


def test_pfedme_gives_a_batch_again_as_it_was(run: Callable[..., Run]) -> None:
    one, other = (weights_of(run("pfedme", train)) for train in (doubling, doubling_in_place))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_pfedme_refuses_a_train_in_which_no_batch_comes_k_times(run: Callable[..., Run]) -> None:
    with pytest.raises(PluginError, match="pfedme: train does not iterate over the loader that it gets, which gives"):
        run("pfedme", over_a_loader_of_its_own)
    with pytest.raises(PluginError, match=r"pfedme: train took 1 steps, fewer than K = 5, so that w would never"):
        run("pfedme", for_one_batch)


class Twice(Net):
    """Calls its head for two halves of its inputs."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x)) + self.head(self.features(-2 * x))


def by_parts(net: Any, loader: Any, epochs: int, lr: float) -> None:
    optimizers: list[Any] = [torch.optim.SGD(net.parameters(), lr=lr)]
    steps(net, loader, epochs, optimizers, lambda x: net.head(net.features(x)))


class FixedBody(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)


def test_moon_refuses_what_it_cannot_contrast(run: Callable[..., Run]) -> None:
    with pytest.raises(PluginError, match="moon: no features that could be contrasted: train has to call the model"):
        run("moon", by_parts)
    with pytest.raises(PluginError, match="and the inputs of head have to depend on parameters that are trained"):
        run("moon", None, FixedBody)


def test_moon_contrasts_each_call_of_a_layer_with_the_same_call_of_the_other_models(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    def gradient(_: Moon, features: Tensor, reference: Tensor, previous: Tensor) -> Tensor:
        pairs.append((features, reference))
        return torch.zeros_like(features)

    monkeypatch.setattr(Moon, "gradient", gradient)
    run("moon", None, Twice, num_rounds=1, lr=1e-9)
    assert len(pairs) > 10
    assert all(torch.allclose(features, reference, atol=1e-4) for features, reference in pairs)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_a_tied_parameter_that_stays_is_averaged_under_no_name(run: Callable[..., Run]) -> None:
    one, other = (weights_of(run("fedper", None, Tied, num_rounds=number)) for number in (1, 2))
    assert np.allclose(one["first.weight"], other["first.weight"], rtol=0, atol=1e-7)
    assert not np.allclose(one["second.weight"], other["second.weight"], rtol=0, atol=1e-7)


class FixedHead(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head.requires_grad_(False)


def test_fedrep_needs_a_head_that_is_trained(run: Callable[..., Run]) -> None:
    with pytest.raises(PluginError, match="--strategy fedrep: nothing of what stays with the clients is trained"):
        run("fedrep", None, FixedHead)
