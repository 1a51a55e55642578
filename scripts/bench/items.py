"""Time a round over items against the same loop over PyTorch's DataLoader by itself, in turn.

    scripts/bench_items.sh [ROUNDS]

The work of a round is that of pfl-research in `scripts/bench.sh`, here with a random flip: 50 clients with 50 images of
32×32 pixels, batch size 10, one epoch, the CNN of PyTorch's CIFAR-10 tutorial. Both use one thread. Prints the seconds
of each pair, and the median of the ratios.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from sim import RoundRecord, RunConfig, simulate
from sim.training.models import Net

NUM_CLIENTS, NUM_EXAMPLES, BATCH_SIZE = 50, 50, 10


class Pictures(Dataset[Any]):
    """Images of 32×32 pixels that are flipped at random, as by a transform."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, 3, 32, 32, generator=generator)
        self.targets = [index % 10 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        return (image.flip(2) if torch.rand(()) < 0.5 else image) * 2 - 1, self.targets[index]


def load_data() -> tuple[Any, Any]:
    """Return loaders for training and testing."""
    data = Pictures(NUM_CLIENTS * NUM_EXAMPLES)
    return DataLoader(data, BATCH_SIZE, shuffle=True), DataLoader(Subset(data, range(10)), 10)


def train(net: nn.Module, loader: Any, epochs: int) -> None:
    """Train by SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()


class Bare:
    """Federated averaging in a plain loop.

    Each client starts from the mean of the round before, because the time of a step depends on the weights: pooling is
    faster by a quarter where many of its inputs are zero.
    """

    def __init__(self) -> None:
        self.data = Pictures(NUM_CLIENTS * NUM_EXAMPLES)
        self.net = Net()
        self.weights = list(self.net.parameters())
        self.mean = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def round(self) -> float:
        """Train each client once and return the seconds."""
        start = time.perf_counter()
        total = [torch.zeros_like(weight) for weight in self.weights]
        for client_id in range(NUM_CLIENTS):
            torch._foreach_copy_(self.weights, self.mean)
            own = Subset(self.data, range(client_id, len(self.data), NUM_CLIENTS))
            with torch.enable_grad():
                train(self.net, DataLoader(own, BATCH_SIZE, shuffle=True), 1)
            torch._foreach_add_(total, self.weights)
        self.mean = [weight / NUM_CLIENTS for weight in total]
        return time.perf_counter() - start


def main() -> None:
    """Run and print."""
    num_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    bare = Bare()
    pairs: list[tuple[float, float]] = []

    def after(record: RoundRecord) -> None:
        if record.round > 1 and record.fit_seconds is not None:  # the first round sets up
            pairs.append((record.fit_seconds, bare.round()))
            print(f"items {pairs[-1][0]:.3f} s, bare {pairs[-1][1]:.3f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"num_clients": NUM_CLIENTS, "fraction_fit": 1.0, "local_epochs": 1}
        config = RunConfig(
            **settings, num_rounds=num_rounds + 1, partitioner="iid", engine="inline", results_dir=folder
        )
        simulate(config, model=Net, train=train, load_data=load_data, on_record=after)
    print(f"median of {len(pairs)} ratios: {statistics.median(ours / own for ours, own in pairs):.2f}")


if __name__ == "__main__":
    main()
