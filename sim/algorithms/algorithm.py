"""What an algorithm is made of: a part that each client executes around an unmodified ``train``, and a server part.

The class of this file is federated averaging, which the others change. Arrays are lists in the order of the shared
parameters: those that are trained and do not stay with the client. The client part works on torch tensors, the server
part on numpy arrays.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sim.errors import ConfigError
from sim.training.step_hooks import AfterStep, BeforeStep, Steps

Arrays = list[NDArray[Any]]
State = dict[str, list[Tensor]]


def argument(default: Any, *, low: float | None = None, above: float | None = None, **bounds: Any) -> Any:
    """Declare an argument of an algorithm, with its default and bounds (``low``, ``above``, ``high``, ``choices``)."""
    return field(default=default, metadata={"low": low, "above": above, **bounds})


@dataclass
class Exchange:
    """What a client has when it begins to train.

    Attributes:
        start: the shared parameters as the server sent them.
        sent: what the server sent beside the model, see ``Algorithm.sent``.
        state: what the client kept from the last time that it trained; what is written here is kept.
    """

    start: list[Tensor]
    sent: list[Tensor]
    state: State


@dataclass
class Update:
    """What a client sends.

    Attributes:
        shared: in place of the shared parameters that the net holds after training.
        extras: beside the model; as many arrays as the server sent beside it.
        metrics: numbers for the server and ``metrics.csv``.
    """

    shared: list[Tensor] | None = None
    extras: list[Tensor] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class LocalTraining(Protocol):
    """The training of one client in one round, as the client part of an algorithm sees it."""

    net: nn.Module
    parameters: list[nn.Parameter]  # the shared ones
    local_parameters: list[nn.Parameter]  # those that stay with the client
    is_personal: bool  # whether they stay in this round
    exchange: Exchange

    @property
    def loader(self) -> Any:
        """The client's training examples, in batches of the size of the round."""

    def train(
        self,
        *,
        epochs: int | None = None,
        repeats: int = 1,
        before: BeforeStep | None = None,
        after: AfterStep | None = None,
        prefix: str | None = "",
        must_step: bool = False,
    ) -> Steps:
        """Call the program's ``train`` on the net.

        Args:
            epochs: None for those of the round.
            repeats: how often in a row each batch comes; ``--max-local-steps`` counts the batches.
            before, after: see ``sim.training.step_hooks.watched``.
            prefix: of the names of the metrics that it returns; None for none of them.
            must_step: it has to step the net by an optimizer, unless the client's examples fill no batch, or fewer
                than those whose gradients it accumulates.

        Raises:
            ValueError: it must step the net, and has not.
        """

    def rewindable(self) -> Callable[[], None]:
        """Return a function after which ``train`` finds the random numbers and variables that it would find now."""

    def weights(self) -> list[Tensor]:
        """Return a copy of all arrays of the net, in the order of its ``state_dict``."""

    def load(self, weights: Sequence[Tensor]) -> None:
        """Put all arrays into the net."""


@dataclass(frozen=True)
class Aggregation:
    """What the server part gets after a round.

    Attributes:
        before: the shared parameters that clients began with.
        mean: the clients' mean of the shared parameters, or of what they sent in their place.
        extras: the mean over clients of what they sent beside the model, each client counted alike.
        share: number of clients that sent something ÷ number of all clients, |S| ÷ N.
        clients: (number of examples, metrics) of each client.
    """

    before: Arrays
    mean: Arrays
    extras: Arrays
    share: float
    clients: Sequence[tuple[int, Mapping[str, Any]]]


@dataclass
class Algorithm:
    """Federated averaging (McMahan et al. 2017, algorithm 1), in which clients may keep parameters to themselves.

    Attributes:
        weighting: whether the mean over clients counts each by its number of examples, or all alike (uniform).
    """

    SOURCE: ClassVar[str] = "McMahan et al. 2017, algorithm 1"
    KEEPS_STATE: ClassVar[bool] = False  # of clients, beside the parameters that stay with them
    LOCAL: ClassVar[Literal["", "classifier", "body", "batchnorm"]] = ""  # what stays with clients if nothing is named
    HAS_PERSONAL_MODEL: ClassVar[bool] = False  # each client has a whole model of its own
    SENDS_WEIGHTS: ClassVar[bool] = True  # the mean of what clients send is the new model
    SENDS_UPDATES: ClassVar[bool] = False  # what clients send in the place of parameters are differences already
    USES_LOCAL_EPOCHS: ClassVar[bool] = True  # its arguments do not replace --local-epochs
    FOR_SGD: ClassVar[str] = ""  # what an optimizer other than plain SGD means for it
    DIVIDES_BY_STEPS: ClassVar[bool] = False  # what a client sends, or keeps, is divided by the way of its steps

    weighting: str = argument("examples", choices=("examples", "uniform"))

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            ConfigError: one has another type than its default, or is out of bounds.
        """
        for each in fields(self):
            _check(shown_name(each.name), getattr(self, each.name), each.default, each.metadata)

    def note(self, lr: float | None, local_epochs: int) -> str | None:
        """Return what a user should know about these settings; None for nothing."""
        return None

    # The server part.

    def begin(self, shared: Arrays) -> None:
        """Make the server's own arrays, before the first round; ``shared`` are the initial parameters."""

    def sent(self) -> Arrays:
        """Return what clients get beside the model."""
        return []

    def aggregate(self, aggregation: Aggregation) -> Arrays:
        """Return what the server's strategy takes as the mean of the clients' shared parameters."""
        return aggregation.mean

    def state(self) -> dict[str, Arrays]:
        """Return the server's own arrays, for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the arrays that ``state`` has returned."""
        for name, arrays in state.items():
            setattr(self, name, [np.asarray(array) for array in arrays])

    # The client part.

    def num_steps(self, batches: int, epochs: int, most: int, server_round: int) -> int:
        """Return how many training steps a client takes, for its virtual seconds.

        Args:
            batches: of the client's examples.
            epochs: local epochs of the round.
            most: ``--max-local-steps``, which limits each call of ``train``; 0 for any number.
        """
        return limited(batches * epochs, most)

    def is_personal(self, server_round: int) -> bool:
        """Return whether clients keep parameters to themselves in this round."""
        return True

    def sends_local(self, server_round: int) -> bool:
        """Return whether server and clients send each other in this round what later stays with the clients."""
        return not self.is_personal(server_round)

    def fit(self, local: LocalTraining) -> Update:
        """Train, and return what is sent."""
        local.train()
        return Update()

    def personalize(self, local: LocalTraining) -> bool:
        """Turn the net, which holds the global model, into the client's own; return whether that is another one.

        Parameters that stay with the client are in the net already.
        """
        return False


@dataclass
class Correction:
    """A linear term that is added to the gradient g of each shared parameter w: g + constant + pull · (w − start)."""

    constant: list[Tensor] | None = None
    pull: float = 0.0


@dataclass
class GradientCorrection(Algorithm):
    """An algorithm whose clients train by SGD with a corrected gradient; vectorized training can do that, too."""

    @property
    def can_be_vectorized(self) -> bool:
        """Whether clients do nothing else."""
        return True

    def correction(self, exchange: Exchange) -> Correction:
        """Return what is added to the gradients."""
        return Correction()

    def finish(self, exchange: Exchange, trained: Sequence[Tensor], steps: Steps) -> Update:
        """Return what is sent, after training.

        Args:
            trained: the shared parameters.
        """
        return Update()

    def fit(self, local: LocalTraining) -> Update:
        """Train with corrected gradients."""
        steps = self.train(local)
        with torch.no_grad():
            return self.finish(local.exchange, [p.detach() for p in local.parameters], steps)

    def train(self, local: LocalTraining) -> Steps:
        """Train with corrected gradients.

        Raises:
            ValueError: ``train`` does not use an optimizer.
        """
        exchange = local.exchange
        correction = self.correction(exchange)
        constant, pull = correction.constant, correction.pull

        @torch.no_grad()
        def correct(index: int, parameter: Tensor, rate: float) -> None:
            assert parameter.grad is not None
            if constant is not None:
                parameter.grad.add_(constant[index])
            if pull:
                parameter.grad.add_(parameter - exchange.start[index], alpha=pull)

        return local.train(before=correct if constant is not None or pull else None, must_step=True)


def limited(steps: int, most: int) -> int:
    """Return at most ``most`` steps, of which 0 means any number."""
    return min(steps, most) if most else steps


def zeros(like: Sequence[Tensor]) -> list[Tensor]:
    """Return arrays of zeros."""
    return [torch.zeros_like(tensor) for tensor in like]


def made(algorithm: type[Algorithm], values: Mapping[str, Any], flag: str, name: str) -> Algorithm:
    """Make an algorithm from the arguments of a flag.

    Raises:
        ConfigError: it has no argument of such a name, or a value is wrong.
    """
    known = {shown_name(each.name): each.name for each in fields(algorithm)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{flag} {key}: {name} has no such argument; it has {', '.join(sorted(known))}")
    try:
        return algorithm(**{known[key]: value for key, value in values.items()})
    except ConfigError as error:
        raise ConfigError(f"{flag} of {name}: {error}") from None


def shown_name(attribute: str) -> str:
    """Return the name of an argument, which in Python may need an underscore (``lambda_``)."""
    bare = attribute.removesuffix("_")
    return bare if keyword.iskeyword(bare) else attribute


def _check(name: str, value: Any, default: Any, bounds: Mapping[str, Any]) -> None:
    if isinstance(default, bool) or isinstance(value, bool):
        if not (isinstance(default, bool) and isinstance(value, bool)):
            raise ConfigError(
                f"{name} = {value}: must be {'true or false' if isinstance(default, bool) else 'a number'}"
            )
        return
    if isinstance(default, str):
        choices = bounds.get("choices")
        if not isinstance(value, str) or (choices and value not in choices):
            raise ConfigError(f"{name} = {value}: must be {' or '.join(choices) if choices else 'text'}")
        return
    kinds = (int,) if isinstance(default, int) else (int, float)
    low, above, high = bounds.get("low"), bounds.get("above"), bounds.get("high")
    kind = "a whole number" if kinds == (int,) else "a number"
    if low is not None and high is not None:
        words = f"{kind} from {low:g} to {high:g}"
    else:
        words = f"{kind} of at least {low:g}" if low is not None else f"{kind} above {above:g}"
    valid = isinstance(value, kinds) and np.isfinite(value)
    valid = valid and (low is None or value >= low) and (above is None or value > above)
    if not (valid and (high is None or value <= high)):
        raise ConfigError(f"{name} = {value}: must be {words}")
