"""A client and a test with a fault that the variable SIM_FAULT=KIND:ROUND:CLIENT describes.

KIND is raise, hang, nan, memory or hanging-test. The last two happen once, in the first process of Ray that gets there;
a file that SIM_FAULT_ONCE names says that they did.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common import NDArrays
from torch import nn

from sim import training
from sim.client.torch_client import CifarClient

_MOST_BYTES = 8 * 2**30
_CENTRAL_EXAMPLES = 100  # more than any client has
_number_of_test = itertools.count(1)  # an object, because a number would be put back after each test


def _fault() -> tuple[str, int, int]:
    kind, server_round, client_id = (os.environ.get("SIM_FAULT") or "none:0:0").split(":")
    return kind, int(server_round), int(client_id)


def _first_time() -> bool:
    try:
        Path(os.environ["SIM_FAULT_ONCE"]).touch(exist_ok=False)
    except (KeyError, FileExistsError):
        return False
    return True


def test(net: nn.Module, loader: Any, device: torch.device) -> tuple[float, float]:
    """Test as the built-in one does, and hang if this is the process's central test with the number of the fault.

    The tests of clients, which have fewer examples, do not count: a client that hangs is left out of its round.
    """
    kind, number, _ = _fault()
    is_it = loader.num_examples >= _CENTRAL_EXAMPLES and next(_number_of_test) == number
    if kind == "hanging-test" and is_it and _first_time():
        time.sleep(3600)
    return training.test(net, loader, device)


def _take_memory() -> None:
    """Take memory until the process is ended for it, or for a while."""
    taken = []
    while sum(array.nbytes for array in taken) < _MOST_BYTES:
        taken.append(np.ones(2**25))
        time.sleep(0.05)
    time.sleep(5)


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
        kind, server_round, client_id = _fault()
        weights, num_examples, metrics = super().fit(parameters, config)
        if (server_round, client_id) == (config["server_round"], self.client_id):
            match kind:
                case "raise":
                    raise ValueError("a bad day")
                case "hang":
                    time.sleep(3600)
                case "memory" if _first_time():
                    _take_memory()
                case "nan":
                    weights[0] = np.full_like(weights[0], np.nan)
        return weights, num_examples, metrics
