"""A program whose model takes a dict, a tensor, a number and a named tensor, none of which is an entry of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, sequences: dict[str, Tensor], state: Tensor, scale: float, bias: Tensor | None = None) -> Any:
        outputs, _ = self.rnn(sequences["time_first"], state)
        return self.out(outputs[-1]) * scale + (0 if bias is None else bias)


def load_data() -> tuple[TensorDataset, TensorDataset]:
    x = torch.randn(60, 7, 3, generator=torch.Generator().manual_seed(1))
    data = x, (x.sum((1, 2)) > 0).long()
    return TensorDataset(*(each[:48] for each in data)), TensorDataset(*(each[48:] for each in data))


def outputs_of(net: nn.Module, x: Tensor) -> Tensor:
    outputs: Tensor = net({"time_first": x.transpose(0, 1)}, torch.zeros(1, len(x), 5), 2.0, bias=torch.ones(len(x), 2))
    return outputs


def train(net: nn.Module, loader: Any, epochs: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(outputs_of(net, x), y).backward()
            optimizer.step()


def test(net: nn.Module, loader: Any) -> tuple[float, float]:
    x, y = next(iter(loader))
    outputs = outputs_of(net, x)
    return cross_entropy(outputs, y).item(), (outputs.argmax(1) == y).float().mean().item()
