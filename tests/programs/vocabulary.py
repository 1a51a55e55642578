"""A character model whose vocabulary is in the order of a set, and which draws without a seed.

By itself, it gives another result each time.
"""

import random

import numpy as np
import torch
from torch import nn

TEXT = "the quick brown fox jumps over the lazy dog and runs away " * 6
CHARACTERS = list(set(TEXT))
POSITIONS = {character: position for position, character in enumerate(CHARACTERS)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(CHARACTERS), len(CHARACTERS))

    def forward(self, characters):
        return self.table(characters)


def load_data():
    codes = torch.tensor([POSITIONS[character] for character in TEXT])
    return (codes[:200], codes[1:201]), (codes[200:300], codes[201:301])


def train(net, loader, epochs):
    optimizer = torch.optim.SGD(net.parameters(), lr=np.random.default_rng().uniform(0.5, 1.5))
    random.seed()
    for characters, following in loader:
        optimizer.zero_grad()
        (nn.functional.cross_entropy(net(characters), following) * random.random()).backward()
        optimizer.step()
    return {"position_of_t": POSITIONS["t"]}


def test(net, loader):
    with torch.no_grad():
        return sum((net(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)
