"""Data sets: two splits of examples, opened alike in every process.

Images are uint8 [N, H, W, C] with labels int64 [N]. They and columns are stored in the cache (``$SIM_CACHE``, by
default ``~/.cache/sim``) as plain .npy files, which every process maps read-only, so that nothing is decoded, pickled
or copied for a client. Items are made by the user's own function, which every process calls once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config.run_config import TrainingConfig
from sim.data.cache import cached, checksum, save_array, unreadable
from sim.data.columns import (
    MOST_FLOAT_CLASSES,
    Columns,
    ExampleSet,
    Labels,
    LoadedColumns,
    leaves,
    mapped,
    target_of,
)
from sim.data.sources import by_name
from sim.data.sources.by_name import Images, Loaded
from sim.errors import ConfigError, DataError, some

__all__ = ["DataSource", "Dataset", "ExampleSet", "Examples", "Labels", "load_dataset", "open_dataset"]

_SEEN_TARGETS = 10_000  # from which it is seen what the targets are


@dataclass(frozen=True)
class Examples:
    """Images uint8 [N, H, W, C] in 0–255 and labels int64 [N] in 0…num_classes−1."""

    images: NDArray[np.uint8]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def column(self, name: str) -> NDArray[Any] | None:
        """Return the labels for ``label``, the only column of images."""
        return self.labels if name in ("label", "1") else None


@dataclass(frozen=True)
class DataSource:
    """How a process opens a data set; it holds no examples.

    Attributes:
        folder: the cache entry that has the splits that are images or columns.
        program: the user's function that makes the others, or that sets variables which the program needs; it may be
            ``None``.
        num_clients: of a program that partitions itself, for which no split belongs to all clients.
    """

    folder: Path | None = None
    program: Any = None
    num_clients: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        train, test: the two splits. Of a program that partitions itself, ``train`` is that of its first client.
        classes: names of the classes; empty if the targets are no classes.
        vocab_size: number of different tokens, where the inputs are tokens.
        clients: the column of ``train`` that says to which natural client an example belongs.
        is_regression: the targets are measurements, also where all of them are whole numbers.
        notes: what the user should know, one line each.
    """

    source: DataSource
    train: ExampleSet
    test: ExampleSet | None
    classes: tuple[str, ...] = ()
    vocab_size: int | None = None
    clients: str | None = None
    is_regression: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def folder(self) -> Path:
        """The cache entry of a data set of images or columns."""
        assert self.source.folder is not None
        return self.source.folder

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Return the shape of one image as models get it, (C, H, W); None if the inputs are no images."""
        if isinstance(self.train, Examples):
            _, height, width, channels = self.train.images.shape
            return channels, height, width
        shape = self.input_shape
        return shape if shape is not None and len(shape) == 3 else None

    @cached_property
    def input_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the first input of one example as models get it; None if it is not always the same."""
        if isinstance(self.train, Examples):
            return self.image_shape
        if isinstance(self.train, Columns):
            return tuple(next(leaves(self.train.batch)).shape[1:])
        from sim.data.items import shape_of_input

        return shape_of_input(self.train)

    @cached_property
    def target(self) -> NDArray[Any] | None:
        """Return the targets of some training examples, as one array; None if they are no array."""
        if isinstance(self.train, Examples):
            return self.train.labels[:_SEEN_TARGETS]
        if isinstance(self.train, Columns):
            found = target_of(self.train.batch)
            return found[:_SEEN_TARGETS] if isinstance(found, np.ndarray) else None
        from sim.data.items import Items, some_targets

        return some_targets(self.train) if isinstance(self.train, Items) else None

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the target of one example; None if it is no array."""
        return None if self.target is None else self.target.shape[1:]

    @property
    def labels(self) -> Labels | None:
        """Return the class of each training example, int64 [N]; None if the targets are no classes."""
        return None if self.is_regression else self.train.labels

    @property
    def has_classes(self) -> bool:
        """Whether the targets are whole numbers: classes, tokens, masks, or yes and no."""
        if self.classes:
            return True
        if self.is_regression:
            return False
        target = self.target
        if target is None or target.dtype.kind not in "biuf":
            return False
        if target.dtype.kind != "f":
            return True
        values = np.unique(target)
        return len(values) <= MOST_FLOAT_CLASSES and bool(np.all(values == np.rint(values)))

    @cached_property
    def num_outputs(self) -> int | None:
        """Return how many numbers a model gives for one target: as many as classes, or as the target has values."""
        target = self.target
        if target is None or target.dtype.kind not in "biuf":
            return len(self.classes) or None
        if target.dtype.kind != "f":
            if target.ndim == 1:
                return len(self.classes) or None
            whole = target_of(self.train.batch) if isinstance(self.train, Columns) else target
            return self.vocab_size or int(whole.max()) + 1
        return 1 if target.ndim == 1 else int(np.prod(target.shape[1:]))

    @property
    def num_test_examples(self) -> int:
        """Return the number of examples of the central test; 0 if there is none."""
        return 0 if self.test is None else len(self.test)

    @cached_property
    def fingerprint(self) -> str:
        """Return a checksum of the content, of items by a sample of them."""
        parts = [checksum(self.source.folder)] if self.source.folder is not None else []
        if self.source.program is not None:
            from sim.data.items import Items, fingerprint

            parts += [fingerprint(split) for split in (self.train, self.test) if isinstance(split, Items)]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def load_dataset(config: TrainingConfig, load_data: Callable[..., Any] | None = None) -> Dataset:
    """Return the configured data set; it is loaded from its source only if it is not in the cache.

    Args:
        load_data: the user's own function, instead of the one that ``--dataset`` names.

    Raises:
        DataError: the source is missing, damaged, inconsistent or too large, or the cache cannot be written.
        PluginError: the user's own function cannot be imported.
        ConfigError: ``dataset_args`` are given for the user's own function.
    """
    try:
        if load_data is not None or ":" in config.dataset:
            if config.dataset_args:
                first = next(iter(config.dataset_args))
                raise ConfigError(f"--dataset-args {first}: belongs to data sets by name; your own take --args")
            return _load_program(config, load_data)
        key, make = by_name.find(config)
        folder = cached("data", {"dataset": config.dataset, **key}, lambda target: _store(target, make()))
    except MemoryError as error:
        raise DataError(
            f"--dataset {config.dataset}: does not fit into the memory of this machine ({error or 'MemoryError'}); use "
            "fewer examples or a smaller --image-size"
        ) from error
    return open_dataset(DataSource(folder))


def _load_program(config: TrainingConfig, load_data: Callable[..., Any] | None) -> Dataset:
    from sim.data.sources.user_function import ProgramData
    from sim.user_variables import changed_by

    program = ProgramData(
        load_data or config.dataset,
        config.data_form,
        config.data_dir,
        config.batch_size,
        config.seed,
        config.args,
        getattr(config, "validation_share", 0.0),
    )
    num_clients = getattr(config, "num_clients", None)
    if num_clients is not None and program.is_partitioned:
        train, _ = open_client(DataSource(program=program, num_clients=num_clients), 0)
        source = DataSource(None, program, num_clients)
        if config.image_size is not None:
            raise DataError(
                f"--image-size {config.image_size}: {program.place} gives the data of each client; resize them in its "
                "transform"
            )
        note = f"{program.place} gives the data of each client, so that there is no central test"
        return replace(_described(source, train, None), notes=(*program.notes, note))
    with changed_by(program.loaded()) as variables:
        returned = program.call()
    given = {"train": returned.train, "test": returned.test}
    opened = {split: program.opened(split, each) for split, each in given.items()}
    stored = {split: each for split, each in opened.items() if isinstance(each, Columns)}
    items = {split: each for split, each in opened.items() if not isinstance(each, Columns)}
    notes = [*program.notes, *returned.notes]
    if program.is_for_one_client:
        notes.append(
            f"{program.place} gives the data of each client; it is called for client 0 of 1, which is to be all data"
        )
    notes += [f"{program.place}: {split} examples are taken as items: {each.reason}" for split, each in items.items()]
    # What a Dataset or tensors give is what the program's model takes; NumPy arrays are what image files hold.
    are_arrays = all(isinstance(array, np.ndarray) for split in given.values() for array in leaves(split))
    images = _as_images(program.place, stored) if are_arrays and config.data_form == "auto" else None
    folder, key = None, {"image_size": config.image_size}
    if items and config.image_size is not None:
        raise DataError(f"--image-size {config.image_size}: {program.place} gives items; resize them in its transform")
    if images is not None:
        loaded: Loaded = images if config.image_size is None else by_name.resized(images, config.image_size)
        notes.append(
            f"{program.place}: images uint8 [N, H, W, C] reach the model as float32 [C, H, W] in −1…1, like those of "
            "the built-in data sets; --data-form columns gives them as they are"
        )
        digest = _digest([array for split in images[:2] for array in split])
        folder = cached("data", {**key, "content": digest}, lambda target: _store(target, loaded))
    elif stored:
        if config.image_size is not None:
            from sim.data.items import resized

            stored = {split: resized(program.place, columns, config.image_size) for split, columns in stored.items()}
        arrays = [array for columns in stored.values() for array in leaves(columns.batch)]
        loaders = {split: repr(columns.loader) for split, columns in stored.items()}
        forms = {
            split: repr((mapped(columns.batch, lambda _: "array"), columns.form)) for split, columns in stored.items()
        }
        classes = _class_names(stored, given)
        described = {"content": _digest(arrays), "loaders": loaders, "forms": forms, "classes": classes}

        def store(target: Path) -> None:
            for split, columns in stored.items():
                columns.save(target, split)
            _write_about(target, {"classes": classes})

        folder = cached("data", described, store)
    if variables and not items:
        notes.append(f"{program.place} sets {some(variables)}, so every process that executes clients calls it")
    source = DataSource(folder, program if items or variables else None)
    return replace(open_dataset(source, items), notes=tuple(notes))


def _as_images(place: str, splits: dict[str, Columns]) -> Images | None:
    """Return both splits as raw images, if that is what both are; else None."""
    from sim.data.sources.user_function import as_pixels

    found = {split: as_pixels(f"{place}: {split}", columns) for split, columns in splits.items()}
    train, test = found.get("train"), found.get("test")
    if train is None or test is None:
        return None
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{place}: train images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    num_classes = int(max(train[1].max(), test[1].max())) + 1
    return train, test, tuple(str(c) for c in range(num_classes))


def _digest(arrays: list[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def open_dataset(source: DataSource, opened: dict[str, Any] | None = None) -> Dataset:
    """Open a data set: map what is in the cache read-only, and call the user's function for the rest.

    Args:
        opened: splits that are items, where the user's function has been called already.

    Raises:
        DataError: its files are damaged, or the user's function does not work.
    """
    if source.num_clients is not None:
        train, _ = open_client(source, 0)
        return _described(source, train, None)
    splits: dict[str, Any] = dict(opened or {})
    about: dict[str, Any] = {}
    if source.folder is not None:
        stored, about = _open_stored(source.folder)
        splits |= stored
    if source.program is not None and opened is None:
        returned = source.program.call()
        given = {"train": returned.train, "test": returned.test}
        splits |= {split: source.program.opened(split, each) for split, each in given.items() if split not in splits}
    return _described(source, splits["train"], splits["test"], **about)


def open_client(source: DataSource, client_id: int) -> tuple[Any, Any]:
    """Return the training and test examples of one client of a program that partitions itself.

    The second is None if the program has none.

    Raises:
        DataError: the user's function does not work.
    """
    given = source.program.call(client_id, source.num_clients)
    name, open_split = f"client {client_id}", source.program.opened
    return open_split(name, given.train), None if given.test is None else open_split(name, given.test)


def _described(source: DataSource, train: Any, test: Any, **about: Any) -> Dataset:
    classes = about.pop("classes", None)
    if classes is None:
        classes = _class_names({"train": train, **({} if test is None else {"test": test})}, {})
    notes = tuple(about.pop("notes", ()))
    return Dataset(source, train, test, tuple(classes), **about, notes=notes)


def _class_names(splits: dict[str, Any], given: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes, by numbers if the data set does not name them; empty if there are none."""
    labels = [split.labels for split in splits.values()]
    if any(each is None or not len(each) for each in labels):
        return ()
    count = int(max(each.max() for each in labels)) + 1
    for each in given.values():
        data = getattr(each, "dataset", each)
        names = getattr(data, "classes", None)
        if isinstance(names, list | tuple) and len(names) == count and all(isinstance(name, str) for name in names):
            return tuple(names)
    return tuple(str(number) for number in range(count))


def _open_stored(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        if not (folder / "about.json").is_file():
            return _open_images(folder)
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        stored = {
            split: Columns.open(folder, split) for split in ("train", "test") if (folder / f"{split}.json").is_file()
        }
        return stored, about
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise unreadable(f"the cached data set {folder}", error) from error


def _open_images(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    classes = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
    sound = all(
        images.dtype == np.uint8 and images.ndim == 4 and labels.dtype == np.int64 and labels.shape == images.shape[:1]
        for images, labels in ((arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    )
    if not sound:
        raise ValueError("other shapes or dtypes")
    splits = {split: Examples(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")}
    return splits, {"classes": classes}


def _store(folder: Path, loaded: Loaded) -> None:
    if isinstance(loaded, LoadedColumns):
        for split, columns in (("train", loaded.train), ("test", loaded.test)):
            columns.save(folder, split)
        about = ("classes", "vocab_size", "clients", "is_regression", "notes")
        _write_about(folder, {name: getattr(loaded, name) for name in about})
        return
    train, test, classes = loaded
    for split, (images, labels) in (("train", train), ("test", test)):
        save_array(folder / f"{split}_images.npy", images.astype(np.uint8, copy=False))
        save_array(folder / f"{split}_labels.npy", labels.astype(np.int64))
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
