"""The DataLoader that a client gets over its examples, where they are not the pixels of ``sim.data.batches``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, WeightedRandomSampler

from sim.data.batches import Batches, Drawn, DrawnBatch, Resident
from sim.data.columns import TARGET_KEYS, Columns, LoaderSettings, in_form, leaves, mapped, target_of
from sim.data.items import Items
from sim.data.load_dataset import Examples
from sim.errors import PluginError
from sim.seeds import restored
from sim.user_variables import unchanged


class ResidentColumns:
    """Columns as tensors on one device; on a CPU, nothing is copied and memory-mapped files stay mapped."""

    def __init__(self, columns: Columns, device: torch.device) -> None:
        self.loader, self.form = columns.loader, columns.form
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of read-only arrays, but nothing writes to them
            self.batch = mapped(columns.batch, lambda array: torch.from_numpy(array).to(device))

    def __len__(self) -> int:
        return len(next(leaves(self.batch)))

    @cached_property
    def numbered(self) -> ResidentColumns:
        """These columns with the position of each example in the place of the example itself, on the CPU."""
        made = copy.copy(self)
        made.batch = torch.arange(len(self))
        return made


_MOST_EMPTY_PASSES = 100_000  # more than a train has epochs, and less than a second of a loop


class LimitedLoader:
    """A loader that ends after a number of batches, counted over all epochs."""

    def __init__(self, loader: Any, num_batches: int) -> None:
        self._loader, self._most, self._left, self._num_empty = loader, num_batches, num_batches, 0

    def __len__(self) -> int:
        return min(len(self._loader), self._left)

    def __iter__(self) -> Iterator[Any]:
        self._num_empty += not self._left
        if self._num_empty > _MOST_EMPTY_PASSES:
            raise PluginError(
                f"train asks for batches without end, but --max-local-steps, or the time of a slow device, ends them "
                f"after {self._most}; a train that counts its own steps needs a parameter max_steps"
            )
        for batch in self._loader if self._left else ():
            yield batch
            self._left -= 1
            if not self._left:
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


Split = Examples | Resident | ResidentColumns | Items  # what a loader can be made over


def resident(examples: Any, device: torch.device) -> Split:
    """Return a split as a process keeps it: arrays on the device."""
    if isinstance(examples, Examples):
        return Resident.of(examples, device)
    return ResidentColumns(examples, device) if isinstance(examples, Columns) else examples


def with_flipped_classes(split: Split, num_classes: int) -> Split:
    """Return a split in which class c is ``num_classes`` − 1 − c."""
    flipped = partial(flipped_target, num_classes)
    if isinstance(split, Items):
        return replace(split, dataset=_WithTargets(split.dataset, flipped))
    if isinstance(split, ResidentColumns):
        made = copy.copy(split)
        made.batch = with_target(split.batch, flipped)
        return made
    return Resident(split.images, flipped(split.labels))  # type: ignore[arg-type]


def flipped_target(num_classes: int, target: Any) -> Any:
    """Return ``num_classes`` − 1 − c for each class c, or the opposite of each boolean."""
    is_bool = isinstance(target, Tensor) and target.dtype == torch.bool
    return ~target if is_bool else num_classes - 1 - target


def with_target(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Return a batch or an item with ``function`` applied to its target, see ``sim.data.columns.target_of``."""
    if isinstance(batch, Mapping):
        key = next(key for key in TARGET_KEYS if key in batch)
        return _with_values(batch, {key: function(batch[key])})
    return _with_elements(batch, [*batch[:-1], function(batch[-1])])


def _with_values(batch: Mapping[Any, Any], values: Mapping[Any, Any]) -> Any:
    """Return a dict, or what the user has in its place, with other values."""
    if not (isinstance(batch, MutableMapping) and (isinstance(batch, dict) or hasattr(batch, "__copy__"))):
        return {**batch, **values}  # a copy of another kind may share its entries with the user's own
    made = copy.copy(batch)
    made.update(values)
    return made


def _with_elements(batch: Any, elements: list[Any]) -> Any:
    """Return a tuple, a namedtuple or a list with other elements."""
    if hasattr(batch, "_fields"):
        return type(batch)(*elements)
    return tuple(elements) if type(batch) is tuple else elements


class _WithTargets(Dataset[Any]):
    """A data set of the user's with other targets."""

    def __init__(self, dataset: Any, function: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._function = function

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return with_target(self._dataset[index], self._function)


def example_batch(examples: Any, count: int, *, spread: bool = False) -> Any:
    """Return the first examples of a split as one batch, on the CPU.

    Args:
        spread: examples from everywhere in the split instead, because it may be sorted by class.
    """
    count = min(count, len(examples))
    positions = np.linspace(0, len(examples) - 1, count).astype(np.int64) if spread else np.arange(count)
    if isinstance(examples, Examples):
        device = torch.device("cpu")
        return next(iter(Batches(examples, positions, count, device, shuffle=False, channels_last=False)))
    split = resident(examples, torch.device("cpu"))
    assert isinstance(split, ResidentColumns | Items)
    with restored(), unchanged(split):
        return next(iter(ExampleLoader(split, positions, count, training=False, in_process=True)))


class _View(Drawn, Dataset[Any]):
    """Some rows of columns, as a data set; a batch is read by one index operation."""

    def __init__(self, columns: ResidentColumns, positions: Tensor | None) -> None:
        self.columns = columns
        self.positions = positions

    def __len__(self) -> int:
        return len(self.columns) if self.positions is None else len(self.positions)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):  # which a TensorDataset takes, too
            return self.batch(list(range(len(self)))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index if self.positions is None else self.positions[index]
        example = mapped(self.columns.batch, lambda column: column[row].clone())  # the mapped file is read-only
        return example if self.columns.form is None else in_form(example, self.columns.form)

    def __getitems__(self, indices: list[int]) -> _Rows:
        return _Rows(self, indices)

    def batch(self, indices: list[int]) -> Any:
        """Return these examples as one batch."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if self.positions is not None:
            rows = self.positions[rows]
        return mapped(self.columns.batch, lambda column: column[rows.to(column.device)])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return all examples of the client column by column, as a ``TensorDataset`` has them.

        Raises:
            AttributeError: an example is no list of tensors.
        """
        columns = self.batch(list(range(len(self))))
        if not (isinstance(columns, list | tuple) and all(isinstance(column, Tensor) for column in columns)):
            raise AttributeError("tensors")
        return tuple(columns)

    @property
    def targets(self) -> Any:
        """Return the targets of all examples of the client, under the name that torchvision's data sets have.

        Raises:
            AttributeError: the examples have none.
        """
        targets = target_of(self.batch(list(range(len(self)))))
        if targets is None:
            raise AttributeError("targets")
        return targets


class _Rows(Sequence[Any]):
    """Examples of a view: one after another for a DataLoader of the program's own, at once for ``_at_once``."""

    def __init__(self, view: _View, indices: list[int]) -> None:
        self.view, self.indices = view, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        return self.view[self.indices[number]]


def _at_once(rows: _Rows) -> Any:
    return rows.view.batch(rows.indices)


class ExampleLoader(DataLoader[Any]):
    """A DataLoader over the examples of one client, with the settings of the user's own loader.

    Its batches are what the user's loader would give; the order is drawn from torch's global generator.

    Attributes:
        noise: standard deviation of the Gaussian noise that is added to the inputs of each batch.
        was_read: whether anything has asked for its batches.
    """

    noise = 0.0
    was_read = False

    def __init__(
        self,
        examples: ResidentColumns | Items,
        positions: NDArray[np.int64] | None,
        batch_size: int | None,
        *,
        training: bool,
        in_process: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            device: to which the batches are moved; None for that of the examples.
            in_process: no worker processes are started.
            positions: int64 [n], the examples to use, in ascending order; None for all.
            batch_size: None for that of the user's loader.
            training: whether the order is that of the user's loader (shuffled, if it says nothing), or as they are.
        """
        self._arguments = examples, positions, training
        self._device = device
        settings = examples.loader
        data: Dataset[Any]
        options: dict[str, Any] = {}
        if isinstance(examples, Items):
            whole = positions is None or np.array_equal(positions, np.arange(len(examples)))
            data = examples.dataset if whole or positions is None else Subset(examples.dataset, positions.tolist())
            workers = 0 if in_process else settings.num_workers
            options = {"num_workers": workers, "worker_init_fn": settings.worker_init_fn}
            options["collate_fn"] = settings.collate_fn
        else:
            rows = None if positions is None else torch.from_numpy(np.array(positions))
            data = _View(examples, rows)
            options["collate_fn"] = _at_once
        if training:
            places = np.arange(len(examples)) if positions is None else positions
            options |= _order(settings, places, len(examples), batch_size)
        else:
            options |= {"batch_size": batch_size or settings.batch_size or 1}
        super().__init__(data, **options)

    @property
    def num_examples(self) -> int:
        """Return the number of examples in one pass."""
        return len(self.dataset)  # type: ignore[arg-type]

    def with_batch_size(self, batch_size: int) -> Self:
        """Return this loader, or one that differs in the batch size alone."""
        if batch_size == self.batch_size:
            return self
        examples, positions, training = self._arguments
        loader = type(self)(examples, positions, batch_size, training=training, device=self._device)
        loader.noise = self.noise
        return loader

    def drawn_batches(self) -> Iterator[DrawnBatch]:
        """Draw the batches of one pass over columns, in the order in which iterating draws them."""
        columns, positions, training = self._arguments
        assert isinstance(columns, ResidentColumns), "only columns are read by position"
        numbered = type(self)(columns.numbered, positions, self.batch_size, training=training)
        return (DrawnBatch(chosen) for chosen in numbered)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.was_read = True
        batches: Iterator[Any] = super().__iter__()
        if self._device is not None and self._device.type != "cpu":
            batches = (_moved(batch, self._device) for batch in batches)
        return (_with_noise(batch, self.noise) for batch in batches) if self.noise else batches


def _moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device; its containers keep their types."""
    if callable(getattr(batch, "to", None)):  # a tensor, or what a library makes of tokens and graphs
        return batch.to(device)
    if type(batch) is dict:
        return {key: _moved(value, device) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_moved(value, device) for value in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_make"):  # a namedtuple
        return batch._make(_moved(value, device) for value in batch)
    return batch


def _on_inputs(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Return a batch with ``function`` applied to each leaf of its inputs (see ``inputs_and_target``)."""
    if isinstance(batch, Mapping):
        target = next((key for key in TARGET_KEYS if key in batch), None)
        return _with_values(batch, {key: mapped(value, function) for key, value in batch.items() if key != target})
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return _with_elements(batch, [*(mapped(each, function) for each in batch[:-1]), batch[-1]])
    return mapped(batch, function)


def _takes_noise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _with_noise(batch: Any, noise: float) -> Any:
    def noisy(value: Any) -> Any:
        return value + torch.randn(value.shape).to(value) * noise if _takes_noise(value) else value

    return _on_inputs(batch, noisy)


def takes_noise(batch: Any) -> bool:
    """Return whether a batch has inputs that are floating-point numbers, to which noise can be added."""
    found: list[bool] = []
    _on_inputs(batch, lambda value: found.append(_takes_noise(value)))
    return any(found)


def _order(
    settings: LoaderSettings, positions: NDArray[np.int64], count: int, batch_size: int | None
) -> dict[str, Any]:
    """Return the arguments of a DataLoader that decide which examples of a client make a batch."""
    if settings.batch_sampler is not None and batch_size is None:
        return {"batch_sampler": _OwnBatches(_unused(settings.batch_sampler), positions, count)}
    options: dict[str, Any] = {"batch_size": batch_size or settings.batch_size or 1, "drop_last": settings.drop_last}
    if settings.sampler is None:
        return {**options, "shuffle": settings.shuffle is not False}
    return {**options, "sampler": _of_client(_unused(settings.sampler), positions, count)}


def _unused(sampler: Any) -> Any:
    """Return a copy of a sampler that draws from the client's random numbers, not from those of its own generator.

    What a client counts in it, and how far it draws, then does not reach the clients that come after it.
    """
    made = copy.copy(sampler)
    if isinstance(getattr(made, "generator", None), torch.Generator):
        made.generator = None
    inner = getattr(made, "sampler", None)
    if inner is not None:
        made.sampler = _unused(inner)
    return made


def _of_client(sampler: Any, positions: NDArray[np.int64], count: int) -> Sampler[int]:
    """Return the user's sampler, restricted to the examples of one client."""
    share = len(positions) / count
    if type(sampler) is WeightedRandomSampler:
        weights = sampler.weights[torch.from_numpy(np.array(positions))]
        return WeightedRandomSampler(weights, max(1, round(sampler.num_samples * share)), sampler.replacement)  # type: ignore[arg-type]
    return _Own(sampler, positions, count)


class _Own(Sampler[Any]):
    """What a sampler of the user's draws of the examples of one client."""

    def __init__(self, sampler: Any, positions: NDArray[np.int64], count: int) -> None:
        self._sampler = sampler
        self._place: Mapping[int, int] = {int(position): index for index, position in enumerate(positions)}
        self._share = len(positions) / count

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own(self._sampler))

    def __len__(self) -> int:
        return max(1, round(len(self._sampler) * self._share))

    def _own(self, drawn: Iterable[Any]) -> Iterator[int]:
        return (self._place[int(i)] for i in drawn if int(i) in self._place)


class _Restricted(Sampler[int]):
    """The positions in the whole data set that a sampler of the user's draws, without those of other clients."""

    def __init__(self, sampler: Any, positions: NDArray[np.int64], count: int) -> None:
        self._sampler, self._own = sampler, frozenset(positions.tolist())
        self._count = max(1, round(len(sampler) * len(positions) / count))

    def __iter__(self) -> Iterator[int]:
        return (int(position) for position in self._sampler if int(position) in self._own)

    def __len__(self) -> int:
        return self._count


class _OwnBatches(_Own):
    """What a batch sampler of the user's makes of the examples of one client.

    One that takes positions from another sampler gets those of the client alone. Of the batches of any other one, what
    belongs to other clients is left out, and what is left is joined to batches of the same size.
    """

    def __init__(self, sampler: Any, positions: NDArray[np.int64], count: int) -> None:
        super().__init__(sampler, positions, count)
        self._is_whole = len(positions) == count
        self._count: int | None = None  # batches of the last draw
        self._drawn: list[list[int]] | None = None  # for the next iteration, because their number was asked for
        if joins_batches(sampler):
            return
        self._sampler = copy.copy(sampler)
        self._sampler.sampler = _Restricted(sampler.sampler, positions, count)

    def __iter__(self) -> Iterator[list[int]]:
        drawn, self._drawn = self._drawn, None
        count = 0
        for batch in self._draw() if drawn is None else drawn:
            count += 1
            yield batch
        self._count = count

    def _draw(self) -> Iterator[list[int]]:
        own: list[int] = []
        for batch in self._sampler:
            drawn = list(batch)
            own += self._own(drawn)
            if len(own) >= len(drawn):
                yield own[: len(drawn)]
                own = own[len(drawn) :]
        if own:
            yield own

    def __len__(self) -> int:
        if self._is_whole or not joins_batches(self._sampler):
            return len(self._sampler)
        if self._drawn is None and self._count is None:
            self._drawn = list(self._draw())
        return len(self._drawn) if self._drawn is not None else self._count or 0


def joins_batches(batch_sampler: Any) -> bool:
    """Return whether batches of a client can only be joined from what it has of those of a batch sampler."""
    return not isinstance(getattr(batch_sampler, "sampler", None), Iterable | Sampler)


Loader = Batches | ExampleLoader
