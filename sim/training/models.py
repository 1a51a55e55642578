"""The models: each is made for an image shape (C, H, W) and a number of classes, and returns logits [B, classes]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sim import user_code
from sim.errors import PluginError, described
from sim.training.local import evaluating
from sim.user_code import accepted

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

    It is a multilayer perceptron with two hidden layers of 200 units.
    """

    def __init__(self, image_shape: ImageShape = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.fc1 = nn.Linear(channels * height * width, 200)
        self.fc2 = nn.Linear(200, 200)
        self.fc3 = nn.Linear(200, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits float32 [B, classes] of images float32 [B, C, H, W]."""
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
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
}


def build(name: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Make a model by its name, or with the user's own function ``package.module:name``.

    The user's function is called with ``image_shape=(C, H, W)`` and ``num_classes``, if it has parameters with these
    names.

    Raises:
        PluginError: the model cannot be imported or built, it is not a ``torch.nn.Module``, or it does not turn images
            of this shape into logits [B, num_classes].
    """
    factory = MODELS.get(name) or user_code.load(name, "--model")
    place = f"--model {name}"
    try:
        net = factory(**accepted(factory, {"image_shape": image_shape, "num_classes": num_classes}))
    except (Exception, SystemExit) as error:
        raise PluginError(f"{place}: cannot be built for images of {image_shape}: {described(error)}") from error
    if not isinstance(net, nn.Module):
        raise PluginError(f"{place}: returned {type(net).__name__}, not a torch.nn.Module")
    try:
        with torch.no_grad(), evaluating(net):
            logits = net(torch.zeros(2, *image_shape))
    except (Exception, SystemExit) as error:
        raise PluginError(f"{place}: does not take images of {image_shape}: {described(error)}") from error
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, num_classes):
        raise PluginError(f"{place}: the output for two images has the shape {shape}, not (2, {num_classes})")
    return net
