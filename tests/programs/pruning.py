"""A train that prunes a parameter to zero, which registers it again, after another one of its shape."""

import torch
from torch.nn.utils import prune


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10, bias=False))
        self.first, self.second = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(10))

    def forward(self, images):
        return self.block(images) * self.first * self.second


def train_anew(net, loader, epochs, lr):
    net.second = torch.nn.Parameter(net.second.detach().clone())
    train(net, loader, epochs, lr)


def train(net, loader, epochs, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for images, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    prune.l1_unstructured(net, "first", 10)
    prune.remove(net, "first")
