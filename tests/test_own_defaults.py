"""What parameters of the user's own functions get that have defaults: a default stays unless a flag says otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sim.client.own_evaluation import OwnTest
from sim.client.own_training import OwnTrain

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
