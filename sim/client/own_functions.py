"""The user's own ``train`` and ``test``, called with what their parameters mean; and the built-in ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sim.client.borrowed_variables import (
    Borrowed,
    Variable,
    borrowed_by,
    copy_for,
    learning_rate_of,
    lent,
    of_model,
    own_criterion,
    own_optimizer,
)
from sim.client.first_epoch import first_epoch_of
from sim.client.made_arguments import OPTIMIZERS, criterion_for, make_optimizer, takes_own
from sim.client.own_returns import OwnReturnError, Returned, of_test, of_train, scalar
from sim.client.returned_names import Names, names_of_returns
from sim.errors import PluginError, described, some
from sim.method_binding import MethodBinding, binding_of, makes_loaders
from sim.parameter_roles import (
    ROLES_OF_TEST,
    ROLES_OF_TRAINING,
    SETTINGS_OF_TRAINING,
    VALIDATION,
    VALIDATION_DATASET,
    Binding,
    is_text,
)
from sim.training import local
from sim.training.losses import LOSSES
from sim.training.weights import state_of
from sim.user_code import shown_name

_EXAMPLES = "loader", "loaders", "inputs", "dataset"
# For an object that does not train with them.
_ANY_SETTINGS = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1, "epochs": 1, "proximal_mu": 0.0}
_VALIDATION_SPLITS = "val", "valid", "validation", "test"
_UNCHANGED = {"max_steps": 0, "precision": "fp32"}
_DEFAULTS = ("lr", "momentum", "weight_decay", "optimizer", "batch_size")


class SourceFacts(NamedTuple):
    """What is read in the source of a function; only the process that defined it may have that, as in a notebook.

    Attributes:
        returns: the names in its return statements.
        makes_loaders: it makes loaders of its own, and takes data sets.
        first_epoch: the number that the program gives to its first epoch.
    """

    returns: Names
    makes_loaders: bool
    first_epoch: int


def source_facts(function: Callable[..., Any], owner: type | None) -> SourceFacts:
    """Read the source of a function, or of a method together with that of its class."""
    return SourceFacts(names_of_returns(function), makes_loaders(function, owner), first_epoch_of(function))


@dataclass(frozen=True)
class OwnTrain:
    """The user's ``train``, called as ``sim.training.local.train`` is.

    It may train for all local epochs, or for one, in which case it is called once for each.

    Attributes:
        loss: name of the loss that it gets as its criterion, if it asks for one.
        args: the program's own arguments.
        in_percent: its accuracy is in percent.
        owner: the class of which it is a method that needs an object.
        score: what its accuracy is called, see ``OwnTest``.
        facts: what its source says; None if this process is to read it.
        loss_is_given: by the user, so that it replaces a criterion of the module's.
    """

    function: Callable[..., Any]
    place: str
    loss: str | Callable[..., Any] = "cross_entropy"
    args: Any = None
    in_percent: bool = False
    owner: type | None = None
    score: str = "accuracy"
    facts: SourceFacts | None = None
    loss_is_given: bool = False

    @cached_property
    def read_facts(self) -> SourceFacts:
        """What its source says."""
        return source_facts(self.function, self.owner) if self.facts is None else self.facts

    @cached_property
    def binding(self) -> Binding:
        """What its parameters mean.

        Raises:
            PluginError: one cannot be given, or it takes no model or no examples.
        """
        offered = [*ROLES_OF_TRAINING, *SETTINGS_OF_TRAINING]
        examples = _EXAMPLES
        if self.read_facts.makes_loaders:
            offered += ["dataset", VALIDATION_DATASET]
            examples = _EXAMPLES[::-1]
        binding = binding_of(self.function, offered, self.place, [("net",), examples], owner=self.owner)
        if binding.open_ended:
            return binding
        borrowed = _borrowed(binding)
        if not binding.takes("net") and "net" not in borrowed:
            raise PluginError(
                f"{self.place}: has no parameter for the model, such as net or model, and uses no variable that is one"
            )
        if not any(map(binding.takes, _EXAMPLES)) and "loader" not in borrowed:
            raise PluginError(
                f"{self.place}: has no parameter for the examples of a client, such as loader or train_loader, and "
                "uses no variable that is a DataLoader"
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
        return not takes("inputs") and (takes("max_steps") or not takes("dataset"))

    @property
    def takes_proximal_mu(self) -> bool:
        """Whether it adds FedProx's proximal term itself."""
        return self.binding.open_ended or self.binding.takes("proximal_mu")

    @property
    def validates(self) -> str | None:
        """The parameter that gets other examples than those of the training; None if there is none."""
        roles = self.binding.roles.items()
        required = {VALIDATION, VALIDATION_DATASET, "loaders"} & self.binding.required
        return next((name for name, role in roles if role in required), None)

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
        borrowed = of_model(_borrowed(self.binding), net)
        lent_names = [variable.name for variables in borrowed.values() for variable in variables]
        if lent_names:
            found.append(f"while a client trains, these variables of the module are its own: {', '.join(lent_names)}")
        name = self.binding.parameter_for("criterion")
        if name is not None and "criterion" in self.binding.required:
            own = None if self.loss_is_given else own_criterion(self.function, name)
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
            _check_effect(self.place, {"--feature-noise": noise_step, "--augment": augment != "none"})

    def defaults(self) -> dict[str, Any]:
        """Return the settings for which it has a default of its own; None where that is no value of the setting."""
        found: dict[str, Any] = {}
        for name, value in self.binding.defaults.items():
            is_known = value in OPTIMIZERS if isinstance(value, str) else scalar(value) is not None
            is_usable = is_known and (name == "optimizer") == isinstance(value, str)
            if name in _DEFAULTS and (is_usable or name != "batch_size"):  # loaders need a batch size
                found[name] = value if is_usable else None
        lr = learning_rate_of(_borrowed(self.binding))
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
        unchanged = {role for role, value in _UNCHANGED.items() if settings.get(role) == value}
        settings = {k: v for k, v in settings.items() if k not in unchanged or k not in binding.defaults}
        offered = {"net": net, "loader": loader, "device": device, "args": self.args, **settings}
        if binding.takes("batch_size"):
            offered["batch_size"] = _batch_size_of(loader)
        if binding.takes("inputs"):
            if settings.get("max_steps"):
                raise PluginError(
                    f"{self.place}: takes all examples at once, so that --max-local-steps would be without effect"
                )
            offered |= _all_examples(loader, self.place)
        if binding.takes("dataset"):
            offered["dataset"] = _dataset_of(loader, self.place, binding, settings)
        if self.validates is not None:
            kept = validation_loader if validation_loader is not None and len(validation_loader) else loader
            offered[VALIDATION] = kept
            offered[VALIDATION_DATASET] = getattr(kept, "dataset", None)
            offered["loaders"] = {"train": loader, **dict.fromkeys(_VALIDATION_SPLITS, kept)}
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
        with lent(_borrowed(binding), net, loader, settings.get("lr")):
            call = binding.prepared({**offered, "epochs": epochs, "epoch": first_epoch})
            numbers = range(first_epoch, first_epoch + epochs)
            turns = [{"epochs": epochs}] if binding.trains_all_epochs else [{"epoch": number} for number in numbers]
            returned = [
                of_train(call({**offered, **turn}), net, self.read_facts.returns, score=self.score) for turn in turns
            ]
        _check_same(_shapes(net), before)
        for each in returned:
            _make_fraction(each.metrics, "train", in_percent=self.in_percent)
        return returned


def _borrowed(binding: Binding, *, is_test: bool = False) -> Borrowed:
    """Return the variables of modules that a function uses in the place of parameters."""
    given = set(binding.roles.values())
    return borrowed_by(binding.function, given | ({"loader"} if given & {*_EXAMPLES} else set()), is_test=is_test)


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


@dataclass(frozen=True)
class BuiltInTrain:
    """The built-in training with another loss than the cross-entropy."""

    loss: str | Callable[..., Any]

    def __call__(self, net: nn.Module, loader: Any, epochs: int, device: torch.device, **settings: Any) -> float:
        """Train as ``sim.training.local.train`` does."""
        return local.train(net, loader, epochs, device, loss=_function(self.loss), **settings)


@dataclass(frozen=True)
class BuiltInTest:
    """The built-in test with a loss and metrics."""

    loss: str | Callable[..., Any]
    metrics: Sequence[str | tuple[str, Callable[..., Any]]]

    def sums(self, net: nn.Module, loader: Any, device: torch.device) -> local.TestSums:
        """Return the sums of a part of the test."""
        return local.evaluation_sums(net, loader, device, _function(self.loss), self.metrics)

    def __call__(self, net: nn.Module, loader: Any, device: torch.device) -> tuple[float, dict[str, float]]:
        """Return (loss, metrics)."""
        return local.means([self.sums(net, loader, device)])


def _function(loss: str | Callable[..., Any]) -> Callable[..., Any]:
    return LOSSES[loss] if isinstance(loss, str) else OwnLoss(loss)


@dataclass(frozen=True)
class OwnLoss:
    """The user's loss (outputs, target) → mean of the batch, also where a sum is asked for."""

    function: Callable[..., Any]

    def __call__(self, outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Return the mean, or the sum, of the batch."""
        mean: Tensor = self.function(outputs, target)
        return mean if reduction == "mean" else mean * len(target)


def _all_examples(loader: Any, place: str) -> dict[str, Any]:
    """Return all examples of a loader in one batch, for a function that takes ``X`` and ``y``."""
    batch = next(iter(loader.with_batch_size(max(1, loader.num_examples))))
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise PluginError(f"{place}: takes inputs and targets, but an example of these data is no pair of them")
    return dict(zip(("inputs", "targets"), batch, strict=True))


def _batch_size_of(loader: Any) -> int:
    """Return the number of examples in a batch of a loader: 1 if a sampler of the user's decides it for each batch."""
    return getattr(loader, "batch_size", None) or 1


def _dataset_of(loader: Any, place: str, binding: Binding, settings: Mapping[str, Any]) -> Any:
    """Return the examples of a loader as a data set, for a function that makes its own loader.

    Raises:
        PluginError: what the loader does to batches would be without effect.
    """
    _check_effect(place, {"--max-local-steps": settings.get("max_steps") and not binding.takes("max_steps")})
    return loader.dataset


def _check_effect(place: str, flags: Mapping[str, Any]) -> None:
    """Check that flags whose effect is that of the loader are not given to a function that makes its own.

    Args:
        flags: flag → whether it is given.

    Raises:
        PluginError: one is.
    """
    for flag, is_given in flags.items():
        if is_given:
            raise PluginError(f"{place}: makes its own loader, so that {flag} would be without effect")


@dataclass(frozen=True)
class OwnTest:
    """The user's ``test``: what it returns becomes a loss and metrics.

    Attributes:
        score: what its second number is called: ``accuracy``, or ``score`` where the targets are no classes.
        in_percent: its accuracy is in percent.
        instead: the built-in test, for a function that prints its result and returns nothing.
        owner: the class of which it is a method that needs an object.
        facts: what its source says; None if this process is to read it.
        loss_is_given: by the user, so that it replaces a criterion of the module's.
    """

    function: Callable[..., Any]
    place: str
    loss: str | Callable[..., Any] = "cross_entropy"
    args: Any = None
    score: str = "accuracy"
    in_percent: bool = False
    instead: Callable[..., tuple[float, dict[str, float]]] | None = None
    owner: type | None = None
    facts: SourceFacts | None = None
    loss_is_given: bool = False

    @cached_property
    def read_facts(self) -> SourceFacts:
        """What its source says."""
        return source_facts(self.function, self.owner) if self.facts is None else self.facts

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
        if not (binding.takes("net") or binding.open_ended or "net" in _borrowed(binding, is_test=True)):
            raise PluginError(
                f"{self.place}: has no parameter for the model, such as net or model, and uses no variable that is one"
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
        if binding.takes("inputs"):
            offered |= _all_examples(loader, self.place)
        if "batch_size" in binding.required:
            offered["batch_size"] = _batch_size_of(loader)
        if {"dataset", VALIDATION_DATASET} & set(binding.roles.values()):
            offered |= dict.fromkeys(("dataset", VALIDATION_DATASET), _dataset_of(loader, self.place, binding, {}))
        offered |= criterion_for(binding, self.loss, device, is_given=self.loss_is_given)
        if isinstance(binding, MethodBinding):  # its class may also train, which it does not do now
            optimizer = make_optimizer(net, {})
            is_named = is_text(binding, "optimizer")
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
            loaders = dict.fromkeys(("train", *_VALIDATION_SPLITS), loader)
            made = {"optimizer": "sgd" if is_named else optimizer, "scheduler": scheduler}
            any_value = {**_ANY_SETTINGS, **_UNCHANGED, **made}
            needed = {role: value for role, value in any_value.items() if role in binding.required}
            offered = {**needed, VALIDATION: loader, "loaders": loaders, **offered}
        with _noting_output() as printed, lent(_borrowed(binding, is_test=True), net, loader):
            returned = binding.call(offered)
        if returned is None and printed() and self.instead is not None:
            return self._by_built_in_test(self.instead, net, loader, device)
        found = of_test(returned, self.score, self.read_facts.returns)
        _make_fraction(found.metrics, "test", in_percent=self.in_percent)
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


def _make_fraction(metrics: dict[str, float], function: str, *, in_percent: bool) -> None:
    """Make the accuracy among metrics a fraction.

    Raises:
        OwnReturnError: it is none, or no percentage.
    """
    if "accuracy" not in metrics:
        return
    accuracy = metrics["accuracy"]
    metrics["accuracy"] = accuracy / 100 if in_percent else accuracy
    if not 0 <= metrics["accuracy"] <= 1 + 1e-6:
        of_fractions = (
            f"a fraction 0–1 is expected; --accuracy-in-percent is for a {function} that returns percent, and a "
            'loss is returned as {"loss": …}'
        )
        expected = "a number 0–100 is expected" if in_percent else of_fractions
        raise OwnReturnError(f"{function} returned accuracy {accuracy:g}; {expected}")


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
