"""MOON: a contrastive term draws a client's features to those of the global model and away from its own last ones.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16257, equations 3 and 4 and algorithm 1:

    ℓ = ℓ_sup + μ ℓ_con,   ℓ_con = −log( exp(s_glob/τ) / (exp(s_glob/τ) + exp(s_prev/τ)) )
    s_glob = cos(z, z_glob),   s_prev = cos(z, z_prev),   the mean over the batch

z, z_glob and z_prev are the features of an example in the net that is trained, in the global model and in the client's
model after its last training (at first the global one). Features are the inputs of the last Linear layer, or the
outputs of the module that ``features`` names. The gradient of μ ℓ_con is added where the features pass during the
backward pass of the program's own loss, which needs no change of ``train``; it is exact where that loss is a mean over
the batch and is not scaled before the backward pass. The two other models are in evaluation mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sim.algorithms.algorithm import Algorithm, LocalTraining, Update, argument
from sim.algorithms.local_parameters import classifier_of


@dataclass
class Moon(Algorithm):
    """MOON.

    Attributes:
        mu: μ, the weight of the contrastive term; the paper's best are 5 for CIFAR-10, 1 for CIFAR-100.
        tau: τ, its temperature.
        features: name of the module whose outputs are the features.
    """

    SOURCE: ClassVar[str] = "Li, He, Song 2021, algorithm 1"
    KEEPS_STATE: ClassVar[bool] = True

    mu: float = argument(1.0, low=0)
    tau: float = argument(0.5, above=0)
    features: str = argument("")

    def fit(self, local: LocalTraining) -> Update:
        """Train with the contrastive term."""
        net, state = local.net, local.exchange.state
        others = [_frozen_copy(net), _frozen_copy(net)]
        if "previous" in state:
            for tensor, array in zip(_tensors(others[1]), state["previous"], strict=True):
                tensor.copy_(array)
        seen: list[list[Tensor]] = [[], []]  # of the last batch, in the order of the calls of the module
        num_contrasts = 0
        hooks = [watch_features(other, self.features, seen[i].append) for i, other in enumerate(others)]

        def look(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and net.training:
                seen[0].clear()
                seen[1].clear()
                with torch.no_grad():
                    for other in others:
                        other(*inputs, **named)

        def contrast(features: Tensor) -> Tensor | None:
            nonlocal num_contrasts
            if not (seen[0] and seen[1] and features.requires_grad):
                return None
            num_contrasts += 1
            reference, previous = seen[0].pop(0), seen[1].pop(0)
            gradient = self.gradient(features.detach(), reference, previous)
            return _Added.apply(features, gradient)  # type: ignore[no-any-return]

        hooks += [net.register_forward_pre_hook(look, with_kwargs=True), watch_features(net, self.features, contrast)]
        try:
            local.train()
        finally:
            for hook in hooks:
                hook.remove()
        if not num_contrasts and len(local.loader):
            layer = f"outputs of {self.features}" if self.features else f"inputs of {classifier_of(net)}"
            raise ValueError(
                f"no features that could be contrasted: train has to call the model itself, and the {layer} have to "
                "depend on parameters that are trained; --strategy-args features=… names a module whose outputs do"
            )
        state["previous"] = local.weights()
        return Update()

    def gradient(self, features: Tensor, reference: Tensor, previous: Tensor) -> Tensor:
        """Return the gradient of μ · mean(ℓ_con) by the features, [B, …]."""
        with torch.enable_grad():
            z = features.requires_grad_()
            flat, z_glob, z_prev = z.flatten(1), reference.flatten(1), previous.flatten(1)
            similarities = [F.cosine_similarity(flat, other) / self.tau for other in (z_glob, z_prev)]
            first = torch.zeros(len(z), dtype=torch.long, device=z.device)
            loss = self.mu * F.cross_entropy(torch.stack(similarities, 1), first)
            return torch.autograd.grad(loss, z)[0]


class _Added(torch.autograd.Function):
    """The identity, whose backward pass adds a gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, gradient: Tensor) -> Tensor:
        """Return the features."""
        ctx.save_for_backward(gradient)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the sum of both gradients."""
        return grad + ctx.saved_tensors[0].to(grad.dtype), None


def watch_features(net: nn.Module, name: str, action: Callable[[Tensor], Tensor | None]) -> Any:
    """Call ``action`` with the features of each forward pass; what it returns replaces them.

    Args:
        name: of the module whose outputs they are; empty for the inputs of the last Linear layer.

    Raises:
        ValueError: there is no such module.
    """
    modules = dict(net.named_modules())
    if name:
        if name not in modules:
            raise ValueError(
                f"features = {name}: the model has no such module; it has {', '.join(filter(None, modules))}"
            )
        return modules[name].register_forward_hook(lambda _, inputs, output: action(output))
    layer = modules[classifier_of(net)]

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        changed = action(inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    return layer.register_forward_pre_hook(before)


def _frozen_copy(net: nn.Module) -> nn.Module:
    other = copy.deepcopy(net).eval()
    for parameter in other.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return other


def _tensors(net: nn.Module) -> list[Tensor]:
    return [value for value in net.state_dict().values() if isinstance(value, Tensor)]
