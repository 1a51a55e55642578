"""Which arrays of a model stay with each client: by patterns of names, or the classifier, the body or BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from sim.errors import ConfigError
from sim.training.weights import state_of

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_SHOWN = 12  # names in an error message


def classifier_of(net: nn.Module) -> str:
    """Return the name of the classifier: the last Linear layer, or the last other one that is no normalisation.

    Raises:
        ValueError: the net has no such module.
    """
    owners = [
        name
        for name, module in net.named_modules()
        if name and not isinstance(module, _NORMS) and next(module.parameters(recurse=False), None) is not None
    ]
    linear = [name for name in owners if isinstance(net.get_submodule(name), nn.Linear)]
    if not owners:
        raise ValueError("the model has no modules with parameters but for normalisation, so none is its classifier")
    found: str = (linear or owners)[-1]
    return found


def local_names(net: nn.Module, patterns: str | None, default: str, strategy: str) -> list[str]:
    """Return the names in the ``state_dict`` of what stays with each client.

    Args:
        patterns: names or patterns such as ``fc3.*``, separated by commas; None for the default, empty for nothing.
        default: classifier, body (all but the classifier), batchnorm, or empty for nothing.
        strategy: for the message.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left that the clients share.
    """
    names = list(state_of(net))
    if patterns is not None:
        found = _matching(names, [pattern.strip() for pattern in patterns.split(",") if pattern.strip()])
    elif default == "batchnorm":
        modules = [name for name, module in net.named_modules() if isinstance(module, _BATCH_NORMS)]
        if not modules:
            raise ConfigError(
                f"--strategy {strategy}: BatchNorm layers stay with the clients, but the model has none; "
                "--local-parameters names others"
            )
        found = _inside(names, modules)
    elif default:
        try:
            head = _inside(names, [classifier_of(net)])
        except ValueError as error:
            raise ConfigError(
                f"--strategy {strategy}: {error}; --local-parameters names what stays with the clients"
            ) from None
        found = head if default == "classifier" else [name for name in names if name not in head]
    else:
        return []
    # A tied parameter is one array under several names, which cannot stay here and be averaged there.
    state = state_of(net, keep_vars=True)
    chosen = {id(state[name]) for name in found}
    found = [name for name in names if id(state[name]) in chosen]
    trained = {name for name, parameter in net.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    if trained and trained <= set(found):
        given = f"--local-parameters {patterns}" if patterns is not None else f"--strategy {strategy}"
        raise ConfigError(f"{given}: all parameters of the model would stay with the clients, and none be averaged")
    return found


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    found = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not matched:
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            raise ConfigError(f"--local-parameters {pattern}: matches no parameter of the model; it has {shown}")
        found |= matched
    return [name for name in names if name in found]


def _inside(names: Sequence[str], modules: Sequence[str]) -> list[str]:
    return [name for name in names if any(name.startswith(f"{module}.") for module in modules)]
