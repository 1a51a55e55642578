"""The user's own ``load_data`` function: calls it and converts the data that it returns to arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import user_code
from sim.errors import DataError, described
from sim.process_settings import restored_settings

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]

_MOST_CLASSES = 1_000_000  # more than any known data set has; each gets a row of the last layer


def read(spec: str, data_dir: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Call ``package.module:function`` and return its splits as arrays.

    The function is called with ``data_dir`` if it has such a parameter, and it must return (train, test, …). A split is
    a pair (images, labels) of arrays, with images uint8 [N, H, W] or [N, H, W, C] and labels of any integer type [N].
    Or it is a torch ``Dataset`` or ``DataLoader`` of pairs (image, label) with images float [C, H, W] in −1…1 or 0…1,
    which are converted back to uint8. What the function changes in its process, such as the current folder or PyTorch's
    default dtype, is put back.

    Returns:
        (images uint8 [N, H, W, C], labels int64 [N]) for training and for testing, and the class names.

    Raises:
        PluginError: there is no such function.
        DataError: the function raised, or it returned something else.
    """
    function = user_code.load(spec, "--dataset")
    with restored_settings():
        try:
            returned = function(**user_code.accepted(function, {"data_dir": data_dir}))
        except (Exception, SystemExit) as error:
            raise DataError(f"--dataset {spec}: raised {described(error)}") from error
        if not isinstance(returned, tuple | list) or len(returned) < 2:
            raise DataError(f"--dataset {spec}: returned {type(returned).__name__}; (train, test) is expected")
        train, test = (_split(f"--dataset {spec}: {name}", returned[i]) for i, name in enumerate(("train", "test")))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"--dataset {spec}: train images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    num_classes = int(max(train[1].max(), test[1].max())) + 1
    return train, test, tuple(str(c) for c in range(num_classes))


def _split(place: str, given: Any) -> Split:
    try:  # user code again: the methods of a data set, and whatever numpy calls to make arrays
        if isinstance(given, tuple | list) and len(given) == 2:
            images, labels = np.asarray(given[0]), np.asarray(given[1])
        else:
            images, labels = _from_examples(place, getattr(given, "dataset", given))
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{place}: cannot be read as examples (image, label): {described(error)}") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise DataError(f"{place}: images are {images.dtype} {images.shape}; uint8 [N, H, W, C] is expected")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{place}: labels are {labels.dtype} {labels.shape}; {len(images)} integers of at least 0 are expected"
        )
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise DataError(
            f"{place}: labels are {labels.min()} … {labels.max()}; 0 … {_MOST_CLASSES - 1} is possible, and the "
            "largest one gives the number of classes"
        )
    return images, labels.astype(np.int64)


def _from_examples(place: str, examples: Any) -> Split:
    pairs = [examples[index] for index in range(len(examples))]
    values = np.stack([np.asarray(image, np.float32) for image, _ in pairs])
    labels = np.array([int(label) for _, label in pairs])
    for index, (_, label) in enumerate(pairs):
        if label != labels[index]:
            raise DataError(f"{place}: the label of example {index} is {label}; a whole number is expected")
    low, high = float(values.min()), float(values.max())
    if values.ndim != 4 or not (-1.001 <= low <= high <= 1.001):  # NaN is in no range
        raise DataError(
            f"{place}: images are {values.shape[1:]} in {low:.3g}…{high:.3g}; [C, H, W] in −1…1 or 0…1 is expected"
        )
    scaled = (values + 1) * 127.5 if low < 0 else values * 255
    return np.rint(scaled).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1), labels
