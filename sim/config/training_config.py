"""The settings that all training shares, those of centralized training, and how a config is read and written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from sim.config.choices import DATASETS, MODELS, check_data_settings, trackers
from sim.config.fields import (
    MOST,
    check,
    default_of,
    flag_of,
    given_as,
    parse_number,
    read_toml,
    rules_of,
    setting,
    shown,
)
from sim.config.presets import preset_path
from sim.config.program import program_parts, what_was_found
from sim.errors import ConfigError, one_line
from sim.metrics import check_metrics
from sim.user_code import name_of

DATA, MODEL, RUN, MACHINE = "data", "model and training", "run", "machine"

_SIDE = 32  # pixels

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _GivenObjects:
    """Keeps the objects that a config was given, apart from its settings: ``vars(config)`` holds those alone."""

    __slots__ = ("_objects",)
    _objects: dict[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(_GivenObjects):
    """The settings that federated and centralized training share.

    Raises:
        ConfigError: a value has the wrong type, is not valid, or contradicts another value.
    """

    # The values of training settings that neither the user nor the user's own functions say.
    BUILT_IN = MappingProxyType[str, Any](
        {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "optimizer": "sgd", "batch_size": 8}
    )

    dataset: str = setting(
        "digits",
        "data set; imagefolder reads train/<class>/* and test/<class>/* in --data-dir",
        DATA,
        choices=DATASETS,
        importable=True,
    )
    dataset_args: dict[str, bool | int | float | str] = setting(
        {}, "arguments of the data set, e.g. alpha=0.5 beta=0.5 or sequence_length=40", DATA, argument_of="dataset"
    )
    program: str | None = setting(
        None,
        "your program, as file.py or module: its load_data, Net, train and test are found by their names",
        DATA,
    )
    data_dir: str | None = setting(
        None,
        "folder of the data sets imagefolder, text, csv and leaf, or torchvision's root for cifar10, cifar100, mnist "
        "and fashion-mnist",
        DATA,
    )
    target: str | None = setting(None, "column of a table that is predicted", DATA, belongs_to=("dataset", ("csv",)))
    client_column: str | None = setting(
        None, "column of a table that says to which client a row belongs", DATA, belongs_to=("dataset", ("csv",))
    )
    data_form: str = setting(
        "auto",
        "how your own data are kept: columns are arrays, read from a cache; items are drawn from your Dataset each "
        "time; auto takes columns where all items have one shape and drawing one twice gives the same",
        DATA,
        choices=("auto", "columns", "items"),
    )
    args: dict[str, bool | int | float | str] = setting(
        {}, "your program's own arguments, for its parameter args; options of its argparse keep their defaults", DATA
    )
    image_size: int | None = setting(
        None,
        "height and width to which images are scaled; 32 for built-in data sets if not given, and no scaling of yours",
        DATA,
        unit="pixels",
        low=1,
        high=1024,
    )
    num_examples: int | None = setting(
        None,
        "number of training examples of the synthetic data set; 10000 if not given",
        DATA,
        low=1,
        high=1_000_000,
        belongs_to=("dataset", ("synthetic",)),
    )
    num_classes: int | None = setting(
        None,
        "number of classes of the synthetic data set; 10 if not given",
        DATA,
        low=2,
        high=1000,
        belongs_to=("dataset", ("synthetic",)),
    )
    model: str = setting(
        "auto",
        "model, your own function that makes one, or a classifier as torchvision:resnet18; auto takes Net for images, "
        "Mlp for tables and CharLstm for texts",
        MODEL,
        choices=MODELS,
        importable=True,
    )
    model_args: dict[str, bool | int | float | str] = setting(
        {}, "arguments of the model, e.g. hidden_size=256", MODEL, argument_of="model"
    )
    train: str | None = setting(
        None,
        "your own train(net, loader, epochs, device), as package.module:function; its parameters are bound by name",
        MODEL,
        importable=True,
    )
    test: str | None = setting(
        None, "your own test(net, loader, device), as package.module:function", MODEL, importable=True
    )
    loss: str | None = setting(
        None,
        "loss of the built-in training and test; if not given, cross_entropy for classes, bce for zeros and ones as "
        "floats, mse for other targets",
        MODEL,
        choices=("cross_entropy", "bce", "mse", "mae", "huber", "nll"),
        importable=True,
    )
    metric: str | None = setting(
        None,
        "metrics of the built-in test, separated by commas: accuracy, top5, f1, auroc, mae, rmse, r2, perplexity or "
        "package.module:function; :min or :max says which is better; default accuracy for classes, otherwise mae",
        MODEL,
    )
    accuracy_in_percent: bool = setting(False, "your train, test and client return accuracy in percent", MODEL)
    # More than a million examples at once fit into no memory.
    batch_size: int | None = setting(
        None,
        "examples per training step; if not given, that of your DataLoader, or {built_in}",
        MODEL,
        unit="examples",
        low=1,
        high=1_000_000,
    )
    optimizer: str | None = setting(
        None,
        "optimizer of the training; if not given, that of your train, or sgd",
        MODEL,
        choices=("sgd", "adam", "adamw"),
    )
    lr: float | None = setting(  # PyTorch's is float32
        None,
        "learning rate in the first round; if not given, the default of your train, or {built_in}",
        MODEL,
        above=0,
        high=1e38,
    )
    lr_decay: float = setting(
        1.0, "factor by which the learning rate is multiplied after each round", MODEL, above=0, high=1
    )
    lr_schedule: str = setting(
        "constant",
        "cosine lowers the learning rate along half a cosine wave, to almost 0 in the last round; step multiplies it "
        "by --lr-gamma after some rounds",
        MODEL,
        choices=("constant", "cosine", "step"),
    )
    lr_step_every: int | None = setting(
        None,
        "rounds between two steps of the learning rate",
        MODEL,
        unit="rounds",
        low=1,
        high=MOST,
        instead_of="lr_milestones",
        belongs_to=("lr_schedule", ("step",)),
    )
    lr_milestones: str | None = setting(
        None,
        "rounds after which the learning rate takes a step, separated by commas, e.g. 10,20",
        MODEL,
        belongs_to=("lr_schedule", ("step",)),
    )
    lr_gamma: float = setting(
        0.1,
        "factor by which a step multiplies the learning rate",
        MODEL,
        above=0,
        high=1,
        belongs_to=("lr_schedule", ("step",)),
    )
    lr_warmup: int = setting(
        0,
        "rounds in which the learning rate rises in equal parts to --lr, before --lr-schedule begins; 0 or 1 for none",
        MODEL,
        unit="rounds",
        low=0,
        high=MOST,
    )
    momentum: float | None = setting(
        None,
        "momentum of SGD; if not given, the default of your train, or {built_in}",
        MODEL,
        low=0,
        below=1,
        belongs_to=("optimizer", (None, "sgd")),
    )
    weight_decay: float | None = setting(
        None, "weight decay; if not given, the default of your train, or {built_in}", MODEL, low=0, high=1e38
    )
    clip_grad_norm: float | None = setting(
        None,
        "largest norm of the gradient of a step of the built-in training, over all parameters; a longer one is scaled "
        "down to it; no limit if not given",
        MODEL,
        above=0,
        high=1e38,
    )
    precision: str = setting(
        "fp32", "bf16 trains with bfloat16 autocast; weights stay float32", MODEL, choices=("fp32", "bf16")
    )
    augment: str = setting(
        "none",
        "crop-flip shifts each training image by up to 4 pixels and mirrors it with probability 1/2",
        DATA,
        choices=("none", "crop-flip"),
    )
    torch_threads: int = setting(  # OpenMP ends the process if it cannot start them all; no machine has more CPUs
        1,
        "CPU threads of PyTorch per process; the last bits of the results depend on this number",
        MACHINE,
        low=1,
        high=1024,
    )
    device: str = setting(
        "auto",
        "auto uses a GPU if there is one; clients use it only if --num-gpus gives them a share",
        MACHINE,
        choices=("auto", "cpu", "cuda"),
    )
    # TOML and the messages to clients of a network hold signed numbers of 64 bits.
    seed: int = setting(0, "seed from which all random numbers are derived", RUN, low=0, high=2**63 - 1)
    name: str | None = setting(None, "name of the run folder; a time stamp if not given", RUN)
    results_dir: str = setting("results", "folder that contains the run folders", RUN)
    verbose: bool = setting(False, "also show the log messages of Flower and Ray", RUN)
    track: str | None = setting(
        None,
        "programs that also get config, metrics, pictures and model: tensorboard, mlflow, wandb or wandb:offline; "
        "several are separated by commas, or --track is given several times",
        RUN,
        joined=",",
    )

    @property
    def program_notes(self) -> list[str]:
        """Return lines about what was found in ``program``; none without one."""
        client = getattr(self, "client", None)  # it trains in the place of a function
        trains = {} if client is not None and self.train is None else {"train": self.train}
        trains |= {} if client is None else {"client": client}
        parts = {"dataset": self.dataset, "model": self.model, **trains, "test": self.test}
        return [] if self.program is None else what_was_found(self.program, parts)

    def __post_init__(self) -> None:
        objects: dict[str, Any] = {}
        for config_field in fields(self):
            value = getattr(self, config_field.name)
            if rules_of(config_field).importable and callable(value):  # the object itself, from Python
                objects[config_field.name], value = value, name_of(value)
            checked = check(type(self), config_field, value, f"{config_field.name} = {shown(value)}")
            object.__setattr__(self, config_field.name, checked)
        object.__setattr__(self, "_objects", objects)
        if self.program is not None:
            needs_model = self.model == type(self).model
            for name, path in program_parts(self.program, needs_model=needs_model).items():
                if getattr(self, name) == getattr(type(self), name):  # a part that was named itself wins
                    object.__setattr__(self, name, path)
        check_data_settings(self.dataset, self.data_dir, self.target, self.image_size)
        self._check_places({f.name: getattr(self, f.name) for f in fields(self)}, but_defaults=True)
        check_metrics(self.metric)
        trackers(self.track)
        self._check_training()
        if self.name is not None and not _RUN_NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name}: must be at most 100 letters, digits, '.', '_' and '-', and begin with "
                "a letter or digit"
            )

    def _check_training(self) -> None:
        """Check the settings of the built-in training and of the learning rate.

        Raises:
            ConfigError: two of them contradict each other, or a value would be without effect.
        """
        if self.lr_schedule == "step":
            if self.lr_step_every is None and self.lr_milestones is None:
                raise ConfigError("--lr-schedule step: needs --lr-step-every, e.g. 10, or --lr-milestones, e.g. 10,20")
            if self.lr_step_every is not None and self.lr_milestones is not None:
                raise ConfigError(
                    f"--lr-step-every {self.lr_step_every} and --lr-milestones {self.lr_milestones}: give one of the "
                    "two"
                )
            _milestones(self.lr_milestones)
        client = getattr(self, "client", None)
        if self.clip_grad_norm is not None and client is not None:
            raise ConfigError(
                f"--clip-grad-norm {self.clip_grad_norm:g}: belongs to the built-in training, but --client {client} "
                "takes its own steps"
            )
        if self.clip_grad_norm is not None and self.train is not None:
            raise ConfigError(
                f"--clip-grad-norm {self.clip_grad_norm:g}: belongs to the built-in training, but --train {self.train} "
                "takes its own steps; clip there with torch.nn.utils.clip_grad_norm_"
            )

    def _check_warmup(self, count: int, flag: str) -> None:
        """Check that the learning rate reaches ``lr`` at all.

        Args:
            count: rounds or epochs.
            flag: says how many.

        Raises:
            ConfigError: it does not.
        """
        if self.lr_warmup > count:
            raise ConfigError(f"--lr-warmup {self.lr_warmup}: must be at most {flag} {count}")

    @property
    def objects(self) -> dict[str, Any]:
        """Return the objects that were given instead of import paths, by setting; a copy of the config has none."""
        found: dict[str, Any] = getattr(self, "_objects", {})
        return found

    @classmethod
    def load(cls, path: str | Path | None = None, *, preset: str | None = None, **values: Any) -> Self:
        """Make a config from a preset, a TOML file and ``values``; each overrides what comes before it.

        Raises:
            ConfigError: see ``read_toml``; the preset does not exist; or a value is not valid.
        """
        return cls(**cls.given(path, preset=preset, **values))

    @classmethod
    def given(cls, path: str | Path | None = None, *, preset: str | None = None, **values: Any) -> dict[str, Any]:
        """Return the settings that the preset, the TOML file and ``values`` give, without the defaults.

        Raises:
            ConfigError: see ``read_toml``; or the preset does not exist.
        """
        layers = [read_toml(cls, preset_path(preset), "--preset")] if preset is not None else []
        layers += [read_toml(cls, Path(path), "--config")] if path is not None else []
        merged = cls.layered([*layers, values])
        cls._check_places(merged)
        return merged

    @classmethod
    def _check_places(cls, values: dict[str, Any], *, but_defaults: bool = False) -> None:
        """Check that no value would be without effect, because it belongs to another choice.

        Args:
            but_defaults: let those pass that are the default, because nobody may have given them.

        Raises:
            ConfigError: a value would be without effect.
        """
        for config_field in fields(cls):
            name, belongs_to = config_field.name, rules_of(config_field).belongs_to
            value = values.get(name)
            is_zero = type(value) is int and default_of(config_field) is None  # which is a value as any other
            is_default = but_defaults and value == default_of(config_field)
            if not (value or is_zero) or belongs_to is None or is_default:
                continue
            other, choices = belongs_to
            chosen = values.get(other, getattr(cls, other))
            if chosen not in choices:
                given = format(value, "g") if isinstance(value, float) else value
                uses = " or ".join(filter(None, choices))
                program = values.get("program") if other == "dataset" and chosen == cls.dataset else None
                instead = chosen if program is None else f"the data of --program {program}"
                apart = "" if instead is None else f", not to {instead}"
                raise ConfigError(f"{given_as(name, given)}: belongs to {flag_of(other)} {uses}{apart}")

    def is_used(self, name: str) -> bool:
        """Return whether a setting has an effect, beside the other settings."""
        belongs_to = rules_of(next(f for f in fields(self) if f.name == name)).belongs_to
        return belongs_to is None or getattr(self, belongs_to[0]) in belongs_to[1]

    @classmethod
    def layered(cls, layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Merge settings; later layers override earlier ones."""
        merged: dict[str, Any] = {}
        for layer in layers:
            for config_field in fields(cls):
                rules = rules_of(config_field)
                # A new value also removes its alternative, and the arguments that belonged to the old value.
                for given, hidden in (
                    (config_field.name, rules.instead_of),
                    (rules.instead_of, config_field.name),
                    (rules.argument_of, config_field.name),
                ):
                    if given in layer and hidden not in layer:
                        merged.pop(hidden, None)
                if rules.belongs_to is not None:
                    other, choices = rules.belongs_to
                    if layer.get(other, choices[0]) not in choices and config_field.name not in layer:
                        merged.pop(config_field.name, None)
            merged.update(layer)
        return merged

    @property
    def side(self) -> int:
        """Height and width of the images of built-in data sets, in pixels."""
        return _SIDE if self.image_size is None else self.image_size

    def resolved(self, defaults: Mapping[str, Any]) -> Self:
        """Return the config with a value for each training setting that was not given.

        Args:
            defaults: those of the user's own functions, which come before the built-in ones.
        """
        values = {**self.BUILT_IN, **defaults}
        left_open = {n: value for n, value in values.items() if getattr(self, n) is None and self.is_used(n)}
        if (self.optimizer or values["optimizer"]) != "sgd":
            left_open.pop("momentum", None)
        return replace(self, **left_open)

    def lr_in(self, number: int, count: int) -> float:
        """Return the learning rate of round (or epoch) ``number`` of 1…``count``."""
        lr: float = self.BUILT_IN["lr"] if self.lr is None else self.lr
        lr *= self.lr_decay ** (number - 1)
        if number < self.lr_warmup:
            return lr * number / self.lr_warmup
        if self.lr_schedule == "cosine":  # from the last round of the warm-up, which has all of lr
            before = max(self.lr_warmup - 1, 0)
            lr *= (1 + math.cos(math.pi * (number - 1 - before) / (count - before))) / 2
        elif self.lr_schedule == "step":
            milestones = _milestones(self.lr_milestones)
            every = self.lr_step_every
            steps = sum(number > milestone for milestone in milestones) if every is None else (number - 1) // every
            lr *= self.lr_gamma**steps
        return lr

    @property
    def first_lr_step(self) -> int | None:
        """Return the round after which ``lr_schedule`` takes its first step; None if it takes no steps."""
        if self.lr_schedule != "step":
            return None
        return min(_milestones(self.lr_milestones), default=self.lr_step_every)

    def to_toml(self) -> str:
        """Return the resolved config as TOML, without the settings that have no value or no effect."""
        import tomli_w

        return tomli_w.dumps(
            {name: value for name, value in asdict(self).items() if value is not None and self.is_used(name)}
        )


def _milestones(text: str | None) -> list[int]:
    """Return the rounds that ``lr_milestones`` lists.

    Raises:
        ConfigError: they are no whole numbers in ascending order.
    """
    if text is None:
        return []
    numbers = [parse_number(int, word.strip()) for word in text.split(",")]
    found = [number for number in numbers if number is not None and 1 <= number <= MOST]
    if len(found) < len(numbers) or sorted(set(found)) != found:
        raise ConfigError(
            f"--lr-milestones {one_line(text, 200)}: must be whole numbers from 1 to {MOST} in ascending order, e.g. "
            "10,20"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class CentralizedConfig(TrainingConfig):
    """The settings of training the same model on all data in one place.

    The defaults are those of Flower's tutorial "PyTorch: From Centralized To Federated".

    Raises:
        ConfigError: a value has the wrong type, is not valid, or contradicts another value.
    """

    epochs: int = setting(2, "passes over the training data", MODEL, unit="epochs", low=1, high=MOST)
    BUILT_IN = MappingProxyType[str, Any]({**TrainingConfig.BUILT_IN, "batch_size": 32, "lr": 0.001, "momentum": 0.9})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_warmup(self.epochs, "--epochs")
