"""The user's own ``load_data`` function: calls it and converts the data that it returns to arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import user_code
from sim.errors import DataError, described

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(spec: str, data_dir: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Call ``package.module:function`` and return its splits as arrays.

    The function is called with ``data_dir`` if it has such a parameter, and it must return (train, test, …). A split is
    a pair (images, labels) of arrays, with images uint8 [N, H, W] or [N, H, W, C] and labels of any integer type [N].
    Or it is a torch ``Dataset`` or ``DataLoader`` of pairs (image, label) with images float [C, H, W] in −1…1 or 0…1,
    which are converted back to uint8.

    Returns:
        (images uint8 [N, H, W, C], labels int64 [N]) for training and for testing, and the class names.

    Raises:
        PluginError: there is no such function.
        DataError: the function raised, or it returned something else.
    """
    function = user_code.load(spec, "--dataset")
    try:
        returned = function(**user_code.accepted(function, {"data_dir": data_dir}))
    except (Exception, SystemExit) as error:
        raise DataError(f"--dataset {spec}: raised {described(error)}") from error
    if not isinstance(returned, tuple | list) or len(returned) < 2:
        raise DataError(f"--dataset {spec}: returned {type(returned).__name__}; (train, test) is expected")
    train, test = (_split(spec, name, returned[i]) for i, name in enumerate(("train", "test")))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"--dataset {spec}: train images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    num_classes = int(max(train[1].max(), test[1].max())) + 1
    return train, test, tuple(str(c) for c in range(num_classes))


def _split(spec: str, name: str, given: Any) -> Split:
    place = f"--dataset {spec}: {name}"
    if isinstance(given, tuple | list) and len(given) == 2:
        images, labels = np.asarray(given[0]), np.asarray(given[1])
    else:
        images, labels = _from_examples(place, getattr(given, "dataset", given))
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise DataError(f"{place}: images are {images.dtype} {images.shape}; uint8 [N, H, W, C] is expected")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"{place}: labels are {labels.dtype} {labels.shape}; {len(images)} integers of at least 0 are expected"
        )
    return images, labels.astype(np.int64)


def _from_examples(place: str, examples: Iterable[Any]) -> Split:
    try:
        pairs = [examples[index] for index in range(len(examples))]  # type: ignore[index,arg-type]
        values = np.stack([np.asarray(image, np.float32) for image, _ in pairs])
        labels = np.array([int(label) for _, label in pairs])
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{place}: cannot be read as examples (image, label): {error}") from error
    low, high = float(values.min()), float(values.max())
    if values.ndim != 4 or low < -1.001 or high > 1.001:
        raise DataError(
            f"{place}: images are {values.shape[1:]} in {low:.3g}…{high:.3g}; [C, H, W] in −1…1 or 0…1 is expected"
        )
    scaled = (values + 1) * 127.5 if low < 0 else values * 255
    return np.rint(scaled).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1), labels
