"""Which argument a parameter of the user's own function means, by its name.

Programs call the same things by different names: ``net`` or ``model``, ``trainloader`` or ``train_loader``, ``lr`` or
``learning_rate``. A *role* is what such names have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import PluginError
from sim.user_code import parameters_of

# Role → the names that parameters with this role have, in lower case.
_NAMES: dict[str, str] = {
    "net": "net model network module nn_model",
    "loader": (
        "loader trainloader train_loader testloader test_loader dataloader data_loader train_dataloader "
        "test_dataloader val_dataloader valloader val_loader validation_loader train_data_loader test_data_loader "
        "train_dl test_dl valid_loader validloader eval_loader evalloader iterator data"
    ),
    "epochs": "epochs local_epochs num_epochs n_epochs max_epochs nb_epochs",
    "epoch": "epoch epoch_index epoch_number current_epoch",
    "device": "device dev",
    "lr": "lr learning_rate",
    "momentum": "momentum",
    "weight_decay": "weight_decay wd",
    "proximal_mu": "proximal_mu mu",
    "max_steps": "max_steps",
    "precision": "precision",
    "batch_size": "batch_size batchsize bs train_batch_size",
    "optimizer": "optimizer optim opt",
    "criterion": "criterion loss_fn loss_function loss_func lossfn loss_criterion objective",
    "args": "args arguments config cfg options hparams hyperparameters params conf configuration",
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
ROLES: dict[str, str] = {name: role for role, names in _NAMES.items() for name in names.split()}


def names_of(role: str) -> list[str]:
    """Return the names that a parameter with this role may have."""
    return _NAMES[role].split()


@dataclass(frozen=True)
class Binding:
    """What the parameters of one function mean.

    Attributes:
        roles: parameter → role, of the parameters that get an argument.
        required: roles without a default.
        defaults: role → the function's own default.
        open_ended: it takes any keyword.
    """

    function: Callable[..., Any]
    roles: Mapping[str, str]
    required: frozenset[str]
    defaults: Mapping[str, Any]
    open_ended: bool

    @classmethod
    def of(cls, function: Callable[..., Any], offered: Collection[str], place: str) -> Binding:
        """Read the signature of ``function``.

        Args:
            offered: the roles for which there are arguments.
            place: the flag and the function, for the error message.

        Raises:
            PluginError: a parameter has no default and none of these roles.
        """
        roles: dict[str, str] = {}
        defaults: dict[str, Any] = {}
        open_ended = False
        for name, parameter in parameters_of(function).items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                open_ended = open_ended or parameter.kind is parameter.VAR_KEYWORD
                continue
            role = ROLES.get(name.lower())
            if role is None or role not in offered or role in roles.values():
                if parameter.default is not parameter.empty:
                    continue
                raise PluginError(f"{place}: its parameter {name} is none that can be given; {_choices(offered)}")
            roles[name] = role
            if parameter.default is not parameter.empty:
                defaults[role] = parameter.default
        required = frozenset(roles.values()) - frozenset(defaults)
        return cls(function, roles, required, defaults, open_ended)

    def takes(self, role: str) -> bool:
        """Return whether the function has a parameter with this role."""
        return role in self.roles.values()

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
                and not getattr(offered[role], "__dict__", None)
            ):
                continue  # the program's own settings, where none were given
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(offered[role])
            else:
                keywords[name] = offered[role]
        if self.open_ended:
            keywords |= {role: value for role, value in offered.items() if role not in self.roles.values()}
        return positional, keywords


def _choices(offered: Collection[str]) -> str:
    return "these can: " + ", ".join("|".join(names_of(role)[:2]) for role in sorted(offered))


def is_text(binding: Binding, role: str) -> bool:
    """Return whether a parameter with this role wants a name, such as ``optimizer="sgd"``, instead of an object."""
    for name, own_role in binding.roles.items():
        if own_role == role:
            parameter = parameters_of(binding.function)[name]
            return isinstance(parameter.default, str) or parameter.annotation in (str, "str")
    return False
