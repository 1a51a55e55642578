"""What a user can get wrong, each under the name of what it is."""

from torch import nn

from sim.client.torch_client import CifarClient

not_callable = 3


def model_none():
    return None


def model_shape():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 7))


def model_raises():
    raise OSError("weights.pt is missing")


def model_needs_more(depth):
    return nn.Flatten()


def train_short(net, loader):
    return 0.0


def train_generator(net, loader, epochs, device):
    yield 0.5


def train_raises(net, loader, epochs, device):
    raise KeyError("optimizer")


def test_nothing(net, loader, device):
    return None


def test_percent(net, loader, device):
    correct = total = 0
    for images, labels in loader:
        correct += int((net(images).argmax(1) == labels).sum())
        total += len(labels)
    return 1.0, 100 * correct / total


class WrongReturn(CifarClient):
    def fit(self, parameters, config):
        return parameters, "many", {}


class NotAClient:
    pass


class Greedy(CifarClient):
    def __init__(self, net, passport):
        pass


class NotAStrategy:
    pass


class NeedyStrategy:
    def __init__(self, moon):
        pass
