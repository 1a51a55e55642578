"""Data in the JSON files of LEAF (Caldas et al. 2018, arXiv:1812.01097): FEMNIST, Shakespeare, Sent140, synthetic.

A file has ``{"users": [...], "user_data": {user: {"x": [...], "y": [...]}}}``; the users are the natural clients.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import setting
from sim.config.training_config import DATA
from sim.data.columns import Columns, LoadedColumns, class_labels
from sim.data.sources.text import tokens
from sim.disk import check_is_file
from sim.errors import DataError, one_line

_NEEDED = "LEAF's data/all_data/*.json, or train/*.json and test/*.json, are needed"
_TEST_SHARE = 0.1
_IMAGE_PIXELS = 784
_MOST_FLOAT32 = float(np.finfo(np.float32).max)
_TWEET_TEXT, _TWEET_FIELDS = 4, 5  # a tweet is (id, time, query, user, text, …)
_REGRESSION = "the targets are not all whole numbers from 0, as classes are, so that this is a regression"
_WORD = re.compile(r"[^\W_]+|[^\w\s]")


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``--dataset leaf``."""

    sequence_length: int = setting(25, "words of a text of Sent140 that are used", DATA, low=1, high=10_000)
    vocab_size: int = setting(10_000, "largest number of different words of Sent140", DATA, low=3, high=10**6)


@dataclass(frozen=True)
class _User:
    """The examples of one user in one file."""

    path: Path
    name: str
    inputs: list[Any]
    targets: list[Any]

    @property
    def place(self) -> str:
        return f"--data-dir: {self.path}: user {one_line(self.name, 60)}"


def paths_of(root: Path) -> dict[str, list[Path]]:
    """Return the files of each split, ordered by name; the split is ``all`` for files that are not split.

    Raises:
        DataError: there are none, or a folder cannot be read.
    """
    for base in (root / "data", root):
        found = {split: _json_files(base / folder) for split, folder in (("train", "train"), ("test", "test"))}
        if found["train"] and found["test"]:
            return found
        for one, other in (("train", "test"), ("test", "train")):
            if found[one]:
                raise DataError(f"--data-dir: {base / other}: has no *.json; {_NEEDED}")
        whole = _json_files(base / "all_data")
        if whole:
            return {"all": whole}
    raise DataError(f"--data-dir {root}: {_NEEDED}")


def _json_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.json")) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"--data-dir: {folder}: {error.strerror}") from None


def read(paths: dict[str, list[Path]], arguments: Arguments) -> LoadedColumns:
    """Read LEAF's files; what they hold follows from the first example.

    ======================  ==================================  ===========================================
    x of an example         inputs                              targets
    ======================  ==================================  ===========================================
    784 numbers             float32 [N, 1, 28, 28], as they are  classes int64 [N]
    other numbers           float32 [N, F]                      classes int64 [N], or numbers float32 [N]
    a text, y a character   characters int64 [N, T]             the next character int64 [N]
    a tweet                 words int64 [N, sequence_length]    classes int64 [N]
    ======================  ==================================  ===========================================

    Characters and words have the tokens 1, 2 … of the training split; 0 stands for a character that only the test
    has. Words are in lower case; 0 fills a short text at its beginning, and 1 stands for a rare word. Where files are
    not split, a tenth of each user's examples is for the test: the last ones of texts, whose neighbours overlap, and
    random ones, which do not depend on the run's seed, of everything else.

    Raises:
        DataError: the message names file, user and example.
    """
    users = {split: [user for path in files for user in _read(path)] for split, files in paths.items()}
    sample = next((user.inputs[0] for split in users.values() for user in split if user.inputs), None)
    if sample is None:
        raise DataError(f"--data-dir: {next(iter(paths.values()))[0]}: has no examples")
    if "all" in users:
        users = _split(users["all"], in_order=isinstance(sample, str))
    for split in ("train", "test"):
        if not any(user.inputs for user in users[split]):
            raise DataError(f"--data-dir: {paths.get(split, paths.get('all', []))[0]}: {split} has no examples")
    if isinstance(sample, str):
        return _characters(users)
    if isinstance(sample, list) and any(isinstance(entry, str) for entry in sample):
        return _tweets(users, arguments)
    return _features(users)


def _read(path: Path) -> list[_User]:
    try:
        check_is_file(path)
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise DataError(f"--data-dir: {path}: {error.strerror}; repair or remove that file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"--data-dir: {path}: not valid JSON: {one_line(str(error))}") from None
    data = content.get("user_data") if isinstance(content, dict) else None
    names = content.get("users") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not isinstance(names, list):
        raise DataError(f"--data-dir: {path}: has no users and user_data, as LEAF's files do")
    counts = Counter(map(str, names))
    odd = [name for name in {**counts, **data} if counts[name] != 1]
    if odd:
        raise DataError(f"--data-dir: {path}: users has user {one_line(odd[0], 60)} {counts[odd[0]]} times, not once")
    found = []
    for name in names:
        entry = data.get(name) if isinstance(name, str) else None
        inputs, targets = (entry.get(key) if isinstance(entry, dict) else None for key in "xy")
        if not (isinstance(inputs, list) and isinstance(targets, list)):
            shown = one_line(str(name), 60)
            raise DataError(f"--data-dir: {path}: user {shown}: user_data has no lists x and y of it")
        user = _User(path, str(name), inputs, targets)
        if len(user.inputs) != len(user.targets):
            raise DataError(f"{user.place}: x has {len(user.inputs)} examples, y has {len(user.targets)}")
        found.append(user)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of a user who is there twice, it would have the second one alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{one_line(name, 60)} is there {count} times, not once")
    return found


def _split(users: list[_User], *, in_order: bool) -> dict[str, list[_User]]:
    rng = np.random.default_rng(0)
    found: dict[str, list[_User]] = {"train": [], "test": []}
    for user in users:
        count = len(user.inputs)
        order = np.arange(count) if in_order else rng.permutation(count)
        num_train = count - int(count * _TEST_SHARE)
        for split, chosen in (("train", np.sort(order[:num_train])), ("test", np.sort(order[num_train:]))):
            inputs, targets = [user.inputs[i] for i in chosen], [user.targets[i] for i in chosen]
            found[split].append(_User(user.path, user.name, inputs, targets))
    return found


def _clients(users: list[_User]) -> dict[str, NDArray[Any]]:
    return {"client": np.repeat([user.name for user in users], [len(user.inputs) for user in users])}


def _numbers(user: _User, values: list[Any], width: int | None) -> NDArray[np.float64]:
    """Return the values of a user's examples: float64 [N, width], or [N] if ``width`` is None."""
    for number, value in enumerate(values):
        entries = value if width is not None and isinstance(value, list) else [value]
        is_wrong = width is not None and (not isinstance(value, list) or len(value) != width)
        if is_wrong or not all(map(_is_float32, entries)):
            wanted = "a number" if width is None else f"{width} numbers"
            raise DataError(f"{user.place}: example {number} is not {wanted} of float32, as the first one is")
    return np.array(values, np.float64).reshape((-1,) if width is None else (-1, width))


def _is_float32(entry: Any) -> bool:
    return isinstance(entry, int | float) and abs(entry) <= _MOST_FLOAT32  # NaN is not


def _features(users: dict[str, list[_User]]) -> LoadedColumns:
    first = next(user for user in users["train"] if user.inputs)
    width = len(first.inputs[0]) if isinstance(first.inputs[0], list) else 0
    if not width:
        raise DataError(f"{first.place}: example 0 is neither a list of numbers nor a text")
    shape = (1, 28, 28) if width == _IMAGE_PIXELS else (width,)
    made: dict[str, list[NDArray[Any]]] = {}
    for split, members in users.items():
        inputs = np.concatenate([_numbers(user, user.inputs, width) for user in members])
        targets = np.concatenate([_numbers(user, user.targets, None) for user in members])
        made[split] = [inputs.astype(np.float32).reshape(-1, *shape), targets]
    labels = {split: class_labels(targets) for split, (_, targets) in made.items()}
    if all(each is not None for each in labels.values()):
        count = int(max(each.max() for each in labels.values() if each is not None)) + 1
        columns = {split: Columns([made[split][0], labels[split]], _clients(users[split])) for split in users}
        return LoadedColumns(columns["train"], columns["test"], classes=tuple(map(str, range(count))), clients="client")
    columns = {split: Columns([x, y.astype(np.float32)], _clients(users[split])) for split, (x, y) in made.items()}
    return LoadedColumns(columns["train"], columns["test"], clients="client", is_regression=True, notes=(_REGRESSION,))


def _characters(users: dict[str, list[_User]]) -> LoadedColumns:
    width = len(next(user.inputs[0] for user in users["train"] if user.inputs))
    for members in users.values():
        for user in members:
            for number, (text, following) in enumerate(zip(user.inputs, user.targets, strict=True)):
                if not (isinstance(text, str) and len(text) == width):
                    raise DataError(f"{user.place}: example {number} is no text of {width} characters, as the first is")
                if not (isinstance(following, str) and len(following) == 1):
                    raise DataError(f"{user.place}: y of example {number} is not one character")
    points = {
        split: [_points([text + y for user in members for text, y in zip(user.inputs, user.targets, strict=True)])]
        for split, members in users.items()
    }
    vocabulary = np.unique(points["train"][0])
    columns = {}
    for split, (found,) in points.items():
        encoded = tokens(found, vocabulary).reshape(-1, width + 1)
        columns[split] = Columns([encoded[:, :-1], encoded[:, -1]], _clients(users[split]))
    names = ("unknown", *(chr(point) for point in vocabulary))
    return LoadedColumns(columns["train"], columns["test"], classes=names, vocab_size=len(names), clients="client")


def _points(texts: list[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _tweets(users: dict[str, list[_User]], arguments: Arguments) -> LoadedColumns:
    words: dict[str, list[list[str]]] = {split: [] for split in users}
    targets: dict[str, list[int]] = {split: [] for split in users}
    for split, members in users.items():
        for user in members:
            for number, (fields, target) in enumerate(zip(user.inputs, user.targets, strict=True)):
                if not (
                    isinstance(fields, list) and len(fields) >= _TWEET_FIELDS and isinstance(fields[_TWEET_TEXT], str)
                ):
                    raise DataError(f"{user.place}: example {number} has no text as the fifth entry of x")
                if str(target) not in ("0", "1"):
                    raise DataError(f"{user.place}: y of example {number} is {target!r}; 0 or 1 is expected")
                words[split].append(_WORD.findall(fields[_TWEET_TEXT].lower()))
                targets[split].append(int(target))
    counts = Counter(word for text in words["train"] for word in text)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: arguments.vocab_size - 2]
    token = {word: number + 2 for number, word in enumerate(frequent)}
    columns = {}
    for split, texts in words.items():
        inputs = np.zeros((len(texts), arguments.sequence_length), np.int64)
        for row, text in enumerate(texts):
            used = text[: arguments.sequence_length]
            if used:
                inputs[row, -len(used) :] = [token.get(word, 1) for word in used]
        columns[split] = Columns([inputs, np.array(targets[split], np.int64)], _clients(users[split]))
    return LoadedColumns(
        columns["train"],
        columns["test"],
        classes=("negative", "positive"),
        vocab_size=len(frequent) + 2,
        clients="client",
    )
