"""FedProx's proximal term for a ``train`` that knows nothing of it.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, algorithm 2: clients minimise their loss plus μ/2 ‖w − w₀‖², whose gradient is μ (w − w₀).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sim.errors import some
from sim.training.step_hooks import watched


class UnseenStepsError(ValueError):
    """The weights have changed by other than steps of an optimizer of ``torch.optim``."""


@contextmanager
def proximal_term(net: nn.Module, mu: float) -> Iterator[None]:
    """Add the gradient of the term to that of the loss before each step that any optimizer takes inside the block.

    Args:
        net: its weights at the begin of the block are w₀.
        mu: μ.

    Raises:
        UnseenStepsError: there was no such step, and the weights are others nevertheless.
    """
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    start = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def pull(index: int, parameter: Tensor, rate: float) -> None:
        assert parameter.grad is not None
        parameter.grad.add_(parameter - start[index], alpha=mu)

    with watched(parameters, before=pull) as steps:
        yield
    after = dict(net.named_parameters())
    anew = [name for name, parameter in named.items() if after.get(name) is not parameter]
    if anew:
        raise UnseenStepsError(
            f"train puts new parameters in the place of {some(anew)}, to whose gradients no proximal term can be added"
        )
    if not steps.count and not all(map(torch.equal, parameters, start)):
        raise UnseenStepsError(
            "train took no step of an optimizer of torch.optim on the model that it was given, so that no proximal "
            "term could be added to its gradients"
        )
