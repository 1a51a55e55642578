"""Tables of the user's: train.csv and test.csv, with numbers and texts in columns."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import setting
from sim.config.training_config import DATA
from sim.data.columns import Columns, LoadedColumns
from sim.errors import DataError, one_line

_MISSING = {"", "na", "n/a", "nan", "null"}
_MOST_CATEGORIES = 1000  # of a column of texts; each becomes an input of the model
_MOST_NUMBERED_CLASSES = 20  # different whole numbers; with more of them, a target is a measurement
_WHOLE = re.compile(r"-?[0-9]+")
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``--dataset csv``."""

    task: str = setting(
        "auto",
        "auto takes classification where the target is text, or at most 20 different whole numbers",
        DATA,
        choices=("auto", "classification", "regression"),
    )
    standardize: bool = setting(False, "columns of numbers get the mean 0 and the deviation 1 in training", DATA)
    delimiter: str = setting(",", "what separates two fields: one character, or tab", DATA)


@dataclass
class _Table:
    """The fields of one file, by column, and the line of the file in which each row ends."""

    path: Path
    columns: dict[str, list[str]] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)

    def place(self, name: str, row: int) -> str:
        return f"--data-dir: {self.path}: line {self.lines[row]}, column {name}"


def paths_of(root: Path) -> list[Path]:
    """Return train.csv and test.csv of a folder.

    Raises:
        DataError: one is missing.
    """
    paths = [root / f"{split}.csv" for split in _SPLITS]
    for path in paths:
        if not path.is_file():
            raise DataError(f"--data-dir {root}: there is no {path.name}; train.csv and test.csv are needed")
    return paths


def read_tables(root: Path, target: str, clients: str | None, arguments: Arguments) -> LoadedColumns:
    """Read a table as inputs float32 [N, F] and targets, which are classes int64 [N] or numbers float32 [N].

    A column of numbers is one input. A column of texts has one input for each text of the training split, which is 1
    where the row has that text, and 0 otherwise. The columns of the training split stay by their names for partitions.

    Args:
        target: the column that is predicted.
        clients: the column that says to which client a row belongs; it is no input.

    Raises:
        DataError: the message names file, line and column.
    """
    delimiter = {"tab": "\t", "\\t": "\t"}.get(arguments.delimiter, arguments.delimiter)
    if len(delimiter) != 1:
        raise DataError(f"--dataset-args delimiter={arguments.delimiter}: must be one character, or tab")
    train, test = (_read(path, delimiter) for path in paths_of(root))
    names = list(train.columns)
    for flag, name in (("--target", target), ("--client-column", clients)):
        if name is not None and name not in names:
            raise DataError(f"{flag} {name}: {train.path} has no such column; it has {', '.join(names)}")
    if clients == target:
        raise DataError(f"--client-column {clients}: is the --target, too")
    inputs = [name for name in names if name not in (target, clients)]
    if not inputs:
        raise DataError(f"--data-dir: {train.path}: has no column beside {target}, from which it could be predicted")
    for name in [target, *inputs]:
        if name not in test.columns:
            raise DataError(f"--data-dir: {test.path}: has no column {name}, which {train.path.name} has")
    extra = [name for name in test.columns if name not in names]
    if extra:
        raise DataError(f"--data-dir: {test.path}: has a column {extra[0]}, which {train.path.name} has not")
    notes: list[str] = []
    kept: dict[str, NDArray[Any]] = {}
    encoded: dict[str, list[NDArray[np.float32]]] = {split: [] for split in _SPLITS}
    for name in names:
        _check_missing(train, name)
        if name in inputs:
            _check_missing(test, name)
            for split, array in zip(_SPLITS, _encoded(train, test, name, arguments, notes), strict=True):
                encoded[split].append(array)
        numbers = None if name == clients else _numbers(train, name)
        kept[name] = _ids_or_numbers(train.columns[name], numbers, is_target=name == target)
    _check_missing(test, target)
    targets, classes = _targets(train, test, target, arguments.task)
    if classes:
        kept[target] = _as_ids([classes[label] for label in targets["train"]])
    notes.append(
        f"--target {target}: " + (f"{len(classes)} classes" if classes else "a number, so that this is a regression")
    )
    made = [Columns([np.concatenate(encoded[split], axis=1), targets[split]]) for split in _SPLITS]
    return LoadedColumns(
        Columns(made[0].batch, kept),
        made[1],
        classes,
        clients=clients,
        is_regression=not classes,
        notes=tuple(map(one_line, notes)),
    )


def _read(path: Path, delimiter: str) -> _Table:
    table = _Table(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if not row:
                    continue  # an empty line, as many files have at their end
                if len(row) != len(header):
                    raise DataError(
                        f"--data-dir: {path}: line {reader.line_num} has {len(row)} fields, but the header has "
                        f"{len(header)}"
                    )
                rows.append(row)
                table.lines.append(reader.line_num)
    except OSError as error:
        raise DataError(f"--data-dir: {path}: {error.strerror}; repair or remove that file") from None
    except UnicodeDecodeError:
        raise DataError(f"--data-dir: {path}: is not UTF-8; convert that file") from None
    except csv.Error as error:
        raise DataError(f"--data-dir: {path}: line {reader.line_num}: {error}; repair that line") from None
    for number, name in enumerate(header):
        if not name or header.index(name) != number:
            reason = "has no name" if not name else f"has the name of another one, {name}"
            raise DataError(f"--data-dir: {path}: line 1: column {number + 1} {reason}")
    if not rows:
        raise DataError(f"--data-dir: {path}: has no rows below the header")
    table.columns = {
        name: [entry.strip() for entry in column] for name, column in zip(header, zip(*rows, strict=True), strict=True)
    }
    return table


def _check_missing(table: _Table, name: str) -> None:
    for row, entry in enumerate(table.columns[name]):
        if entry.lower() in _MISSING:
            raise DataError(f"{table.place(name, row)}: the value is missing; fill it in, or leave out row or column")


def _number(entry: str) -> float | None:
    try:
        value = float(entry)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in entry else None


def _numbers(table: _Table, name: str) -> NDArray[np.float64] | None:
    """Return a column as numbers, float64 [N]; None if it is one of texts.

    Raises:
        DataError: most of its entries are numbers, but not all.
    """
    values = [_number(entry) for entry in table.columns[name]]
    bad = [row for row, value in enumerate(values) if value is None]
    if not bad:
        return np.array(values, np.float64)
    if len(bad) < len(values) / 2:
        shown = one_line(table.columns[name][bad[0]], 60)
        raise DataError(
            f"{table.place(name, bad[0])}: {shown} is no finite number, but {len(values) - len(bad)} of {len(values)} "
            "entries of this column are"
        )
    return None


def _encoded(
    train: _Table, test: _Table, name: str, arguments: Arguments, notes: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a column of both splits as inputs float32 [N, 1], or [N, number of texts]."""
    numbers = _numbers(train, name)
    if numbers is not None:
        other = _test_numbers(test, name)
        both = _standardized(numbers, other) if arguments.standardize else (numbers, other)
        for table, values in zip((train, test), both, strict=True):
            _check_float32(table, name, values)
        return both[0][:, None].astype(np.float32), both[1][:, None].astype(np.float32)
    known = sorted(set(train.columns[name]))
    if len(known) > _MOST_CATEGORIES:
        raise DataError(
            f"--data-dir: {train.path}: column {name} has {len(known)} different texts; at most {_MOST_CATEGORIES} can "
            "be encoded; leave out that column"
        )
    place = {text: number for number, text in enumerate(known)}
    rows = sum(text not in place for text in test.columns[name])
    if rows:
        notes.append(f"{test.path}: {rows} rows have a {name} that no training row has; it is encoded as zeros")
    first, second = (np.zeros((len(table.lines), len(known)), np.float32) for table in (train, test))
    for array, table in ((first, train), (second, test)):
        for row, text in enumerate(table.columns[name]):
            if text in place:
                array[row, place[text]] = 1
    return first, second


@np.errstate(over="ignore", invalid="ignore")  # what is no number then is an error
def _standardized(
    numbers: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # The deviation of equal numbers may be 1e-17.
    mean, deviation = numbers.mean(), (np.ptp(numbers) and numbers.std()) or 1.0
    return (numbers - mean) / deviation, (other - mean) / deviation


def _test_numbers(test: _Table, name: str) -> NDArray[np.float64]:
    values = [_number(entry) for entry in test.columns[name]]
    for row, value in enumerate(values):
        if value is None:
            shown = one_line(test.columns[name][row], 60)
            raise DataError(f"{test.place(name, row)}: {shown} is no finite number, but the training split has numbers")
    return np.array(values, np.float64)


def _check_float32(table: _Table, name: str, values: NDArray[np.float64]) -> None:
    large = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))  # NaN, too
    if len(large):
        raise DataError(f"{table.place(name, int(large[0]))}: is too large for float32")


def _targets(train: _Table, test: _Table, name: str, task: str) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Return the targets of both splits, and the names of the classes; none for a regression."""
    numbers = _numbers(train, name)
    if task == "auto":
        few = numbers is None or (
            bool(np.all(numbers == np.rint(numbers))) and len(np.unique(numbers)) <= _MOST_NUMBERED_CLASSES
        )
        task = "classification" if few else "regression"
    if task == "regression":
        if numbers is None:
            raise DataError(f"{train.place(name, 0)}: {one_line(train.columns[name][0], 60)} is no number to predict")
        other = _test_numbers(test, name)
        for table, values in ((train, numbers), (test, other)):
            _check_float32(table, name, values)
        return {"train": numbers.astype(np.float32), "test": other.astype(np.float32)}, ()
    entries = {"train": train.columns[name], "test": test.columns[name]}
    if numbers is not None:  # 1 and 1.0 are one class
        both = {"train": numbers, "test": _test_numbers(test, name)}
        entries = {split: _named(texts, both[split]) for split, texts in entries.items()}
    known = sorted(set(entries["train"]), key=None if numbers is None else lambda text: (float(text), text))
    if len(known) < 2:
        raise DataError(f"--target {name}: all rows of {train.path} have {one_line(known[0], 60)}; two are needed")
    place = {text: number for number, text in enumerate(known)}
    for row, text in enumerate(entries["test"]):
        if text not in place:
            raise DataError(
                f"{test.place(name, row)}: no training row has the class {one_line(text, 60)}; they have "
                f"{one_line(', '.join(known), 200)}"
            )
    return {split: np.array([place[text] for text in entries[split]], np.int64) for split in _SPLITS}, tuple(known)


def _ids_or_numbers(entries: list[str], numbers: NDArray[np.float64] | None, *, is_target: bool) -> NDArray[Any]:
    """Return texts and whole numbers as ids; other numbers, and those of a target, as they are."""
    if numbers is None:
        return _as_ids(entries)
    if is_target or (numbers != np.rint(numbers)).any():
        return numbers
    names = _named(entries, numbers)
    return _as_ids(names) if all(map(_WHOLE.fullmatch, names)) else numbers


def _named(entries: list[str], numbers: NDArray[np.float64]) -> list[str]:
    """Return numbers as texts that are the same where the numbers are, but for codes such as 007."""
    return [text if _is_code(text) else _number_in_words(value) for text, value in zip(entries, numbers, strict=True)]


def _number_in_words(value: float) -> str:
    text = f"{value + 0.0:.15g}"  # −0 is 0
    return text if float(text) == value else repr(float(value))


def _is_code(entry: str) -> bool:
    """Return whether digits are a name, such as 007, or more of them than a float tells apart."""
    return re.fullmatch(r"\s*-?(0[0-9]+|[0-9]{16,})\s*", entry) is not None


def _as_ids(entries: list[str]) -> NDArray[Any]:
    """Return texts as they are, or as int64 where all of them are whole numbers, so that 10 comes after 9."""
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", entry) for entry in entries):  # 007 and 7 are two
        return np.array([int(entry) for entry in entries], np.int64)
    return np.array(entries)
