"""``model.safetensors`` and ``best.safetensors``: the weights of a model with the order of its ``state_dict``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sim.disk import check_is_file
from sim.errors import RunFolderError

_DAMAGE = (OSError, ValueError, LookupError, TypeError, SafetensorError)


def content_of(weight_names: Sequence[str], weights: Sequence[NDArray[Any]], number: int | None = None) -> bytes:
    """Return weights as the content of a file.

    Args:
        number: the round that the file names; None for one that names none.
    """
    # safetensors sorts by dtype and name, so the order of the state_dict is kept beside the arrays.
    names = list(weight_names)
    if len(names) != len(weights):  # clients of a Flower program sent fewer arrays than the first ones
        names = [f"array_{position}" for position in range(len(weights))]
    # One entry, because safetensors writes several in any order, so that the same weights would be other bytes.
    about: dict[str, Any] = (
        {"state_dict": names} if number is None else {"best": {"round": number, "state_dict": names}}
    )
    metadata = {key: json.dumps(value) for key, value in about.items()}
    content: bytes = save(dict(zip(names, weights, strict=True)), metadata=metadata)
    return content


def read_model(path: Path) -> tuple[list[str], list[NDArray[Any]]]:
    """Read the names of the ``state_dict`` and the arrays, in its order.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        check_is_file(path)
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            best = json.loads(metadata.get("best", "{}"))
            names = best["state_dict"] if best else json.loads(metadata["state_dict"])
            return list(names), [file.get_tensor(name) for name in names]
    except _DAMAGE as error:
        raise RunFolderError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def round_of(path: Path) -> int | None:
    """Return the round that a file names; None if there is no such file, or it names none."""
    try:
        check_is_file(path)
        with safe_open(path, framework="np") as file:
            return int(json.loads((file.metadata() or {})["best"])["round"])
    except _DAMAGE:
        return None
