"""Data of a user's own in many forms: some that work, and some that cannot."""

import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

X = torch.arange(24, dtype=torch.float32).reshape(12, 2)
Y = torch.arange(12) % 3
BOTH = TensorDataset(X, Y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(x)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(3)

    def forward(self, x):
        return self.fc(x)


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Noisy(Items):
    def __getitem__(self, index):
        x, y = self.items[index]
        return x + torch.rand(2), y


def subset():
    return Subset(BOTH, [3, 1, 7]), BOTH


def concatenated():
    return ConcatDataset([BOTH, Subset(BOTH, [0])]), BOTH


def dict_of_arrays():
    return {"x": X.numpy(), "label": Y.numpy()}, {"x": X.numpy(), "label": Y.numpy()}


def list_of_arrays():
    return [X.numpy(), Y.numpy()], [X.numpy(), Y.numpy()]


def samplers():
    parts = SubsetRandomSampler(range(3, 12)), SubsetRandomSampler([0, 1, 2])
    return tuple(DataLoader(BOTH, 2, sampler=part) for part in parts)


class Every(Sampler):
    """Draws every position, in an order of a generator of its own, and counts its passes."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(torch.randperm(12, generator=self.generator).tolist()[self.passes - 1 :])

    def __len__(self):
        return 12


def own_sampler():
    return DataLoader(BOTH, 2, sampler=Every()), BOTH


def batches_of_the_test():
    return BOTH, DataLoader(BOTH, batch_sampler=[[4, 5], [6]])


def list_of_items():
    return [(x, int(y)) for x, y in BOTH], [(x, int(y)) for x, y in BOTH]


def float64_arrays():
    return (X.double().numpy(), Y.numpy()), (X.double().numpy(), Y.numpy())


def dataset_dict():
    return {"train": BOTH, "test": BOTH}


def random_items():
    return Noisy(*BOTH), BOTH


class Parity(TensorDataset):
    """Two classes made of three."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.rand(2), y % 2


def parity():
    return Parity(X, Y), BOTH


class InBatches(Items):
    def __getitems__(self, indices):
        return [(self.items[index][0] + 100, self.items[index][1]) for index in indices]


def own_batches():
    return Subset(InBatches(*BOTH), range(12)), BOTH


class Scaled(DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x / 255, y


def own_loader():
    return Scaled(BOTH, 2), BOTH


def train_that_sets(net, loader, epochs):
    loader.dataset.augment = True


def of_client(partition_id, num_partitions):
    own = Subset(BOTH, range(partition_id, len(BOTH), num_partitions))
    return DataLoader(own, batch_size=2, shuffle=True), DataLoader(own, batch_size=4)


def of_all():
    return of_client(0, 1)


def uneven(partition_id, num_partitions):
    own = Subset(BOTH, range(7) if partition_id == 0 else range(7, 12))
    return DataLoader(own, batch_size=2, shuffle=True), DataLoader(own, batch_size=4)


def own_defaults(seed=42, partition="train", max_steps=7):
    assert (seed, partition, max_steps) == (42, "train", 7)
    return BOTH, BOTH


def train_with_defaults(net, loader, epochs, max_steps=7, precision="16", lr=0.5, optimizer=None, weight_decay=None):
    assert (optimizer, weight_decay) == (None, None)
    return {"loss": 0.0, "max_steps": max_steps, "precision": int(precision), "lr": lr}


def iterator():
    return iter(DataLoader(BOTH)), BOTH


def iterable():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(BOTH)

    return DataLoader(Stream()), BOTH


def empty():
    return Subset(BOTH, []), BOTH


def empty_test():
    return BOTH, (np.zeros((0, 2), np.float32), np.zeros(0, np.int64))


def other_structure():
    return Items((X[0], 1), {"x": X[1], "y": 0}), BOTH


def other_shapes():
    return Items((X[0], 1), (X[1][:1], 0)), BOTH


def other_shapes_late():
    return Items(*[(X[0], 1)] * 40, (X[1][:1], 0), *[(X[0], 1)] * 40), BOTH


def nan():
    x = X.clone()
    x[5, 1] = float("nan")
    return TensorDataset(x, Y), BOTH


def nan_item():
    return Items(*[(X[0], 1)] * 3, (torch.tensor([1.0, float("nan")]), 1)), BOTH


def collate_raises():
    def collate(batch):
        raise RuntimeError("no such column")

    return DataLoader(BOTH, collate_fn=collate), BOTH


def labels_outside():
    return TensorDataset(X, Y + 2), BOTH


def one_only():
    return (BOTH,)


def unlabelled():
    return Items(*X), Items(*X)


def test_that_prints(net, loader, device):
    sys.stdout.buffer.flush()
    print("Accuracy: 5/12", flush=True)
