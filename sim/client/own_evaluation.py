"""The user's own ``test``, called with what its parameters mean."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sim.client.borrowed_variables import lent
from sim.client.made_arguments import criterion_for, make_optimizer
from sim.client.own_function import (
    UNCHANGED,
    VALIDATION_SPLITS,
    OwnFunction,
    all_examples,
    batch_size_of,
    dataset_of,
    gets,
    make_fraction,
    variables_of,
)
from sim.client.own_returns import OwnReturnError, Returned, of_test
from sim.errors import PluginError, described
from sim.method_binding import MethodBinding, binding_of
from sim.parameter_roles import (
    ROLES_OF_TEST,
    ROLES_OF_TRAINING,
    SETTINGS_OF_TRAINING,
    VALIDATION,
    VALIDATION_DATASET,
    Binding,
    is_text,
)
from sim.used_variables import set_by_a_script
from sim.user_code import shown_name

# For an object that does not train with them.
_ANY_SETTINGS = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1, "epochs": 1, "proximal_mu": 0.0}


@dataclass(frozen=True)
class OwnTest(OwnFunction):
    """The user's ``test``: what it returns becomes a loss and metrics.

    Attributes:
        instead: the built-in test, for a function that prints its result and returns nothing.
    """

    instead: Callable[..., tuple[float, dict[str, float]]] | None = None

    @cached_property
    def binding(self) -> Binding:
        """What its parameters mean.

        Raises:
            PluginError: one cannot be given.
        """
        roles = [*ROLES_OF_TEST]
        needed = [("net",), ("loader", "inputs", "dataset")]
        of_training = [*ROLES_OF_TRAINING, *SETTINGS_OF_TRAINING]
        if self.read_facts.makes_loaders:
            roles, needed = [*roles, "dataset"], [("net",), ("dataset", "loader", "inputs")]
            of_training.append(VALIDATION_DATASET)
        binding = binding_of(
            self.function,
            roles,
            self.place,
            needed,
            owner=self.owner,
            offered_to_class=of_training,
        )
        if not (binding.takes("net") or binding.open_ended or "net" in variables_of(binding, is_test=True)):
            raise PluginError(
                f"{self.place}: has no parameter for the model, such as net or model, and uses no variable that is one"
                f"{set_by_a_script(self.function)}"
            )
        return binding

    def __call__(self, net: nn.Module, loader: Any, device: torch.device) -> tuple[float, dict[str, float]]:
        """Test and return (loss, metrics); the loss is NaN if it gives none.

        Raises:
            OwnReturnError: it returned something that is no metric, or an accuracy that is no fraction.
        """
        returned = self.call_once(net, loader, device)
        return math.nan if returned.loss is None else returned.loss, returned.metrics

    def call_once(self, net: nn.Module, loader: Any, device: torch.device) -> Returned:
        """Test and return what it returned.

        Raises:
            OwnReturnError: it returned something that is no metric, or an accuracy that is no fraction.
        """
        binding = self.binding
        offered = {"net": net, "loader": loader, "device": device, "args": self.args, "epoch": 0}
        if gets(binding, "inputs"):
            offered |= all_examples(loader, self.place)
        if "batch_size" in binding.required:
            offered["batch_size"] = batch_size_of(loader)
        if {"dataset", VALIDATION_DATASET} & set(binding.roles.values()):
            offered |= dict.fromkeys(("dataset", VALIDATION_DATASET), dataset_of(loader, self.place, binding, {}))
        offered |= criterion_for(binding, self.loss, device, is_given=self.loss_is_given)
        if isinstance(binding, MethodBinding):  # its class may also train, which it does not do now
            optimizer = make_optimizer(net, {})
            is_named = is_text(binding, "optimizer")
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
            loaders = dict.fromkeys(("train", *VALIDATION_SPLITS), loader)
            made = {"optimizer": "sgd" if is_named else optimizer, "scheduler": scheduler}
            any_value = {**_ANY_SETTINGS, **UNCHANGED, **made}
            needed = {role: value for role, value in any_value.items() if role in binding.required}
            offered = {**needed, VALIDATION: loader, "loaders": loaders, **offered}
        with _noting_output() as printed, lent(variables_of(binding, is_test=True), net, loader):
            returned = binding.call(offered)
        if returned is None and printed() and self.instead is not None:
            return self._by_built_in_test(self.instead, net, loader, device)
        found = of_test(returned, self.score, self.read_facts.returns)
        make_fraction(found.metrics, "test", in_percent=self.in_percent)
        return found

    def _by_built_in_test(
        self, instead: Callable[..., Any], net: nn.Module, loader: Any, device: torch.device
    ) -> Returned:
        try:
            loss, metrics = instead(net, loader, device)
        except Exception as error:
            raise OwnReturnError(
                "test prints its results and returns nothing, and the built-in test fails in its place with "
                f"{described(error)}; let it return its loss, its accuracy, or a dict of them"
            ) from error
        note = f"it returns nothing, so that the built-in test with the loss {shown_name(self.loss)} is recorded"
        return Returned(loss, metrics, (note,))


@contextmanager
def _noting_output() -> Iterator[Callable[[], bool]]:
    """Note whether the block prints; what it prints goes on to where it would have gone."""

    class Noting:
        def write(self, text: str) -> int:
            seen.append(bool(text.strip()))
            return target.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(target, name)  # flush, buffer, encoding …

    seen: list[bool] = []
    noting: Any = Noting()
    target = sys.stdout
    sys.stdout = noting
    try:
        yield lambda: any(seen)
    finally:
        if sys.stdout is noting:
            sys.stdout = target
