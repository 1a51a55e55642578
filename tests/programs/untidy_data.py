"""Loaders of a user's own that change settings of their process, or fail while their examples are read."""

import os
import sys
import warnings

import numpy as np
import torch
from torch.utils.data import Dataset

IMAGES, LABELS = np.zeros((4, 8, 8), np.uint8), np.arange(4)


def changes_settings():
    os.chdir("/")
    os.umask(0o077)
    os.environ["OWN_VARIABLE"] = "1"
    sys.path.insert(0, "/")
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    warnings.simplefilter("error")
    return (IMAGES, LABELS), (IMAGES, LABELS)


class _Examples(Dataset):
    def __init__(self, image=0.5, label=1, error=None):
        self.image, self.label, self.error = image, label, error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        torch.set_default_dtype(torch.float64)
        if self.error is not None:
            raise self.error
        return np.full((1, 8, 8), self.image), self.label


def changes_settings_while_read():
    return _Examples(), _Examples()


def leaves():
    return _Examples(error=SystemExit("no licence\x1b[2J")), _Examples()


def unreadable_example():
    return _Examples(), _Examples(error=OSError("disk is gone"))


def nan_pixels():
    return _Examples(image=float("nan")), _Examples()


def half_label():
    return _Examples(label=0.5), _Examples()


def huge_label():
    return (IMAGES, LABELS + 999_997), (IMAGES, LABELS)


def ragged():
    return ([np.zeros(3), np.zeros(4)], LABELS), (IMAGES, LABELS)


def without_pixels():
    return (np.zeros((4, 0, 0), np.uint8), LABELS), (IMAGES, LABELS)


def test_with_the_size_of_a_batch_as_loss(net, loader, device):
    return float(loader.batch_size), 0.0
