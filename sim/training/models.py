"""The models: each is made for the shape of one input and a number of classes, and returns logits [B, classes].

Where the targets are no classes, the number of classes is the number of values of one target.
"""

from __future__ import annotations

import copy
import difflib
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Number
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy as is_uninitialized

from sim import user_code
from sim.data.columns import leaves
from sim.errors import ConfigError, PluginError, described
from sim.parameter_roles import ROLES, Binding, names_of
from sim.private_names import gradient_hooks
from sim.training.local import evaluating
from sim.training.weights import state_of

ImageShape = tuple[int, int, int]


class Net(nn.Module):
    """The CNN of PyTorch's CIFAR-10 tutorial: 62,006 parameters for 3×32×32 images and 10 classes.

    Another image shape changes only the first convolution and the first linear layer. Source: PyTorch tutorials,
    "Training a Classifier".
    """

    def __init__(self, image_shape: ImageShape = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * _after_net(height) * _after_net(width), 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits float32 [B, classes] of images float32 [B, C, H, W]."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def _after_net(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2


class SimpleCnn(nn.Module):
    """A wider CNN with dropout: 1,626,442 parameters for 3×32×32 images and 10 classes.

    It has two 3×3 convolutions with 32 and 64 channels, max-pooling, dropout 0.25, a linear layer of 128 units and
    dropout 0.5. Weights are initialized as in Glorot and Bengio (2010), biases with zero. Source: pfl-research's
    CIFAR-10 benchmark (Granqvist et al., 2024).
    """

    def __init__(self, image_shape: ImageShape = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, num_classes)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits float32 [B, classes] of images float32 [B, C, H, W]."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout1(self.pool(x))
        x = torch.flatten(x, 1)
        x = self.dropout2(F.relu(self.fc1(x)))
        logits: Tensor = self.fc2(x)
        return logits


class Mlp(nn.Module):
    """The 2NN of McMahan et al. (2017): 199,210 parameters for 1×28×28 images and 10 classes.

    It is a multilayer perceptron with two hidden layers of 200 units, for inputs of any shape.
    """

    def __init__(
        self, image_shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 10, hidden_size: int = 200
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(math.prod(image_shape), hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)
        self.fc3 = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits float32 [B, classes] of inputs float32 [B, …]."""
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


class Logistic(nn.Module):
    """Multinomial logistic regression, or linear regression: one linear layer, for inputs of any shape.

    It has 610 parameters for 60 features and 10 classes, as in Li et al. (2020) for their synthetic data.
    """

    def __init__(self, image_shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(math.prod(image_shape), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits float32 [B, classes] of inputs float32 [B, …]."""
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class CharLstm(nn.Module):
    """The stacked LSTM of McMahan et al. (2017): 819,920 parameters for 80 characters.

    Each token is embedded in 8 dimensions, and two LSTM layers of 256 units read the sequence. A linear layer gives
    the logits of the next token at each position, or one prediction at the last position if the target is one class.
    The paper's model has 866,578 parameters; it does not say the sizes of its vocabulary and of its biases.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int | None = None,
        target_shape: tuple[int, ...] | None = None,
        embedding_size: int = 8,
        hidden_size: int = 256,
        num_layers: int = 2,
    ) -> None:
        """
        Args:
            num_classes: number of outputs; as many as tokens if not given.
            target_shape: shape of the target of one example: () for one class, (T,) for one token at each position.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes or vocab_size)
        self.only_last = target_shape == ()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits float32 [B, T, classes] of tokens int64 [B, T]; [B, classes] for one class."""
        states, _ = self.lstm(self.embedding(x))
        logits: Tensor = self.fc(states[:, -1] if self.only_last else states)
        return logits


def resnet18(image_shape: ImageShape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    """Make torchvision's ResNet-18 for small images: 11,173,962 parameters for 3×32×32 images and 10 classes.

    The first convolution is 3×3 without stride and there is no max-pooling, as in He et al. (2016) for CIFAR-10.
    GroupNorm with two groups replaces BatchNorm, as in Reddi et al. (2021): if clients have few classes each, the
    average of their running statistics suits none of them (Hsieh et al. 2020).
    """
    from torchvision.models import resnet18 as torchvision_resnet18

    net: nn.Module = torchvision_resnet18(num_classes=num_classes, norm_layer=partial(nn.GroupNorm, 2))
    conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
    net.conv1, net.maxpool = conv1, nn.Identity()
    return net


MODELS: dict[str, Callable[..., nn.Module]] = {
    "Net": Net,
    "SimpleCnn": SimpleCnn,
    "ResNet18": resnet18,
    "Mlp": Mlp,
    "Logistic": Logistic,
    "CharLstm": CharLstm,
}
TORCHVISION = "torchvision:"
_WITH_MORE_OUTPUTS = ("googlenet", "inception_v3")  # in training, unless told otherwise


def _classifier(name: str) -> Callable[..., nn.Module]:
    """Return what makes a classifier of torchvision without weights.

    Raises:
        ConfigError: there is no such classifier.
    """
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(
            f"--model {TORCHVISION}{name}: torchvision has no such classifier; it has {', '.join(close)}"
            + (f" and {len(known) - len(close)} more" if len(close) < len(known) else "")
        )
    more: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _WITH_MORE_OUTPUTS else {}

    def make(num_classes: int, **given: Any) -> nn.Module:
        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **given)
        return net

    return partial(make, **more)


@dataclass(frozen=True)
class DataFacts:
    """What a model may be told of the data; None where it is not known.

    Attributes:
        input_shape: of the first input of one example as the model gets it; (C, H, W) for images.
        num_outputs: number of classes, or of values in the target of one example.
        vocab_size: number of different tokens, where the inputs are tokens.
        target_shape: of the target of one example; () for one class or number.
    """

    input_shape: tuple[int, ...] | None
    num_outputs: int | None
    vocab_size: int | None = None
    target_shape: tuple[int, ...] | None = None

    def offered(self) -> dict[str, Any]:
        """Return the facts that are known, by role (see ``sim.parameter_roles``)."""
        shape, facts = self.input_shape, dict[str, Any]()
        if self.num_outputs is not None:
            facts |= {"num_classes": self.num_outputs, "num_outputs": self.num_outputs}
        if shape:
            facts |= {"num_features": math.prod(shape), "image_shape": shape}
        if shape is not None and len(shape) == 3:
            facts |= {"num_channels": shape[0], "image_size": shape[1]}
        if self.vocab_size is not None:
            facts["vocab_size"] = self.vocab_size
        if self.target_shape is not None:
            facts["target_shape"] = self.target_shape
        return facts


def build(
    model: Any, facts: DataFacts, model_args: Mapping[str, Any] | None = None, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Make a model by its name, with the user's own function, or from a module of the user's, which is copied.

    Raises:
        PluginError: the model cannot be imported or built, or it is not a ``torch.nn.Module``.
        ConfigError: the model does not take one of ``model_args``.
    """
    place = f"--model {user_code.shown_name(model)}"
    try:
        net = maker(model, facts, model_args, args)()
    except (PluginError, ConfigError):
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{place}: cannot be built for {_shown(facts)}: {described(error)}") from error
    if not isinstance(net, nn.Module):
        raise PluginError(f"{place}: returned {type(net).__name__}, not a torch.nn.Module")
    for name, tensor in state_of(net).items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else "on the device meta" if tensor.is_meta else tensor.layout
            raise PluginError(
                f"{place}: {name} of its state_dict is {kind}, and only ordinary tensors can be averaged; "
                "register_buffer(…, persistent=False) keeps a constant out of the state_dict"
            )
    return net


def maker(
    model: Any, facts: DataFacts, model_args: Mapping[str, Any] | None = None, args: Mapping[str, Any] | None = None
) -> partial[Any]:
    """Return what makes a model, with all its arguments; for a module that is made already, what copies it.

    A function or class gets what its parameters ask for by name, such as ``num_classes`` or ``image_shape``; see
    ``sim.parameter_roles``. A parameter ``args`` gets a namespace with all of that and the program's own arguments.

    Args:
        model: a name in ``MODELS``, ``torchvision:name`` of a classifier, ``package.module:name``, or the object.
        model_args: arguments that the user gave; they come first.
        args: the program's own arguments, see ``--args``.

    Raises:
        PluginError: the model cannot be imported, or a parameter of it is not known.
        ConfigError: the model does not take one of ``model_args``.
    """
    factory = MODELS.get(model) if isinstance(model, str) else None
    if isinstance(model, str) and model.startswith(TORCHVISION):
        factory = _classifier(model.removeprefix(TORCHVISION))
    factory = factory or user_code.load(model, "--model", callable_only=False)
    name = user_code.shown_name(model)
    place = f"--model {name}"
    given = dict(model_args or {})
    if isinstance(factory, nn.Module):
        if given:
            raise ConfigError(f"--model-args {next(iter(given))}: {name} is made already, and takes no arguments")
        return partial(_copy, factory, place)
    if not callable(factory):
        raise PluginError(f"{place}: is of type {type(factory).__name__}, neither a class, a function nor a module")
    if given:
        user_code.check_arguments(factory, given, set(), "--model-args", name)
    offered = {role: value for role, value in facts.offered().items() if role not in {ROLES.get(k) for k in given}}
    known = {each: value for role, value in offered.items() for each in names_of(role)}
    offered["args"] = user_code.arguments({**(args or {}), **given}, factory, known=known)
    made = partial(factory, **given)
    binding = Binding.of(made if given else factory, offered, place)
    # What has a default of the program's own keeps it, but for what makes a model fit any data set.
    taken = {*binding.required, "num_classes", "image_shape", "target_shape", *(["args"] if args else [])}
    if not isinstance(binding.defaults.get("num_classes"), Number | None):
        taken.remove("num_classes")  # the names of the classes, perhaps
    chosen = {role: value for role, value in offered.items() if role in taken and binding.takes(role)}
    positional, keywords = binding.arguments(chosen)
    return partial(made, *positional, **keywords)


def copy_hooks_and_attributes(parameter: nn.Parameter, copied: nn.Parameter, memo: dict[int, Any]) -> None:
    """Give the copy of a parameter what ``copy.deepcopy`` leaves out: hooks, and attributes as ``_no_weight_decay``.

    Args:
        memo: as ``copy.deepcopy`` has it.
    """
    for name, value in vars(parameter).items():
        vars(copied).setdefault(name, copy.deepcopy(value, memo))
    before, after = gradient_hooks(parameter)
    for hook in before:
        copied.register_hook(hook)
    for hook in after:
        copied.register_post_accumulate_grad_hook(hook)


def _copy(net: nn.Module, place: str) -> nn.Module:
    try:
        if isinstance(net, torch.jit.ScriptModule):  # the parameters of a deep copy could not be trained
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                content = io.BytesIO()
                torch.jit.save(net, content)
                content.seek(0)
                copied: nn.Module = torch.jit.load(content)
            return copied
        memo: dict[int, Any] = {}
        for parameter in net.parameters():
            if vars(parameter) or any(gradient_hooks(parameter)):
                copy_hooks_and_attributes(parameter, copy.deepcopy(parameter, memo), memo)
        return copy.deepcopy(net, memo)
    except Exception as error:
        raise PluginError(f"{place}: cannot be copied: {described(error)}") from error


def _shown(facts: DataFacts) -> str:
    return "these data" if facts.input_shape is None else f"inputs of {facts.input_shape}"


def is_lazy(net: nn.Module) -> bool:
    """Return whether a net has parameters whose shape is known only after its first call."""
    return any(is_uninitialized(tensor) for tensor in (*net.parameters(), *net.buffers()))


def try_out(net: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], place: str) -> Any:
    """Call a net without changing its buffers, and return what it gives.

    Raises:
        PluginError: it raised.
    """
    try:
        with torch.no_grad(), evaluating(net):
            return net(*inputs, **named)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        given = leaves([*inputs, *named.values()])
        shapes = ", ".join(str(tuple(each.shape)) for each in given if isinstance(each, Tensor)) or "this kind"
        raise PluginError(f"{place}: does not take inputs of {shapes}: {described(error)}") from error


def check_logits(model: str, net: nn.Module, image_shape: ImageShape, num_classes: int) -> None:
    """Check that a net turns images into logits [B, num_classes], which the built-in training and test need.

    Raises:
        PluginError: it does not.
    """
    place = f"--model {model}"
    try:
        with torch.no_grad(), evaluating(net):
            logits = net(torch.zeros(2, *image_shape))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{place}: does not take images of {image_shape}: {described(error)}") from error
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, num_classes):
        raise PluginError(f"{place}: the output for two images has the shape {shape}, not (2, {num_classes})")
