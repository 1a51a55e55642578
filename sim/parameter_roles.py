"""Which argument a parameter of the user's own function means, by its name.

Programs call the same things by different names: ``net`` or ``model``, ``trainloader`` or ``train_loader``, ``lr`` or
``learning_rate``. A *role* is what such names have in common.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import PluginError
from sim.user_code import ARGUMENTS, parameters_of

# Role → the names that parameters with this role have, in lower case.
_NAMES: dict[str, str] = {
    "net": "net model network module nn_model self",
    "loader": (
        "loader trainloader train_loader testloader test_loader dataloader data_loader train_dataloader "
        "test_dataloader val_dataloader valloader val_loader validation_loader train_data_loader test_data_loader "
        "train_dl test_dl valid_loader validloader eval_loader evalloader iterator data training_loader testing_loader "
        "train_iter test_iter val_iter valid_iter data_iter val_dl valid_dl valid_dataloader validation_dataloader "
        "val_data_loader train_batches batches eval_dataloader eval_data_loader evaluation_loader dev_loader "
        "evaluation_dataloader dev_dataloader training_dataloader testing_loader testing_dataloader dl eval_dl dev_dl "
        "eval_iter"
    ),
    # Of a function that makes its own loaders.
    "dataset": (
        "dataset trainset train_set train_dataset training_set train_ds train_data testset test_set test_dataset "
        "testing_set test_ds test_data valset val_set val_dataset val_ds val_data validset valid_set valid_dataset "
        "valid_ds valid_data validation_set validation_dataset eval_set eval_dataset dev_set dev_dataset ds"
    ),
    "loaders": "dataloaders loaders data_loaders dataloader_dict dataloaders_dict loaders_dict",
    "inputs": "x x_train train_x xs x_test test_x inputs features",
    "targets": "y y_train train_y ys y_test test_y targets labels",
    "epochs": "epochs local_epochs num_epochs n_epochs max_epochs nb_epochs",
    "epoch": "epoch epoch_index epoch_number current_epoch",
    "device": "device dev gpu_id",
    "lr": "lr learning_rate",
    "momentum": "momentum",
    "weight_decay": "weight_decay wd",
    "proximal_mu": "proximal_mu mu",
    "max_steps": "max_steps",
    "precision": "precision",
    "batch_size": "batch_size batchsize bs train_batch_size",
    "optimizer": "optimizer optim opt optimiser updater",
    "scheduler": "scheduler lr_scheduler sched lr_sched",
    "criterion": "criterion loss_fn loss_function loss_func lossfn loss_criterion objective loss loss_fct crit",
    "args": ARGUMENTS,
    "seed": "seed random_seed",
    "data_dir": "data_dir data_path data_root root root_dir datadir dataset_dir",
    "client_id": "partition_id client_id cid node_id",
    "num_clients": "num_partitions num_clients n_clients n_partitions",
    # What a model may be told of the data.
    "num_classes": "num_classes n_classes nclasses classes num_labels n_labels class_num nb_classes",
    "num_outputs": "num_outputs dim_out out_dim output_dim output_size out_features n_outputs out_size d_out",
    "image_shape": "image_shape input_shape img_shape in_shape",
    "image_size": "image_size img_size input_resolution",
    "num_channels": "num_channels in_channels channels in_chans n_channels input_channels in_ch nc",
    "num_features": "num_features n_features in_features input_size input_dim in_dim dim_in in_size n_inputs d_in",
    "target_shape": "target_shape",
    "vocab_size": "vocab_size num_tokens ntoken ntokens n_tokens num_embeddings vocabulary_size n_vocab",
}
# The roles of a second loader and of a second data set, whose name begins with one of these.
VALIDATION = "validation_loader"
VALIDATION_DATASET = "validation_dataset"
_VALIDATES = ("val", "test", "eval", "dev")
SETTINGS_OF_TRAINING = tuple(
    "lr momentum weight_decay proximal_mu optimizer max_steps precision batch_size".split()  # noqa: SIM905
)
# What a function gets that trains or tests, besides these settings; data sets only if it makes its own loaders.
ROLES_OF_TRAINING = tuple(
    f"net loader loaders inputs targets {VALIDATION} epochs epoch device criterion scheduler args".split()
)
ROLES_OF_TEST = tuple("net loader inputs targets device criterion args epoch batch_size".split())  # noqa: SIM905
ROLES: dict[str, str] = {name: role for role, names in _NAMES.items() for name in names.split()}


def names_of(role: str) -> list[str]:
    """Return the names that a parameter with this role may have."""
    return _NAMES[role].split()


def validates(name: str) -> bool:
    """Return whether a loader of this name is one for validation or tests."""
    return name.lower().startswith(_VALIDATES)


@dataclass(frozen=True)
class Binding:
    """What the parameters of one function mean.

    Attributes:
        roles: parameter → role, of the parameters that get an argument.
        required: roles without a default.
        defaults: role → the function's own default.
        open_ended: it takes any keyword.
        assumed: parameter → role, where the name says nothing, but nothing else is left that it could be.
    """

    function: Callable[..., Any]
    roles: Mapping[str, str]
    required: frozenset[str]
    defaults: Mapping[str, Any]
    open_ended: bool
    assumed: Mapping[str, str]

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        offered: Collection[str],
        place: str,
        needed: Collection[tuple[str, ...]] = (),
    ) -> Binding:
        """Read the signature of ``function``.

        Args:
            offered: the roles for which there are arguments.
            place: the flag and the function, for the error message.
            needed: roles of which one must be there; if none is, the only parameter of another name has the first.

        Raises:
            PluginError: it is async, or a parameter has no default and none of these roles.
        """
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PluginError(f"{place}: is an async function, which nobody would await; a plain one is needed")
        parameters = parameters_of(function).values()
        open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
        single = {each.name: each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        roles = _roles_of(list(single), offered)
        defaults = {name: each.default for name, each in single.items() if each.default is not each.empty}
        unknown = [name for name in single if name not in roles and name not in defaults]
        missing = [choice[0] for choice in needed if not set(choice) & set(roles.values())]
        assumed = dict(zip(unknown, missing, strict=True)) if len(unknown) == len(missing) == 1 else {}
        if unknown and not assumed:
            way = f"--model-args {unknown[0]}=…" if place.startswith("--model ") else f"a default for {unknown[0]}"
            raise PluginError(
                f"{place}: its parameter {unknown[0]} is none that can be given without {way}; {_choices(offered)}"
            )
        roles = {name: role for name in single if (role := {**roles, **assumed}.get(name)) is not None}
        own = {role: defaults[name] for name, role in roles.items() if name in defaults}
        required = frozenset(role for name, role in roles.items() if name not in defaults)
        return cls(function, roles, required, own, open_ended, assumed)

    def takes(self, role: str) -> bool:
        """Return whether the function has a parameter with this role."""
        return role in self.roles.values()

    def parameter_for(self, role: str) -> str | None:
        """Return the name of the parameter with this role; None if there is none."""
        return next((name for name, own_role in self.roles.items() if own_role == role), None)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters by their names."""
        return parameters_of(self.function)

    @property
    def trains_all_epochs(self) -> bool:
        """Whether one call trains for all epochs, not for one."""
        return self.takes("epochs") or (self.open_ended and not self.takes("epoch"))

    def prepared(self, offered: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
        """Return what is called once or several times with arguments by role."""
        return self.call

    def call(self, offered: Mapping[str, Any]) -> Any:
        """Call the function with those of the offered arguments, by role, that it takes."""
        positional, keywords = self.arguments(offered)
        return self.function(*positional, **keywords)

    def arguments(self, offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return those of the offered arguments, by role, that the function takes: by position, and by name."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for name, parameter in parameters_of(self.function).items():
            role = self.roles.get(name)
            if role is None or role not in offered:
                continue
            if (
                role == "args"
                and parameter.default is not parameter.empty
                and isinstance(offered[role], argparse.Namespace)
                and not vars(offered[role])
            ):
                continue  # the program's own settings, where none were given
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(offered[role])
            else:
                keywords[name] = offered[role]
        if self.open_ended:
            keywords |= {role: value for role, value in offered.items() if role not in self.roles.values()}
        return positional, keywords


def _roles_of(names: Sequence[str], offered: Collection[str]) -> dict[str, str]:
    """Return parameter → role by the names of the parameters; only what is for validation may be taken twice."""
    meant = {name: ROLES.get(name.lower()) for name in names}
    if "dataset" in offered:
        meant |= {name: "dataset" for name in names if name.lower() == "data"}
    else:  # a function that makes no loader of its own iterates over what it gets
        meant |= {name: "loader" for name, role in meant.items() if role == "dataset"}
    found = {name: role for name, role in meant.items() if role is not None and role in offered}
    of_validation = {"loader": VALIDATION, "dataset": VALIDATION_DATASET}
    for once, second in of_validation.items():
        same = [name for name, role in found.items() if role == once]
        if len(same) > 1 and second in offered:
            found |= {name: second for name in same if validates(name)}
    first = {role: name for name, role in reversed(found.items())}
    return {name: role for name, role in found.items() if role in of_validation.values() or first[role] == name}


def _choices(offered: Collection[str]) -> str:
    return "these can: " + ", ".join("|".join(names_of(role)[:2]) for role in sorted(set(offered) & _NAMES.keys()))


def is_text(binding: Binding, role: str) -> bool:
    """Return whether a parameter with this role wants a name, such as ``optimizer="sgd"``, instead of an object."""
    for name, own_role in binding.roles.items():
        if own_role == role:
            parameter = binding.parameters[name]
            return isinstance(parameter.default, str) or parameter.annotation in (str, "str")
    return False
