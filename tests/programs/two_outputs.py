"""A program whose model gives a dict of two tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x).relu()
        return {"logits": self.head(features), "features": features}


def load_data() -> tuple[TensorDataset, TensorDataset]:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    data = x, (x.sum(1) > 0).long()
    return TensorDataset(*(each[:48] for each in data)), TensorDataset(*(each[48:] for each in data))


def train(net: nn.Module, loader: Any, epochs: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(net(x)["logits"], y).backward()
            optimizer.step()


def test(net: nn.Module, loader: Any) -> tuple[float, float]:
    x, y = next(iter(loader))
    logits = net(x)["logits"]
    return cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
