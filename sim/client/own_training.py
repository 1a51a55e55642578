"""The user's own ``train``, called with what its parameters mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sim.client.borrowed_variables import (
    Variable,
    copy_for,
    learning_rate_of,
    lent,
    of_model,
    own_criterion,
    own_optimizer,
)
from sim.client.made_arguments import OPTIMIZERS, criterion_for, make_optimizer, takes_own
from sim.client.own_function import (
    EXAMPLES,
    UNCHANGED,
    VALIDATION_SPLITS,
    OwnFunction,
    all_examples,
    batch_size_of,
    check_effect,
    dataset_of,
    gets,
    make_fraction,
    variables_of,
)
from sim.client.own_returns import OwnReturnError, Returned, of_train, scalar
from sim.errors import PluginError, some
from sim.method_binding import binding_of
from sim.parameter_roles import (
    ROLES_OF_TRAINING,
    SETTINGS_OF_TRAINING,
    VALIDATION,
    VALIDATION_DATASET,
    Binding,
    is_text,
)
from sim.training.weights import state_of
from sim.used_variables import set_by_a_script
from sim.user_code import shown_name

_DEFAULTS = ("lr", "momentum", "weight_decay", "optimizer", "batch_size")


@dataclass(frozen=True)
class OwnTrain(OwnFunction):
    """The user's ``train``, called as ``sim.training.local.train`` is.

    It may train for all local epochs, or for one, in which case it is called once for each.
    """

    @cached_property
    def binding(self) -> Binding:
        """What its parameters mean.

        Raises:
            PluginError: one cannot be given, or it takes no model or no examples.
        """
        offered = [*ROLES_OF_TRAINING, *SETTINGS_OF_TRAINING]
        examples = EXAMPLES
        if self.read_facts.makes_loaders:
            offered += ["dataset", VALIDATION_DATASET]
            examples = EXAMPLES[::-1]
        binding = binding_of(self.function, offered, self.place, [("net",), examples], owner=self.owner)
        if binding.open_ended:
            return binding
        borrowed = variables_of(binding)
        if not binding.takes("net") and "net" not in borrowed:
            raise PluginError(
                f"{self.place}: has no parameter for the model, such as net or model, and uses no variable that is one"
                f"{set_by_a_script(self.function)}"
            )
        if not any(map(binding.takes, EXAMPLES)) and "loader" not in borrowed:
            raise PluginError(
                f"{self.place}: has no parameter for the examples of a client, such as loader or train_loader, and "
                f"uses no variable that is a DataLoader{set_by_a_script(self.function)}"
            )
        return binding

    @property
    def gets_optimizer(self) -> bool:
        """Whether it gets an optimizer, or the name of one; one of its own that it may make instead is not replaced."""
        return bool({"optimizer", "scheduler"} & self.binding.required) or is_text(self.binding, "optimizer")

    @property
    def takes_max_steps(self) -> bool:
        """Whether it can be ended after a number of steps."""
        takes = self.binding.takes
        return not gets(self.binding, "inputs") and (takes("max_steps") or not takes("dataset"))

    @property
    def takes_proximal_mu(self) -> bool:
        """Whether it adds FedProx's proximal term itself."""
        return self.binding.open_ended or self.binding.takes("proximal_mu")

    @property
    def validates(self) -> str | None:
        """The parameter that gets other examples than those of the training; None if there is none."""
        wanted = {VALIDATION, VALIDATION_DATASET} & self.binding.required
        if gets(self.binding, "loaders"):
            wanted.add("loaders")
        return next((name for name, role in self.binding.roles.items() if role in wanted), None)

    @property
    def own_optimizer(self) -> Variable | None:
        """The module's optimizer of which it gets a copy, if its parameter wants one."""
        name = self.binding.parameter_for("optimizer")
        is_wanted = "optimizer" in self.binding.required and not is_text(self.binding, "optimizer")
        return own_optimizer(self.function, name) if is_wanted and name is not None else None

    def notes(self, net: nn.Module, settings: Mapping[str, Any]) -> list[str]:
        """Return what the user should know of what it is given, one line each."""
        meanings = {"net": "the model", "loader": "the examples of the client"}
        found = [f"its parameter {name} gets {meanings[role]}" for name, role in self.binding.assumed.items()]
        borrowed = of_model(variables_of(self.binding), net)
        lent_names = [variable.name for variables in borrowed.values() for variable in variables]
        if lent_names:
            found.append(f"while a client trains, these variables of the module are its own: {', '.join(lent_names)}")
        name = self.binding.parameter_for("criterion")
        if name is not None and "criterion" in self.binding.required:
            is_named = self.loss_is_given or is_text(self.binding, "criterion")
            own = None if is_named else own_criterion(self.function, name)
            made = f"the loss {shown_name(self.loss)} (--loss)" if own is None else f"the module's {own.name}"
            found.append(f"its parameter {name} gets {made}")
        name = self.binding.parameter_for("optimizer")
        if name is not None and "optimizer" in self.binding.required:
            own = self.own_optimizer
            if own is not None and takes_own(own, net, settings):
                found.append(f"its parameter {name} gets a copy of the module's {own.name} for the client's model")
            elif not is_text(self.binding, "optimizer"):
                group = make_optimizer(net, settings).param_groups[0]
                rates = f"lr {group['lr']:g} (--optimizer, --lr, --momentum, --weight-decay)"
                found.append(f"its parameter {name} gets {settings.get('optimizer') or 'sgd'} with {rates}")
        if "scheduler" in self.binding.required:
            found.append(
                "its scheduler leaves the learning rate as it is; --lr-schedule changes it from round to round"
            )
        return found

    def check_effect(self, *, noise_step: float, augment: str) -> None:
        """Check that what loaders do to batches reaches this function.

        Args:
            noise_step: see ``ClientSpec``.
            augment: what ``--augment`` says.

        Raises:
            PluginError: it makes loaders of its own.
        """
        if self.binding.takes("dataset"):
            check_effect(self.place, {"--feature-noise": noise_step, "--augment": augment != "none"})

    def defaults(self) -> dict[str, Any]:
        """Return the settings for which it has a default of its own; None where that is no value of the setting."""
        found: dict[str, Any] = {}
        for name, value in self.binding.defaults.items():
            is_known = value in OPTIMIZERS if isinstance(value, str) else scalar(value) is not None
            is_usable = is_known and (name == "optimizer") == isinstance(value, str)
            if name in _DEFAULTS and (is_usable or name != "batch_size"):  # loaders need a batch size
                found[name] = value if is_usable else None
        lr = learning_rate_of(variables_of(self.binding))
        own = self.own_optimizer
        if own is not None:  # it has these settings already
            lr = own.value.defaults.get("lr")
            found = {**dict.fromkeys(("optimizer", "momentum", "weight_decay")), **found}
        return found if lr is None else {"lr": lr, **found}

    def __call__(
        self, net: nn.Module, loader: Any, epochs: int, device: torch.device, **settings: Any
    ) -> dict[str, float]:
        """Train and return the metrics; the mean over the calls that returned it, where there are several.

        Raises:
            OwnReturnError: it is a generator, or its accuracy is no fraction.
        """
        calls = self.calls(net, loader, epochs, device, **settings)
        returned = [each.metrics if each.loss is None else {"loss": each.loss, **each.metrics} for each in calls]
        found: dict[str, list[float]] = {}
        for each in returned:
            for name, value in each.items():
                found.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def calls(
        self,
        net: nn.Module,
        loader: Any,
        epochs: int,
        device: torch.device,
        *,
        validation_loader: Any = None,
        first_epoch: int = 1,
        **settings: Any,
    ) -> list[Returned]:
        """Train and return what each call returned.

        Args:
            validation_loader: the examples that the client keeps; a client without any validates on those of the
                training, because most programs divide by their number.
            first_epoch: the number of the first epoch, counted from 1.

        Raises:
            OwnReturnError: it is a generator, its accuracy is no fraction, or the net has other weights afterwards.
            PluginError: it takes all examples at once, and ``max_steps`` would be without effect.
        """
        binding = self.binding
        before = _shapes(net)
        # What no flag has changed does not replace a default of the program's own.
        unchanged = {role for role, value in UNCHANGED.items() if settings.get(role) == value}
        settings = {k: v for k, v in settings.items() if k not in unchanged or k not in binding.defaults}
        offered = {"net": net, "loader": loader, "device": device, "args": self.args, **settings}
        if binding.takes("batch_size"):
            offered["batch_size"] = batch_size_of(loader)
        if gets(binding, "inputs"):
            if settings.get("max_steps"):
                raise PluginError(
                    f"{self.place}: takes all examples at once, so that --max-local-steps would be without effect"
                )
            offered |= all_examples(loader, self.place)
        if binding.takes("dataset"):
            offered["dataset"] = dataset_of(loader, self.place, binding, settings)
        if self.validates is not None:
            kept = validation_loader if validation_loader is not None and len(validation_loader) else loader
            offered[VALIDATION] = kept
            offered[VALIDATION_DATASET] = getattr(kept, "dataset", None)
            offered["loaders"] = {"train": loader, **dict.fromkeys(VALIDATION_SPLITS, kept)}
        offered |= criterion_for(binding, self.loss, device, is_given=self.loss_is_given)
        optimizer = None
        if {"optimizer", "scheduler"} & binding.required:
            own = self.own_optimizer
            is_own = own is not None and takes_own(own, net, settings)
            lr = settings.get("lr")
            optimizer = copy_for(own.value, own.module, net, lr) if own and is_own else make_optimizer(net, settings)
        if binding.takes("optimizer") and not is_text(binding, "optimizer"):
            offered.pop("optimizer", None)
            if "optimizer" in binding.required:
                offered["optimizer"] = optimizer
        if "scheduler" in binding.required:
            assert optimizer is not None
            offered["scheduler"] = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        first_epoch += self.read_facts.first_epoch - 1
        with lent(variables_of(binding), net, loader, settings.get("lr")):
            call = binding.prepared({**offered, "epochs": epochs, "epoch": first_epoch})
            numbers = range(first_epoch, first_epoch + epochs)
            turns = [{"epochs": epochs}] if binding.trains_all_epochs else [{"epoch": number} for number in numbers]
            returned = [
                of_train(call({**offered, **turn}), net, self.read_facts.returns, score=self.score) for turn in turns
            ]
        _check_same(_shapes(net), before)
        for each in returned:
            make_fraction(each.metrics, "train", in_percent=self.in_percent)
        return returned


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state_of(net, keep_vars=True).items()}


def _check_same(now: dict[str, torch.Size], before: dict[str, torch.Size]) -> None:
    odd = [f"{name} of shape {tuple(shape)}" for name, shape in now.items() if before.get(name) != shape]
    odd += [f"no {name}" for name in before if name not in now]
    if odd:
        raise OwnReturnError(
            f"train leaves a model with other weights than it was given: {some(odd)}; undo that before it returns "
            "(prune.remove, remove_parametrizations), or change the model where it is made"
        )
