"""Texts in files: prediction of the next character. One file is one natural client, or one file is cut into several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import setting
from sim.config.training_config import DATA
from sim.data.columns import Columns, LoadedColumns
from sim.disk import check_is_file
from sim.errors import DataError

_TEST_SHARE = 0.1
_PARTS_OF_ONE_FILE = 10


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``--dataset text``."""

    sequence_length: int = setting(80, "characters of an example", DATA, low=1, high=100_000)
    num_parts: int | None = setting(
        None,
        "clients into which each file is cut; 10 for a single file, 1 for each of several",
        DATA,
        low=1,
        high=10**6,
    )


def list_texts(root: Path) -> list[Path]:
    """Return the files *.txt in a folder, ordered by name.

    Raises:
        DataError: there are none, or the folder cannot be read.
    """
    try:
        found = sorted(path for path in root.iterdir() if path.suffix.lower() == ".txt" and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"--data-dir {root}: {error.strerror}; a folder with texts as *.txt is needed") from None
    if not found:
        raise DataError(f"--data-dir {root}: has no *.txt; a folder with texts is needed")
    return found


def read_texts(paths: list[Path], arguments: Arguments) -> LoadedColumns:
    """Read texts as examples of T characters: inputs int64 [N, T], targets int64 [N, T], which are one character later.

    The last tenth of each file is for the test. Examples do not overlap, and what is left at the end of a part is
    shorter than one. Tokens are the characters of the training part in the order of their code points, from 1; 0
    stands for a character that only the test has.

    Raises:
        DataError: a file cannot be read, is not UTF-8, or is too short for one example.
    """
    length = arguments.sequence_length
    num_parts = arguments.num_parts or (_PARTS_OF_ONE_FILE if len(paths) == 1 else 1)
    training: list[tuple[str, NDArray[np.uint32]]] = []  # the client and its part of a text, as code points
    testing: list[NDArray[np.uint32]] = []
    stems = [path.stem for path in paths]
    if len({*stems}) < len(stems):
        stems = [path.name for path in paths]  # a.txt and a.TXT are two clients
    for path, stem in zip(paths, stems, strict=True):
        points = _read(path)
        num_train = len(points) - int(len(points) * _TEST_SHARE)
        if num_train // num_parts <= length:
            needed = int(num_parts * (length + 1) / (1 - _TEST_SHARE)) + 1
            part = f" in each of {num_parts} parts" if num_parts > 1 else ""
            raise DataError(
                f"--data-dir: {path}: {len(points)} characters are too few for one example of sequence_length={length}"
                f"{part}; about {needed} are needed, or a smaller sequence_length in --dataset-args"
            )
        names = [stem if num_parts == 1 else f"{stem} {number + 1}" for number in range(num_parts)]
        training += zip(names, np.array_split(points[:num_train], num_parts), strict=True)
        testing.append(points[num_train:])
    vocabulary = np.unique(np.concatenate([part for _, part in training]))
    train = [_windows(part, length, vocabulary) for _, part in training]
    test = [_windows(part, length, vocabulary) for part in testing if len(part) > length]
    if not test:
        longest = max(len(part) for part in testing)
        raise DataError(
            f"--data-dir {paths[0].parent}: the last tenth of each file, which is for the test, has at most {longest} "
            f"characters; one example needs {length + 1}; choose a smaller sequence_length in --dataset-args"
        )
    clients = np.repeat([name for name, _ in training], [len(inputs) for inputs, _ in train])
    columns = [np.concatenate(arrays) for arrays in zip(*train, strict=True)]
    return LoadedColumns(
        Columns(columns, {"client": clients}),
        Columns([np.concatenate(arrays) for arrays in zip(*test, strict=True)]),
        vocab_size=len(vocabulary) + 1,
        clients="client",
    )


def _read(path: Path) -> NDArray[np.uint32]:
    try:
        check_is_file(path)
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--data-dir: {path}: {error.strerror}; repair or remove that file") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"--data-dir: {path}: line {line} is not UTF-8; convert or remove that file") from None
    return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))


def tokens(points: NDArray[np.uint32], vocabulary: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the token of each code point: 1 … len(vocabulary), or 0 for one that the vocabulary does not have."""
    found = np.minimum(np.searchsorted(vocabulary, points), len(vocabulary) - 1)
    return np.where(vocabulary[found] == points, found + 1, 0).astype(np.int64)


def _windows(
    points: NDArray[np.uint32], length: int, vocabulary: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    encoded = tokens(points, vocabulary)
    used = (len(encoded) - 1) // length * length
    return encoded[:used].reshape(-1, length), encoded[1 : used + 1].reshape(-1, length)
