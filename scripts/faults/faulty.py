"""A client with a fault that the variable SIM_FAULT=KIND:ROUND:CLIENT describes; KIND is raise, hang or nan."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from flwr.common import NDArrays
from torch import nn

from sim.client.torch_client import CifarClient


class Faulty(CifarClient):
    """Trains like ``CifarClient``, except that one client fails in one round."""

    def __init__(
        self,
        net: nn.Module,
        train_loader: Any,
        test_loader: Any,
        device: torch.device,
        train: Any,
        test: Any,
        client_id: int,
    ) -> None:
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.client_id = client_id

    def fit(self, parameters: NDArrays, config: dict[str, Any]) -> tuple[NDArrays, int, dict[str, Any]]:
        """Train, and fail if this is the round and the client of the fault."""
        kind, server_round, client_id = (os.environ.get("SIM_FAULT") or "none:0:0").split(":")
        weights, num_examples, metrics = super().fit(parameters, config)
        if (int(server_round), int(client_id)) == (config["server_round"], self.client_id):
            match kind:
                case "raise":
                    raise ValueError("a bad day")
                case "hang":
                    time.sleep(3600)
                case "nan":
                    weights[0] = np.full_like(weights[0], np.nan)
        return weights, num_examples, metrics
