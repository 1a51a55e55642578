"""What a ``train`` and a ``test`` of the user's have in common: how they are called, and with which examples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sim.client.borrowed_variables import Borrowed, borrowed_by
from sim.client.first_epoch import first_epoch_of
from sim.client.own_returns import OwnReturnError
from sim.client.returned_names import Names, names_of_returns
from sim.errors import PluginError
from sim.method_binding import makes_loaders
from sim.parameter_roles import Binding

EXAMPLES = "loader", "loaders", "inputs", "dataset"
VALIDATION_SPLITS = "val", "valid", "validation", "test"
UNCHANGED = {"max_steps": 0, "precision": "fp32"}  # what these settings are without a flag


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
    # An object that can be called need not be hashable, as one of a dataclass.
    known = function if isinstance(function, Hashable) else type(function).__call__
    return SourceFacts(names_of_returns(function), makes_loaders(function, owner), first_epoch_of(known))


@dataclass(frozen=True)
class OwnFunction:
    """A function of the user's, whose parameters get what their names mean.

    Attributes:
        loss: name of the loss that it gets as its criterion, if it asks for one.
        args: the program's own arguments.
        score: what an accuracy is called: ``accuracy``, or ``score`` where the targets are no classes.
        in_percent: its accuracy is in percent.
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
    owner: type | None = None
    facts: SourceFacts | None = None
    loss_is_given: bool = False

    @cached_property
    def read_facts(self) -> SourceFacts:
        """What its source says."""
        return source_facts(self.function, self.owner) if self.facts is None else self.facts


def gets(binding: Binding, form: str) -> bool:
    """Return whether a function gets examples in one of the forms of ``EXAMPLES``.

    A parameter with a default gets them only if no other one does: ``features=False`` beside a loader stays.
    """
    required = binding.required
    first = next(filter(binding.takes, sorted(EXAMPLES, key=lambda each: each not in required)), None)
    return form in required or form == first


def variables_of(binding: Binding, *, is_test: bool = False) -> Borrowed:
    """Return the variables of modules that a function uses in the place of parameters."""
    given = set(binding.roles.values())
    net_names = [name for name, role in binding.roles.items() if role == "net"]
    given |= {"loader"} if given & {*EXAMPLES} else set()
    return borrowed_by(binding.function, given, is_test=is_test, net_names=net_names)


def all_examples(loader: Any, place: str) -> dict[str, Any]:
    """Return all examples of a loader in one batch, for a function that takes ``X`` and ``y``."""
    batch = next(iter(loader.with_batch_size(max(1, loader.num_examples))))
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise PluginError(f"{place}: takes inputs and targets, but an example of these data is no pair of them")
    return dict(zip(("inputs", "targets"), batch, strict=True))


def batch_size_of(loader: Any) -> int:
    """Return the number of examples in a batch of a loader: 1 if a sampler of the user's decides it for each batch."""
    return getattr(loader, "batch_size", None) or 1


def dataset_of(loader: Any, place: str, binding: Binding, settings: Mapping[str, Any]) -> Any:
    """Return the examples of a loader as a data set, for a function that makes its own loader.

    Raises:
        PluginError: what the loader does to batches would be without effect.
    """
    check_effect(place, {"--max-local-steps": settings.get("max_steps") and not binding.takes("max_steps")})
    return loader.dataset


def check_effect(place: str, flags: Mapping[str, Any]) -> None:
    """Check that flags whose effect is that of the loader are not given to a function that makes its own.

    Args:
        flags: flag → whether it is given.

    Raises:
        PluginError: one is.
    """
    for flag, is_given in flags.items():
        if is_given:
            raise PluginError(f"{place}: makes its own loader, so that {flag} would be without effect")


def make_fraction(metrics: dict[str, float], function: str, *, in_percent: bool) -> None:
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
