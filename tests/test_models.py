from __future__ import annotations

import pytest
import torch

from sim.training import models
from sim.training.models import DataFacts


@pytest.mark.parametrize(
    ("name", "parameters"), [("Net", 62_006), ("SimpleCnn", 1_626_442), ("ResNet18", 11_173_962), ("Mlp", 656_810)]
)
def test_sizes_on_cifar(name: str, parameters: int) -> None:
    net = models.build(name, DataFacts((3, 32, 32), 10))
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name", sorted(set(models.MODELS) - {"CharLstm"}))
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 28, 28), (2, 20, 36)])
def test_other_image_shapes_are_supported(name: str, shape: tuple[int, int, int]) -> None:
    net = models.build(name, DataFacts(shape, 7))
    assert net(torch.zeros(5, *shape)).shape == (5, 7)


def test_simple_cnn_is_initialized_as_in_glorot_and_bengio() -> None:
    torch.manual_seed(0)
    net = models.SimpleCnn()
    bound = (6 / (12544 + 128)) ** 0.5
    assert 0.99 * bound < net.fc1.weight.abs().max() <= bound
    assert not net.fc1.bias.any()
