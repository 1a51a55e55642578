"""The work of a client of pfl-research's workload in `scripts/bench.sh`, as a Flower app has it."""

import torch
from torch import nn

NUM_EXAMPLES, BATCH_SIZE = 50, 10


def make_net() -> nn.Module:
    """Return the CNN of PyTorch's CIFAR-10 tutorial."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def train(net: nn.Module, partition_id: int) -> None:
    """Train for one epoch on random images."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(partition_id)
    images = torch.randn(NUM_EXAMPLES, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (NUM_EXAMPLES,), generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in torch.arange(NUM_EXAMPLES).split(BATCH_SIZE):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
