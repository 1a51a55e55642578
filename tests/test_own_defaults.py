"""What parameters of the user's own functions get that have defaults: a default stays unless a flag says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sim.client.own_evaluation import OwnTest
from sim.client.own_training import OwnTrain
from sim.config.run_config import RunConfig
from sim.errors import PluginError
from sim.simulation import simulate

CPU = torch.device("cpu")
X = torch.arange(24.0).reshape(12, 2) / 24
ALL = {"train": DataLoader(TensorDataset(X, X.sum(1, keepdim=True))), "val": ["all"]}


def called(function: Any, **settings: Any) -> OwnTrain:
    own = OwnTrain(function, "--train own:train", **settings)
    own(nn.Linear(2, 1), ["own"], 1, CPU, lr=0.5, validation_loader=["kept"])
    return own


def test_a_dict_of_loaders_is_that_of_the_client_although_it_has_a_default() -> None:
    seen: list[Any] = []

    def train(net: Any, dataloaders: Any = ALL) -> None:
        seen.append(dataloaders)

    def beside_a_loader(net: Any, loader: Any, dataloaders: Any = ALL) -> None:
        seen.append(dataloaders)

    assert called(train).validates == "dataloaders"
    assert seen == [{"train": ["own"], **{key: ["kept"] for key in ("val", "valid", "validation", "test")}}]
    assert called(beside_a_loader).validates is None
    assert seen[1] is ALL


def test_names_of_examples_stay_what_their_defaults_say_beside_a_loader() -> None:
    seen: list[Any] = []

    def train(net: Any, loader: Any, features: bool = False, labels: Any = None) -> None:
        seen.append((loader, features, labels))

    def test(net: Any, loader: Any, features: bool = False, labels: Any = None) -> float:
        seen.append((loader, features, labels))
        return 0.5

    def of_arrays(net: Any, X: Any = None, y: Any = None) -> None:  # noqa: N803
        seen.append((X.tolist(), y.tolist()))

    assert called(train).takes_max_steps
    OwnTest(test, "--test own:test")(nn.Linear(2, 1), ["own"], CPU)
    assert seen == [(["own"], False, None)] * 2
    own = OwnTrain(of_arrays, "--train own:train")
    own(nn.Linear(2, 1), OneBatch(), 1, CPU)
    assert seen[2] == ([[1.0]], [2.0])
    assert not own.takes_max_steps


class OneBatch:
    num_examples = 1

    def with_batch_size(self, _: int) -> Any:
        return [(torch.ones(1, 1), torch.tensor([2.0]))]


def named(loss: Any) -> dict[str, float]:
    return {type(loss).__name__: 1.0}


def over_numbers(folder: Path, train: Any, test: Any = lambda net, loader: {"error": 0.5}, **given: Any) -> set[str]:
    """Train on 12 points whose targets are numbers; return the names of all metrics."""
    x = X.numpy()
    data = (x, x.sum(1, keepdims=True)), (x, x.sum(1, keepdims=True))
    config = RunConfig(num_clients=2, num_rounds=1, engine="inline", results_dir=str(folder / "results"), **given)
    made = simulate(config, model=lambda: nn.Linear(2, 1), train=train, test=test, load_data=lambda: data)
    return {*made.metrics().name}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, {"L1Loss", "HuberLoss"}), ({"loss": "mse"}, {"MSELoss"})],
    ids=["default", "given"],
)
@pytest.mark.usefixtures("no_pictures")
def test_the_criterion_of_a_program_for_numbers_stays_unless_loss_is_given(
    given: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    def train(net: Any, loader: Any, criterion: Any = nn.L1Loss()) -> Any:  # noqa: B008 - as programs have it
        net.weight.data += 1
        return named(criterion)

    def test(net: Any, loader: Any, loss_fn: Any = nn.HuberLoss(delta=0.3)) -> Any:  # noqa: B008
        return named(loss_fn)

    assert over_numbers(tmp_path, train, test, **given) == expected


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_a_name_gets_the_name_of_the_flag(tmp_path: Path) -> None:
    def train(net: Any, loader: Any, loss: str = "l1") -> Any:
        net.weight.data += 1
        return {{"l1": "own", "mse": "square"}[loss]: 1.0}

    assert over_numbers(tmp_path, train) == {"own", "error"}
    assert over_numbers(tmp_path, train, loss="mse") == {"square", "error"}
    with pytest.raises(PluginError, match=r"train: raised KeyError: 'mae'"):
        over_numbers(tmp_path, train, loss="mae")


@pytest.mark.usefixtures("no_pictures")
def test_a_criterion_stays_also_where_a_collate_fn_makes_floats(tmp_path: Path) -> None:
    def floats(examples: Any) -> Any:
        x, y = zip(*examples, strict=True)
        return torch.stack(x), torch.tensor(y, dtype=torch.float32)

    def train(net: Any, loader: Any, criterion: Any = nn.SoftMarginLoss()) -> Any:  # noqa: B008
        net.weight.data += 1
        return named(criterion)

    examples = TensorDataset(X, torch.arange(12) % 2)
    data = tuple(DataLoader(examples, 4, collate_fn=floats) for _ in range(2))
    config = RunConfig(
        num_clients=2, num_rounds=1, partitioner="iid", engine="inline", results_dir=str(tmp_path / "results")
    )
    made = simulate(config, model=lambda: nn.Linear(2, 1), train=train, test=accuracy, load_data=lambda: data)
    assert {*made.metrics().name} == {"SoftMarginLoss", "accuracy"}


def accuracy(net: Any, loader: Any) -> float:
    return 0.5
