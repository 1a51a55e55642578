"""A model that does not fit into any memory."""

from __future__ import annotations

import torch
from torch import nn


class Huge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1 << 44))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x
