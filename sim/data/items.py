"""Examples as items: a map-style ``Dataset`` of the user's, for what is no array: random transforms, texts, any length.

What the user's function returned is opened here: as columns where all items have one form and drawing them twice gives
the same, and as items otherwise.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from sim.data.columns import (
    TARGET_KEYS,
    Columns,
    Labels,
    LoaderSettings,
    class_labels,
    form_of,
    leaves,
    mapped,
    target_of,
)
from sim.errors import DataError, described
from sim.seeds import Purpose, restored, seeded
from sim.user_variables import unchanged

_TRIED_ITEMS = 16  # drawn twice each, spread over a split, to see whether they are random
_BLOCK_ITEMS = 256  # converted at once
_MOST_COLUMN_BYTES = 4 * 2**30  # larger splits are not copied into the cache unless that was asked for


@dataclass(frozen=True)
class Items:
    """Examples that a ``Dataset`` of the user's makes, one at a time.

    Attributes:
        reason: why they are no columns.
        drawn: the labels of some items by their positions, as they were drawn; None for what is no number or text.
        place: the flag and the split, for error messages.
    """

    dataset: Any
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    reason: str = ""
    drawn: Mapping[int, Any] = field(default_factory=dict)
    place: str = "--dataset"

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def labels(self) -> Labels | None:
        """The class of each example, int64 [N]; None if the targets are no classes. All items may have to be drawn."""
        return class_labels(self.column("label"))

    def column(self, name: str) -> NDArray[Any] | None:
        """Return one value for each example: an attribute or a column of the data set, or what its items hold.

        Raises:
            DataError: an item cannot be read.
        """
        found = _cheap_column(self.dataset, name)
        # A subclass may have the labels of its parent in an attribute, and give others.
        drawn = self.drawn if name == "label" else {}
        if found is not None and all(label is None or label == found[index] for index, label in drawn.items()):
            return found
        with _looked_at(self.dataset):
            values = [_entry(_item(self.place, self.dataset, index), name) for index in range(len(self))]
        if any(value is None for value in values):
            return None
        array = np.asarray(values)
        return array if array.ndim == 1 and array.dtype.kind in "biufU" else None


@contextmanager
def _looked_at(dataset: Any) -> Iterator[None]:
    """Leave no trace of items that are drawn in the block: neither in random generators, nor in counters of theirs."""
    with restored(), unchanged(dataset):
        yield


def _item(place: str, dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise DataError(f"{place}: example {index} cannot be read: {described(error)}") from error


def _entry(item: Any, name: str) -> Any:
    """Return a scalar of one item by its key or position; ``label`` is the target."""
    if isinstance(item, Mapping):
        value = item.get(name, target_of(item) if name == "label" else None)
    elif isinstance(item, list | tuple) and name.isdecimal() and int(name) < len(item):
        value = item[int(name)]
    else:
        value = target_of(item) if name == "label" else None
    if isinstance(value, Tensor | np.ndarray):
        value = value.item() if value.ndim == 0 or value.shape == (1,) else None
    return value if isinstance(value, int | float | str | np.number) else None


def _cheap_column(dataset: Any, name: str) -> NDArray[Any] | None:
    """Return a column that a data set holds whole, so that no item needs to be drawn."""
    if isinstance(dataset, Subset):
        column = _cheap_column(dataset.dataset, name)
        return None if column is None else column[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, ConcatDataset):
        columns = [_cheap_column(part, name) for part in dataset.datasets]
        return None if any(c is None for c in columns) else np.concatenate([c for c in columns if c is not None])
    keys = TARGET_KEYS if name == "label" else (name,)
    found: Any = None
    if isinstance(dataset, TensorDataset) and name == "label" and len(dataset.tensors) > 1:
        found = dataset.tensors[-1]
    elif hasattr(dataset, "column_names"):  # of Hugging Face's datasets
        key = next((key for key in keys if key in dataset.column_names), None)
        found = None if key is None else dataset.with_format(None)[key][:]
    elif hasattr(dataset, "targets") and name == "label" and getattr(dataset, "target_transform", None) is None:
        found = dataset.targets
    if found is None:
        return None
    try:
        array = np.asarray(found)
    except Exception:  # noqa: BLE001 - whatever a data set of the user's calls its targets
        return None
    is_column = array.shape[:1] == (len(dataset),) and array.size == len(dataset) and array.dtype.kind in "biufU"
    return array.reshape(-1) if is_column else None


def opened(place: str, given: Any, form: str, *, is_test: bool = False) -> Columns | Items:
    """Open one split that the user's function returned.

    Args:
        place: the flag and the split, for error messages.
        form: ``columns``, ``items``, or ``auto``.
        is_test: the split is what a sampler of its loader draws, each position once.

    Raises:
        DataError: it is none, it is empty, or its items do not fit together.
    """
    loader = LoaderSettings()
    if isinstance(given, DataLoader):
        given, loader = _of_loader(place, given, is_test=is_test)
    form_of_items = ["tuple", ["tensor" for _ in given.tensors]] if type(given) is TensorDataset else None
    arrays = _arrays(given) if loader.is_plain else None
    if arrays is not None and form == "items":
        if type(given) is not TensorDataset:  # whose items are tensors
            given = StackDataset(**arrays) if isinstance(arrays, dict) else StackDataset(*arrays)
    elif arrays is not None:
        columns = Columns(arrays, loader=loader, form=form_of_items)
        _check_lengths(place, columns)
        columns.check(place)
        return columns
    if isinstance(given, IterableDataset) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise DataError(
            f"{place}: is a {type(given).__name__} without length or positions, so it cannot be partitioned; a Dataset "
            "with __len__ and __getitem__, a DataLoader over one, or arrays are expected"
        )
    items = Items(given, loader, place=place)
    if not len(items):
        raise DataError(f"{place}: has no examples")
    return _chosen(place, items, form)


def _of_loader(place: str, loader: DataLoader[Any], *, is_test: bool) -> tuple[Any, LoaderSettings]:
    """Return the data set of a loader, without what its sampler never draws, and the loader's settings.

    Raises:
        DataError: its class makes batches of its own, which a loader over the examples of one client would not do.
    """
    if _is_own(loader, "__iter__"):
        raise DataError(
            f"{place}: {type(loader).__name__} is a DataLoader with an __iter__ of its own, and clients get loaders "
            "over their parts of its data set; do what it does in the Dataset or in the loader's collate_fn"
        )
    if loader.batch_size is None and loader.batch_sampler is None and not isinstance(loader.dataset, IterableDataset):
        raise DataError(
            f"{place}: its DataLoader has batch_size=None, so that each item of its data set is a batch; clients get "
            "parts of examples; let the data set give single examples, and batch_size say how many make a batch"
        )
    settings = _settings(place, loader)
    if type(settings.sampler) is SubsetRandomSampler:
        positions = [int(index) for index in settings.sampler.indices]
        return Subset(loader.dataset, positions), replace(settings, sampler=None, shuffle=True)
    if is_test and not (settings.sampler is None and settings.batch_sampler is None):
        with seeded(0, Purpose.DATA):
            drawn = settings.sampler if settings.batch_sampler is None else chain.from_iterable(settings.batch_sampler)
            positions = sorted({int(index) for index in drawn})
        return Subset(loader.dataset, positions), replace(settings, sampler=None, batch_sampler=None)
    return loader.dataset, settings


def _is_own(thing: Any, method: str) -> bool:
    """Return whether the class that gives an object a method is of neither PyTorch nor Hugging Face."""
    giver = next((each for each in type(thing).__mro__ if method in vars(each)), object)
    return giver.__module__.partition(".")[0] not in ("torch", "torchdata", "datasets", "builtins")


def _settings(place: str, loader: DataLoader[Any]) -> LoaderSettings:
    if isinstance(loader.dataset, IterableDataset):
        return LoaderSettings()
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    plain_batches = type(batch_sampler) is BatchSampler
    shuffle: bool | None = None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset):  # type: ignore[arg-type]
        shuffle = True
    elif type(sampler) is SequentialSampler:
        shuffle = False
    return LoaderSettings(
        batch_size=loader.batch_size if plain_batches else None,
        shuffle=shuffle if plain_batches else None,
        drop_last=loader.drop_last,
        sampler=sampler if plain_batches and shuffle is None else None,
        batch_sampler=None if plain_batches else batch_sampler,
        collate_fn=None if loader.collate_fn is default_collate else loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def _arrays(given: Any) -> Any:
    """Return arrays as a batch nests them, if that is what ``given`` is; None if it is a data set."""
    if type(given) is TensorDataset:
        given = given.tensors
    if isinstance(given, dict | list | tuple) and "pandas" in sys.modules:
        given = _without_pandas(given)
    is_nest = (isinstance(given, dict) and all(type(key) is str for key in given)) or (
        isinstance(given, tuple) and len(given) > 1
    )
    if isinstance(given, list) and len(given) > 1:  # a list of anything else is a data set of items
        is_nest = all(isinstance(each, np.ndarray | Tensor) for each in given)
    found = list(leaves(given)) if is_nest else []
    if not found or not all(isinstance(leaf, np.ndarray | Tensor) for leaf in found):
        return None
    return mapped(given, lambda leaf: _native(leaf if isinstance(leaf, np.ndarray) else leaf.detach().cpu().numpy()))


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same values in the byte order of this machine, which PyTorch needs."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _without_pandas(nest: Any) -> Any:
    """Return arrays in the place of tables and columns of pandas."""
    import pandas as pd

    if not any(isinstance(leaf, pd.DataFrame | pd.Series) for leaf in leaves(nest)):
        return nest
    made = mapped(nest, lambda leaf: _values_of(leaf) if isinstance(leaf, pd.DataFrame | pd.Series) else leaf)
    return tuple(made) if isinstance(nest, tuple) else made


def _values_of(table: Any) -> Any:
    """Return a table or a column of pandas as an array; numbers of several types get one that holds them all."""
    kinds = [getattr(kind, "numpy_dtype", kind) for kind in (table.dtypes if table.ndim == 2 else [table.dtype])]
    is_number = all(isinstance(kind, np.dtype) and kind.kind in "biuf" for kind in kinds)
    array = table.to_numpy()
    if not (kinds and is_number) or array.dtype.kind != "O":
        return array
    if table.isna().to_numpy().any():
        return table.to_numpy(np.float64, na_value=np.nan)
    return table.to_numpy(np.result_type(*kinds))


def _check_lengths(place: str, columns: Columns) -> None:
    lengths = [array.shape[:1] for array in leaves(columns.batch)]
    if () in lengths or len(set(lengths)) > 1:
        shapes = ", ".join(str(array.shape) for array in leaves(columns.batch))
        raise DataError(f"{place}: arrays of shapes {shapes} do not have one row for each example")


def _chosen(place: str, items: Items, form: str) -> Columns | Items:
    """Decide which form items get, and try what will be needed of them."""
    positions = sorted({round(k) for k in np.linspace(0, len(items) - 1, _TRIED_ITEMS)})
    try:
        with _looked_at(items.dataset):
            first = [items.dataset[index] for index in positions]
            random.random(), np.random.random(), torch.rand(())  # noqa: NPY002 - so that a random item differs
            again = [items.dataset[index] for index in positions]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise DataError(f"{place}: an item cannot be read: {described(error)}") from error
    collate = items.loader.collate_fn or default_collate
    try:
        with _looked_at(items.dataset):
            batch = collate(first[: items.loader.batch_size or len(first)])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise DataError(
            f"{place}: examples {positions[0]} … {positions[-1]} cannot be made a batch: {described(error)}"
        ) from error
    for position, item in zip(positions, first, strict=True):
        _check_finite(place, position, item)
    reason = _reason_against_columns(items, batch, first, again)
    if reason is None and form != "items":
        columns = _columns(place, items, form)
        if isinstance(columns, Columns):
            columns.check(place)
            return columns
        reason = columns
    if form == "columns":
        raise DataError(f"{place}: --data-form columns is not possible: {reason}; use items or auto")
    drawn = {position: _entry(item, "label") for position, item in zip(positions, first, strict=True)}
    return Items(items.dataset, items.loader, reason or "--data-form items", drawn, place)


def _check_finite(place: str, position: int, item: Any) -> None:
    for leaf in leaves(item):
        array = leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) and leaf.dtype != torch.bfloat16 else leaf
        is_float = isinstance(array, float) or (isinstance(array, np.ndarray) and array.dtype.kind in "fc")
        if is_float and np.isnan(array).any():
            raise DataError(f"{place}: example {position} has NaN, from which nothing can be learnt")


def _reason_against_columns(items: Items, batch: Any, first: Sequence[Any], again: Sequence[Any]) -> str | None:
    loader = items.loader
    if not loader.is_plain:
        return "its loader has a collate_fn or a sampler of its own"
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)) or not all(map(_is_plain_nest, (batch, first[0]))):
        return "its batches are not lists or dicts of tensors"
    if any(leaf.dtype == torch.bfloat16 for leaf in leaves(batch)):
        return "numpy has no bfloat16"
    dataset = items.dataset
    while type(dataset) is Subset:
        dataset = dataset.dataset
    if _is_own(dataset, "__getitems__"):
        return "its class has a __getitems__ of its own"
    for one, two in zip(first, again, strict=True):
        if not _same(one, two):
            return "drawing an item twice does not give the same"
    return None


def _is_plain_nest(nest: Any) -> bool:
    """Return whether the containers are Python's own, not subclasses such as namedtuples."""
    if isinstance(nest, Mapping):
        return type(nest) is dict and all(type(key) is str and _is_plain_nest(value) for key, value in nest.items())
    return not isinstance(nest, list | tuple) or (type(nest) in (list, tuple) and all(map(_is_plain_nest, nest)))


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, Tensor | np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(two), equal_nan=np.asarray(one).dtype.kind in "fc")
    return bool(one == two)


def _columns(place: str, items: Items, form: str) -> Columns | str:
    """Draw all items; return them as columns, or why they cannot be.

    Raises:
        DataError: they have different shapes, so that no batch can be made of them.
    """
    blocks: list[list[Any]] = []
    template: Any = None
    form_of_items: Any = None
    size = 0
    with _looked_at(items.dataset):
        for start in range(0, len(items), _BLOCK_ITEMS):
            before = _random_states()
            end = min(start + _BLOCK_ITEMS, len(items))
            block = [_item(place, items.dataset, index) for index in range(start, end)]
            if _random_states() != before:
                return "its items draw random numbers"
            try:
                batch = default_collate(block)
            except (RuntimeError, TypeError, KeyError) as error:
                if items.loader.batch_size != 1:
                    last = start + len(block) - 1
                    raise DataError(
                        f"{place}: examples {start} … {last} cannot be made a batch: {described(error)}; a collate_fn "
                        "of your DataLoader can pad them"
                    ) from error
                return "its items have different shapes"
            arrays = [leaf.numpy() for leaf in leaves(batch)]
            if template is None:
                template, form_of_items = batch, form_of(block[0])
            elif [(a.shape[1:], a.dtype) for a in arrays] != [(a.shape[1:], a.dtype) for a in blocks[0]]:
                return "its items have different shapes or dtypes"
            blocks.append(arrays)
            size += sum(array.nbytes for array in arrays)
            if form == "auto" and size * len(items) / (start + len(block)) > _MOST_COLUMN_BYTES:
                return f"as columns they would need more than {_MOST_COLUMN_BYTES / 2**30:g} GiB"
    whole = iter([np.concatenate(parts) for parts in zip(*blocks, strict=True)])
    return Columns(mapped(template, lambda _: next(whole)), loader=items.loader, form=form_of_items)


def _random_states() -> tuple[Any, Any, bytes]:
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    of_numpy = numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"]
    return random.getstate(), of_numpy, torch.get_rng_state().numpy().tobytes()


def resized(place: str, columns: Columns, size: int) -> Columns:
    """Return columns whose images float [N, C, H, W] are scaled to ``size``² pixels, bilinearly and without aliases.

    Raises:
        DataError: the first input is no such image.
    """
    batch = columns.batch
    images = batch[0] if isinstance(batch, list) else None
    if images is None or images.ndim != 4 or images.dtype.kind != "f":
        raise DataError(f"--image-size {size}: {place} gives no images as float [N, C, H, W] or uint8 [N, H, W, C]")
    if images.shape[2:] == (size, size):
        return columns
    scaled = interpolate(torch.from_numpy(images), (size, size), mode="bilinear", antialias=True)
    return replace(columns, batch=[scaled.numpy(), *batch[1:]])


def shape_of_input(split: Any) -> tuple[int, ...] | None:
    """Return the shape of the first input of a split's items; None if two of them differ or it is no array."""
    shapes = set()
    with _looked_at(split.dataset):
        for index in {0, len(split) - 1}:
            first = next(leaves(split.dataset[index]), None)
            shapes.add(tuple(first.shape) if isinstance(first, Tensor | np.ndarray) else None)
    return shapes.pop() if len(shapes) == 1 else None


def some_targets(items: Items) -> NDArray[Any] | None:
    """Return the targets of a sample of items as one array; None if they are no arrays of one shape."""
    found = []
    with _looked_at(items.dataset):
        for index in sorted({round(k) for k in np.linspace(0, len(items) - 1, _TRIED_ITEMS)}):
            target = target_of(items.dataset[index])
            if isinstance(target, Tensor):
                target = target.detach().cpu().numpy()
            found.append(np.asarray(target))
    if len({(each.shape, each.dtype.kind) for each in found}) != 1 or found[0].dtype.kind not in "biuf":
        return None
    return np.stack(found)


def fingerprint(items: Items) -> str:
    """Return a checksum of the number of items and of a sample of them, drawn from the same random numbers."""
    digest = hashlib.sha256(str(len(items)).encode())
    with unchanged(items.dataset):
        for index in sorted({round(k) for k in np.linspace(0, len(items) - 1, _TRIED_ITEMS)}):
            with seeded(0, Purpose.DATA, index):
                for leaf in leaves(items.dataset[index]):
                    content = leaf.detach().cpu().float().numpy() if isinstance(leaf, Tensor) else leaf
                    digest.update(_bytes_of(content))
    return digest.hexdigest()


def _bytes_of(content: Any) -> bytes:
    if isinstance(content, np.ndarray):
        return content.tobytes()
    # What other objects show of themselves may name their place in memory.
    return (repr(content) if isinstance(content, bool | int | float | str | bytes) else type(content).__name__).encode()
