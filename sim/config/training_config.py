"""The knobs that federated and centralised training share, and how a config is filled and written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from sim.config.fields import check, flag_of, knob, read_toml, rules_of
from sim.config.presets import preset_path
from sim.errors import ConfigError

DATA, MODEL, RUN, MACHINE = "data", "model and training", "run", "machine"

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The knobs that federated and centralised training share."""

    dataset: str = knob(
        "digits",
        "the data set; imagefolder reads train/<class>/* and test/<class>/* in --data-dir",
        DATA,
        choices=("digits", "imagefolder", "synthetic", "cifar10", "cifar100", "mnist", "fashion-mnist"),
        importable=True,
    )
    data_dir: str | None = knob(
        None, "folder of an imagefolder, or torchvision's root of cifar10, cifar100, mnist and fashion-mnist", DATA
    )
    image_size: int = knob(32, "height and width that images are scaled to", DATA, unit="pixels", low=1, high=1024)
    num_examples: int | None = knob(
        None, "training examples of the synthetic data set; 10000 unless given", DATA, low=1, high=1_000_000
    )
    num_classes: int | None = knob(None, "classes of the synthetic data set; 10 unless given", DATA, low=2, high=1000)
    model: str = knob(
        "Net",
        "the model, or your own factory",
        MODEL,
        choices=("Net", "SimpleCnn", "ResNet18", "Mlp"),
        importable=True,
    )
    train: str | None = knob(
        None,
        "your own train(net, loader, epochs, device), as package.module:function",
        MODEL,
        importable=True,
    )
    test: str | None = knob(
        None, "your own test(net, loader, device), as package.module:function", MODEL, importable=True
    )
    batch_size: int = knob(8, "examples a training step", MODEL, unit="examples", low=1)
    optimizer: str = knob("sgd", "how weights step", MODEL, choices=("sgd", "adam", "adamw"))
    lr: float = knob(0.1, "learning rate in the first round", MODEL, above=0)
    lr_decay: float = knob(1.0, "factor on the learning rate after each round", MODEL, above=0, high=1)
    lr_schedule: str = knob(
        "constant",
        "constant, or down to 0 at the last round along half a cosine",
        MODEL,
        choices=("constant", "cosine"),
    )
    momentum: float = knob(0.0, "momentum of SGD", MODEL, low=0, below=1)
    weight_decay: float = knob(0.0, "weight decay", MODEL, low=0)
    precision: str = knob("fp32", "bf16 trains under autocast; weights stay float32", MODEL, choices=("fp32", "bf16"))
    augment: str = knob(
        "none",
        "crop-flip shifts training images by up to 4 pixels and mirrors every second",
        DATA,
        choices=("none", "crop-flip"),
    )
    torch_threads: int = knob(1, "threads of one training; other counts give other last bits", MACHINE, low=1)
    device: str = knob(
        "auto",
        "auto takes a GPU where there is one; for clients, where --num-gpus gives them a share of it",
        MACHINE,
        choices=("auto", "cpu", "cuda"),
    )
    seed: int = knob(0, "all randomness follows from it", RUN, low=0)
    name: str | None = knob(None, "name of the run folder; a time stamp unless given", RUN)
    results_dir: str = knob("results", "where run folders are", RUN)
    verbose: bool = knob(False, "show the chatter of Flower and Ray, too", RUN)

    def __post_init__(self) -> None:
        for config_field in fields(self):
            value = getattr(self, config_field.name)
            checked = check(type(self), config_field, value, f"{config_field.name} = {value!r}")
            object.__setattr__(self, config_field.name, checked)
        if self.dataset == "imagefolder" and self.data_dir is None:
            raise ConfigError(
                "--dataset imagefolder needs --data-dir, a folder with train/<class>/* and test/<class>/*"
            )
        if self.dataset in ("digits", "synthetic") and self.data_dir is not None:
            raise ConfigError(f"--data-dir {self.data_dir}: {self.dataset} is read from no folder")
        if self.momentum and self.optimizer != "sgd":
            raise ConfigError(f"--momentum {self.momentum:g}: belongs to --optimizer sgd, not to {self.optimizer}")
        for name in ("num_examples", "num_classes"):
            if getattr(self, name) is not None and self.dataset != "synthetic":
                raise ConfigError(
                    f"{flag_of(name)} {getattr(self, name)}: belongs to --dataset synthetic, not to {self.dataset}"
                )
        if self.name is not None and not _RUN_NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name}: must be at most 100 letters, digits, '.', '_' and '-', and begin with "
                "a letter or digit"
            )

    @classmethod
    def load(cls, path: str | Path | None = None, *, preset: str | None = None, **values: Any) -> Self:
        """Make a config from a preset, a TOML file that wins over it, and values that win over both.

        Raises:
            ConfigError: see ``read_toml``; no such preset; or a value is wrong.
        """
        return cls(**cls.given(path, preset=preset, **values))

    @classmethod
    def given(cls, path: str | Path | None = None, *, preset: str | None = None, **values: Any) -> dict[str, Any]:
        """Return the knobs that ``load`` finds; those that nobody named are missing.

        Raises:
            ConfigError: see ``read_toml``; or no such preset.
        """
        layers = [read_toml(cls, preset_path(preset), "--preset")] if preset is not None else []
        layers += [read_toml(cls, Path(path), "--config")] if path is not None else []
        return cls.layered([*layers, values])

    @classmethod
    def layered(cls, layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return knobs of which the later win over the earlier."""
        merged: dict[str, Any] = {}
        for layer in layers:
            for config_field in fields(cls):
                rules = rules_of(config_field)
                # A value that is given anew takes along what belongs to the old one.
                for given, hidden in (
                    (config_field.name, rules.instead_of),
                    (rules.instead_of, config_field.name),
                    (rules.argument_of, config_field.name),
                ):
                    if given in layer and hidden not in layer:
                        merged.pop(hidden, None)
            merged.update(layer)
        return merged

    def lr_in(self, number: int, count: int) -> float:
        """Return the learning rate of round (or epoch) ``number`` of 1…``count``."""
        lr = self.lr * self.lr_decay ** (number - 1)
        if self.lr_schedule == "cosine":
            lr *= (1 + math.cos(math.pi * (number - 1) / count)) / 2
        return lr

    def to_toml(self) -> str:
        """Return the resolved config as TOML; a knob without a value is left out."""
        import tomli_w

        return tomli_w.dumps({name: value for name, value in asdict(self).items() if value is not None})
