"""Loaders of a user's own: two that work and some that do not."""

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(50) % 5


def arrays():
    return (IMAGES[:40], LABELS[:40]), (IMAGES[40:], LABELS[40:])


def loaders():
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.from_numpy(LABELS)
    train, test = (TensorDataset(images[part], labels[part]) for part in (slice(0, 40), slice(40, 50)))
    return DataLoader(train, batch_size=8, shuffle=True), DataLoader(test), {"num_examples": 40}


def raises():
    raise OSError("disk is gone")


def nothing():
    return None


def floats():
    return (np.zeros((3, 8, 8)), np.arange(3)), (np.zeros((3, 8, 8)), np.arange(3))


def few_labels():
    return (IMAGES[:3], LABELS[:2]), (IMAGES[:3], LABELS[:3])


def wide():
    examples = [(np.arange(256).reshape(1, 16, 16), 0)]
    return examples, examples
