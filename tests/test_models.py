from __future__ import annotations

import pytest
import torch
from torch import nn

from sim.errors import PluginError
from sim.training import models
from sim.training.models import DataFacts
from sim.training.weights import WeightLayout, get_weights


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


@pytest.mark.parametrize(("default", "given"), [(2, 10), (None, 10), (("neg", "pos"), ("neg", "pos")), ("few", "few")])
def test_the_number_of_classes_replaces_a_number_but_not_their_names(default: object, given: object) -> None:
    seen = []

    def build(classes: object = default, hidden: int = 4) -> nn.Module:
        seen.append((classes, hidden))
        return nn.Linear(hidden, 10)

    models.build(build, DataFacts((4,), 10))
    assert seen == [(given, 4)]


class WithBuffer(nn.Linear):
    """Has a buffer of a kind of its own."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__(1, 1)
        self.register_buffer("adjacency", buffer)


def test_a_sparse_buffer_is_named_and_one_of_float8_is_averaged_as_float32() -> None:
    with pytest.raises(
        PluginError, match=r": adjacency of its state_dict is torch\.sparse_coo, and only ordinary tensors"
    ):
        models.build(lambda: WithBuffer(torch.eye(2).to_sparse()), DataFacts((1,), 1))
    net = models.build(lambda: WithBuffer(torch.ones(2).to(torch.float8_e4m3fn)), DataFacts((1,), 1))
    assert WeightLayout.of(net).averageable == (0, 1, 2)
    assert get_weights(net)[2].tolist() == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_module_is_copied_so_that_it_can_be_trained() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[1].bias.requires_grad = False
    script = torch.jit.script(net)
    copied = models.maker(script, DataFacts(None, None))()
    assert [p.is_leaf for p in copied.parameters()] == [True] * 4
    assert [p.requires_grad for p in copied.parameters()] == [True, True, True, False]
    optimizer = torch.optim.SGD(copied.parameters(), lr=1.0)
    copied(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(copied.state_dict()["0.weight"], script.state_dict()["0.weight"])
