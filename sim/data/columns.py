"""Examples as columns: arrays of any dtype with one row for each example, memory-mapped from the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.data.cache import save_array
from sim.errors import DataError

Labels = NDArray[np.int64]
ImageSplit = tuple[NDArray[np.uint8], Labels]  # images [N, H, W, C] as files hold them, and the class of each

TARGET_KEYS = ("label", "labels", "target", "targets", "y")  # of a batch that is a dict
_MOST_CLASSES = 1_000_000  # more than any known data set has; each gets a row of the last layer
MOST_FLOAT_CLASSES = 100  # distinct whole numbers; with more of them, floats are measurements


class ExampleSet(Protocol):
    """One split of a data set."""

    def __len__(self) -> int:
        """Return the number of examples."""

    @property
    def labels(self) -> Labels | None:
        """The class of each example, int64 [N]; None if the targets are no classes."""

    def column(self, name: str) -> NDArray[Any] | None:
        """Return one value for each example, by which they can be partitioned; None if there is no such column."""


@dataclass(frozen=True)
class LoaderSettings:
    """What a DataLoader of the user's says of its batches.

    Attributes:
        batch_size: None if nothing says it, or if ``batch_sampler`` does.
        shuffle: None if a sampler decides, or nothing.
        sampler, batch_sampler: the loader's own, over the positions of the whole split.
        collate_fn: None for PyTorch's default.
        num_workers: processes of each loader.
    """

    batch_size: int | None = None
    shuffle: bool | None = None
    drop_last: bool = False
    sampler: Any = None
    batch_sampler: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    worker_init_fn: Callable[[int], None] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether numbers say all of it, so that it can be stored."""
        return self.sampler is None and self.batch_sampler is None and self.collate_fn is None


def mapped(nest: Any, function: Callable[[Any], Any]) -> Any:
    """Return the same dicts, lists and tuples with ``function`` applied to each leaf."""
    if isinstance(nest, Mapping):
        return {key: mapped(value, function) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        return [mapped(value, function) for value in nest]
    return function(nest)


def leaves(nest: Any) -> Iterator[Any]:
    """Yield the leaves of dicts, lists and tuples, in order."""
    if isinstance(nest, Mapping):
        nest = list(nest.values())
    if isinstance(nest, list | tuple):
        for value in nest:
            yield from leaves(value)
    else:
        yield nest


def form_of(item: Any) -> Any:
    """Return how an item of a data set nests its values and which of them are numbers of Python, as JSON holds it."""
    if isinstance(item, Mapping):
        return ["dict", [form_of(value) for value in item.values()]]
    if isinstance(item, list | tuple):
        return ["tuple" if isinstance(item, tuple) else "list", [form_of(value) for value in item]]
    if isinstance(item, np.generic):
        return "scalar"
    if isinstance(item, np.ndarray):
        return "array"
    return type(item).__name__ if type(item) in (bool, int, float) else "tensor"


def in_form(nest: Any, form: Any) -> Any:
    """Return one example of tensors as the item of the data set from which ``form_of`` was taken."""
    if form in ("bool", "int", "float"):
        return nest.item()
    if form in ("array", "scalar"):
        return nest.cpu().numpy() if form == "array" else nest.cpu().numpy()[()]
    if isinstance(form, str):
        return nest
    kind, parts = form
    if kind == "dict":
        return {key: in_form(value, part) for (key, value), part in zip(nest.items(), parts, strict=True)}
    made = [in_form(value, part) for value, part in zip(nest, parts, strict=True)]
    return tuple(made) if kind == "tuple" else made


def target_of(batch: Any) -> Any:
    """Return the target of a batch: the last element of a list, or what a dict calls label or target; else None."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in TARGET_KEYS if key in batch), None)
    return batch[-1] if isinstance(batch, list | tuple) and len(batch) > 1 else None


def class_labels(target: NDArray[Any] | None) -> Labels | None:
    """Return targets as classes int64 [N] if they are whole numbers of at least 0, one for each example; else None."""
    if target is None or target.dtype.kind not in "biuf" or not target.size:
        return None
    flat = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    if flat.ndim != 1:
        return None
    if flat.dtype.kind == "f":
        values = np.unique(flat)
        if len(values) > MOST_FLOAT_CLASSES or not np.all(values == np.rint(values)):
            return None
    if flat.min() < 0 or flat.max() >= _MOST_CLASSES:
        return None
    return flat.astype(np.int64)


@dataclass(frozen=True)
class Columns:
    """Examples as arrays [N, …] that share their first axis.

    Attributes:
        batch: nested lists and dicts of arrays, in the form of a batch: ``[inputs, targets]``, for example.
        others: more columns by name, which only partitioners read, such as the writer of each example.
        loader: what the user's own DataLoader says of the batches.
        form: of the items of the user's data set, see ``form_of``; None if there was none.
    """

    batch: Any
    others: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    form: Any = None

    def __len__(self) -> int:
        return len(next(leaves(self.batch)))

    @cached_property
    def labels(self) -> Labels | None:
        """The class of each example, int64 [N]; None if the targets are no classes."""
        target = target_of(self.batch)
        return class_labels(target) if isinstance(target, np.ndarray) else None

    def column(self, name: str) -> NDArray[Any] | None:
        """Return a column by its name: one of ``others``, a key or a position of the batch, or ``label``."""
        if name in self.others:
            return self.others[name]
        if isinstance(self.batch, Mapping) and isinstance(self.batch.get(name), np.ndarray):
            return self.batch[name]  # type: ignore[no-any-return]
        if isinstance(self.batch, list) and name.isdecimal() and int(name) < len(self.batch):
            found = self.batch[int(name)]
            return found if isinstance(found, np.ndarray) else None
        target = target_of(self.batch) if name in TARGET_KEYS else None
        return target if isinstance(target, np.ndarray) else None

    def check(self, place: str) -> None:
        """Check that there are examples, that they are numbers, and that none is NaN.

        Raises:
            DataError: the message names the first example.
        """
        if not len(self):
            raise DataError(f"{place}: has no examples")
        empty = next((array.shape for array in leaves(self.batch) if not array.size), None)
        if empty is not None:
            raise DataError(f"{place}: an array of shape {empty} holds no values")
        for array in leaves(self.batch):
            if array.dtype.kind not in "biufc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
                raise DataError(f"{place}: has values of the type {array.dtype}, of which PyTorch makes no tensor")
            if array.dtype.kind in "fc" and np.isnan(array).any():
                bad = int(np.flatnonzero(np.isnan(array).reshape(len(array), -1).any(1))[0])
                raise DataError(f"{place}: example {bad} has NaN, from which nothing can be learnt")

    def save(self, folder: Path, split: str) -> None:
        """Write the arrays and ``{split}.json``, which says how they make a batch."""
        arrays = list(leaves(self.batch))
        for number, array in enumerate(arrays):
            save_array(folder / f"{split}_{number}.npy", array)
        for number, array in enumerate(self.others.values()):
            save_array(folder / f"{split}_other_{number}.npy", array)
        numbers = iter(range(len(arrays)))
        settings = {k: v for k, v in asdict(self.loader).items() if isinstance(v, int | bool)}
        content = {"batch": mapped(self.batch, lambda _: next(numbers)), "others": [*self.others], "loader": settings}
        content["form"] = self.form
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, split: str) -> Columns:
        """Memory-map what ``save`` wrote, read-only.

        Raises:
            OSError, ValueError, KeyError: a file is damaged.
        """
        content = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))

        def array(name: str) -> NDArray[Any]:
            return np.load(folder / f"{split}_{name}.npy", mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return]

        others = {name: array(f"other_{number}") for number, name in enumerate(content["others"])}
        batch = mapped(content["batch"], lambda k: array(str(k)))
        return cls(batch, others, LoaderSettings(**content["loader"]), content.get("form"))


@dataclass(frozen=True)
class LoadedColumns:
    """A data set that is no images: two splits of columns.

    Attributes:
        classes: names of the classes; empty if the targets are no classes.
        vocab_size: number of different tokens, where the inputs are tokens.
        clients: the column of the training split that says to which natural client an example belongs.
        is_regression: the targets are measurements, also where all of them are whole numbers.
        notes: what the user should know, one line each.
    """

    train: Columns
    test: Columns
    classes: tuple[str, ...] = ()
    vocab_size: int | None = None
    clients: str | None = None
    is_regression: bool = False
    notes: tuple[str, ...] = ()
