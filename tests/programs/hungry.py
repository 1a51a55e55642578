"""A client that wants more memory than there is."""

from __future__ import annotations

import torch
from flwr.client import NumPyClient


class Hungry(NumPyClient):
    def fit(self, parameters, config):
        torch.zeros(1 << 44)
        return parameters, 1, {}

    def evaluate(self, parameters, config):
        return 0.0, 1, {}
