"""The data sets by name that are no images, and what is made of them: models, partitions and messages."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import ContinuousPartitioner, NaturalIdPartitioner
from safetensors.numpy import load_file
from torch.utils.data import TensorDataset

from conftest import Sim, Small
from sim.config.run_config import RunConfig
from sim.data import partition, partitioners
from sim.data.defaults import decided
from sim.data.load_dataset import Dataset, load_dataset
from sim.data.loaders import example_batch
from sim.data.sources.text import tokens
from sim.errors import ConfigError, DataError, PartitionError, SimError
from sim.run_folder import plots
from sim.seeds import Purpose, generator
from sim.server.stragglers import with_stragglers
from sim.simulation import simulate
from sim.training import models
from sim.training.models import DataFacts


def _load(name: str, root: Path | None = None, **settings: Any) -> Dataset:
    return load_dataset(RunConfig(dataset=name, data_dir=None if root is None else str(root), **settings))


def _net(dataset: Dataset, name: str, **arguments: object) -> torch.nn.Module:
    facts = DataFacts(dataset.input_shape, dataset.num_outputs, dataset.vocab_size, dataset.target_shape)
    return models.build(name, facts, arguments)


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes", "outputs"),
    [
        ("breast-cancer", (455, 114), (30,), ("malignant", "benign"), 2),
        ("wine", (142, 36), (13,), ("class_0", "class_1", "class_2"), 3),
        ("diabetes", (353, 89), (10,), (), 1),
    ],
)
def test_tables_of_scikit_learn(
    name: str, sizes: tuple[int, int], shape: tuple[int], classes: tuple[str, ...], outputs: int
) -> None:
    dataset = _load(name)
    inputs, targets = dataset.train.batch
    assert (len(dataset.train), len(dataset.test)) == sizes
    assert (dataset.input_shape, dataset.classes, dataset.num_outputs) == (shape, classes, outputs)
    assert (inputs.dtype, targets.dtype) == (np.float32, np.int64 if classes else np.float32)
    if classes:
        assert np.abs(inputs.mean(axis=0)).max() < 1e-6
        assert inputs.std(axis=0) == pytest.approx(np.ones(shape), abs=1e-5)
        shares = [np.bincount(split.labels) / len(split) for split in (dataset.train, dataset.test)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02
    else:
        assert dataset.labels is None  # though all targets are whole numbers
        assert (targets.min(), targets.max()) == (25, 346)
    assert _net(dataset, "Logistic")(torch.tensor(inputs[:4])).shape == (4, outputs)
    assert _net(dataset, "Mlp", hidden_size=5)(torch.tensor(inputs[:4])).shape == (4, outputs)


def test_synthetic_data_of_li_et_al() -> None:
    dataset = _load("fedprox-synthetic", dataset_args={"num_clients": 40})
    clients = dataset.train.column("client")
    sizes = np.bincount(clients) + np.bincount(dataset.test.column("client"))
    assert len(sizes) == 40
    assert sizes.min() >= 50
    assert sizes.max() > 8 * np.median(sizes)  # a long tail
    assert np.bincount(clients).tolist() == [int(size * 0.9) for size in sizes]
    inputs = dataset.train.batch[0]
    largest = inputs[clients == sizes.argmax()]
    expected = np.arange(1, 61) ** -1.2
    assert largest.var(axis=0) / expected == pytest.approx(np.ones(60), abs=0.35)
    # One linear model labels the data of each client.
    same = _load("fedprox-synthetic", dataset_args={"num_clients": 40, "iid": True}).train.batch
    assert np.abs(same[0].mean(axis=0)).max() < 0.1
    fitted = np.linalg.lstsq(same[0], np.eye(10)[same[1]], rcond=None)[0]
    assert ((same[0] @ fitted).argmax(axis=1) == same[1]).mean() > 0.6
    apart, close = (
        _load("fedprox-synthetic", dataset_args={"num_clients": 40, "beta": beta, "alpha": 0}) for beta in (9, 0)
    )
    means = [[d.train.batch[0][d.train.column("client") == k].mean() for k in range(40)] for d in (apart, close)]
    assert np.std(means[0]) == pytest.approx(9, rel=0.3)
    assert np.std(means[1]) == pytest.approx(60**-0.5, rel=0.3)


@pytest.mark.parametrize("form", ["TensorDataset", "tensors", "arrays"])
def test_bytes_of_a_data_set_reach_the_model_as_they_are_and_those_of_arrays_as_images(form: str) -> None:
    images, labels = np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8), np.arange(5) % 2
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    given: Any = {"TensorDataset": TensorDataset(*tensors), "tensors": tensors, "arrays": (images, labels)}[form]
    dataset = load_dataset(RunConfig(dataset="own:load_data"), lambda: (given, given))
    inputs, _ = example_batch(dataset.train, 2)
    if form == "arrays":
        assert (inputs.dtype, inputs.shape, inputs.min().item()) == (torch.float32, (2, 1, 8, 8), -1.0)
    else:
        assert torch.equal(inputs, tensors[0][:2])
        assert inputs.dtype == torch.uint8


def test_texts_are_cut_into_sequences(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("abcabcabca" * 2, encoding="utf-8")
    (tmp_path / "a.TXT").write_text("ç" * 18 + "ax", encoding="utf-8")
    dataset = _load("text", tmp_path, dataset_args={"sequence_length": 1})
    assert dataset.vocab_size == 5  # a, b, c, ç and the unknown one
    assert dataset.train.column("client").tolist() == ["a"] * 17 + ["b"] * 17
    inputs, targets = dataset.train.batch
    assert inputs[17:22].tolist() == [[1], [2], [3], [1], [2]]
    assert targets[17:22].tolist() == [[2], [3], [1], [2], [3]]
    assert [column.tolist() for column in dataset.test.batch] == [[[1], [3]], [[0], [1]]]  # a→x, c→a
    longer = _load("text", tmp_path, dataset_args={"sequence_length": 1, "num_parts": 2})
    assert longer.train.column("client").tolist()[:9] == ["a 1"] * 8 + ["a 2"]
    net = _net(_load("text", tmp_path, dataset_args={"sequence_length": 1}), "CharLstm", hidden_size=3)
    assert net(torch.tensor(inputs[:6])).shape == (6, 1, 5)
    (tmp_path / "a.TXT").unlink()
    assert (
        _load("text", tmp_path, dataset_args={"sequence_length": 1, "num_parts": 3}).train.column("client")[0] == "b 1"
    )


def test_files_whose_names_differ_in_their_endings_are_two_clients(tmp_path: Path) -> None:
    for name in ("a.txt", "a.TXT", "b.txt"):
        (tmp_path / name).write_text("abc" * 7, encoding="utf-8")
    clients = _load("text", tmp_path, dataset_args={"sequence_length": 1}).train.column("client")
    assert clients.tolist() == ["a.TXT"] * 18 + ["a.txt"] * 18 + ["b.txt"] * 18


def test_characters_that_only_the_test_has_are_unknown() -> None:
    assert tokens(np.array([5, 1, 9, 3], np.uint32), np.array([1, 5], np.uint32)).tolist() == [2, 1, 0, 0]


def _table(root: Path, train: str, test: str) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in (("train", train), ("test", test)):
        (root / f"{name}.csv").write_text(text, encoding="utf-8")
    return root


TRAIN = "age,city,pay,who\n20,Bonn,high,u2\n30,Rom,low,u10\n40,Bonn,low,u2\n"
TEST = "who,city,pay,age\nu7,Oslo,high,25\nu7,Rom,low,1e1\n"


def test_a_table_is_encoded_by_its_training_split(tmp_path: Path) -> None:
    dataset = _load("csv", _table(tmp_path / "t", TRAIN, TEST), target="pay", client_column="who")
    assert dataset.train.batch[0].tolist() == [[20, 1, 0], [30, 0, 1], [40, 1, 0]]
    assert dataset.test.batch[0].tolist() == [[25, 0, 0], [10, 0, 1]]
    assert dataset.classes == ("high", "low")
    assert (dataset.train.batch[1].tolist(), dataset.test.batch[1].tolist()) == ([0, 1, 1], [0, 1])
    assert dataset.clients == "who"
    assert dataset.train.column("city").tolist() == ["Bonn", "Rom", "Bonn"]
    assert any("1 rows have a city that no training row has" in note for note in dataset.notes)
    scaled = _load("csv", tmp_path / "t", target="pay", client_column="who", dataset_args={"standardize": True})
    assert scaled.train.batch[0][:, 0] == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_equal_numbers_are_standardized_by_1_and_numbers_whose_mean_is_infinite_are_refused(tmp_path: Path) -> None:
    equal = "x,y\n" + "".join(f"0.1,{k % 2}\n" for k in range(7))
    settings: dict[str, Any] = {"target": "y", "dataset_args": {"standardize": True}}
    dataset = _load("csv", _table(tmp_path / "t", equal, "x,y\n0.1,0\n0.2,1\n"), **settings)
    assert dataset.train.batch[0].ravel() == pytest.approx([0] * 7, abs=1e-15)
    assert dataset.test.batch[0].ravel() == pytest.approx([0, 0.1])
    large = "x,y\n1.5e308,0\n1.6e308,1\n1.7e308,1\n"
    with pytest.raises(DataError, match=r"train.csv: line 2, column x: is too large for float32"):
        _load("csv", _table(tmp_path / "l", large, large), **settings)


def test_few_whole_numbers_are_classes_and_others_are_measured(tmp_path: Path) -> None:
    train, test = "x,y\n1,5\n2,10\n3,7.0\n", "x,y\n1,7\n"
    classes = _load("csv", _table(tmp_path / "t", train, test), target="y")
    assert (classes.classes, classes.train.batch[1].tolist()) == (("5", "7", "10"), [0, 2, 1])
    assert classes.test.batch[1].tolist() == [1]
    numbers = _load("csv", tmp_path / "t", target="y", dataset_args={"task": "regression"})
    assert (numbers.classes, numbers.labels, numbers.num_outputs) == ((), None, 1)
    assert not numbers.has_classes
    assert numbers.train.batch[1].tolist() == [5, 10, 7]


@pytest.mark.parametrize(
    ("train", "test", "settings", "message"),
    [
        ("x,y\n1,2\n,3\n", "x,y\n1,2\n", {}, "train.csv: line 3, column x: the value is missing"),
        ("x,y\n1,2\n4,3\n", "x,y\nNA,2\n", {}, "test.csv: line 2, column x: the value is missing"),
        ("x,y\n1,2\n4,3\n5,3\na,2\n", "x,y\n1,2\n", {}, "line 5, column x: a is no finite number, but 3 of 4 entries"),
        ("x,y\n1,2\n4,3\n", "x,y\nb,2\n", {}, "test.csv: line 2, column x: b is no finite number"),
        ("x,y\n1,2\n4,3\n", "x,y\n1,4\n", {}, "line 2, column y: no training row has the class 4; they have 2, 3"),
        ("x,y\n1,2,3\n", "x,y\n1,4\n", {}, "train.csv: line 2 has 3 fields, but the header has 2"),
        ("x,x\n1,2\n", "x,y\n1,4\n", {}, "line 1: column 2 has the name of another one, x"),
        ("x,y\n", "x,y\n1,4\n", {}, "train.csv: has no rows below the header"),
        ("x,y\n1,2\n4,3\n", "x\n1\n", {}, "test.csv: has no column y, which train.csv has"),
        ("x,y\n1,2\n4,3\n", "x,y,z\n1,2,3\n", {}, "test.csv: has a column z, which train.csv has not"),
        ("x,y\n1,2\n", "x,y\n1,2\n", {"target": "z"}, "--target z: "),
        ("x,y\n1,2\n", "x,y\n1,2\n", {"client_column": "z"}, "--client-column z: "),
        ("x,y\n1,2\n2,2\n", "x,y\n1,2\n", {}, "all rows of "),
        ("x,y\n1e39,2\n2,3\n", "x,y\n1,2\n", {}, "line 2, column x: is too large for float32"),
        ("x,y\n1,0.5\n2,1e39\n", "x,y\n1,2\n", {}, "line 3, column y: is too large for float32"),
        ("y\n2\n3\n", "y\n1\n", {}, "has no column beside y"),
        (
            "x,y\n1,2\n4,3\n",
            "x,y\n1,2\n",
            {"dataset_args": {"tas": 1}},
            "--dataset csv takes task, standardize, delimi",
        ),
        ("x,y\n1,2\n4,3\n", "x,y\n1,2\n", {"dataset_args": {"task": "x"}}, "task=x: must be one of auto, classifica"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(
    train: str, test: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SimError) as raised:
        _load("csv", _table(tmp_path / "t", train, test), **{"target": "y", **settings})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_digits_that_are_names_are_told_apart(tmp_path: Path) -> None:
    rows = "x\ty\tc\n1\t01\t007\n2\t1\t7\n3\t001\t--5\n"
    dataset = _load(
        "csv", _table(tmp_path / "t", rows, rows), target="y", client_column="c", dataset_args={"delimiter": "tab"}
    )
    assert dataset.classes == ("001", "01", "1")
    assert dataset.train.column("c").tolist() == ["007", "7", "--5"]
    mixed = "x,y\n1,007\n2,1.0\n3,+1\n4,-0\n5,0\n"
    assert _load("csv", _table(tmp_path / "m", mixed, mixed), target="y").classes == ("0", "1", "007")
    large = "x,y\n1,12345678901234567\n2,12345678901234568\n"
    assert len(_load("csv", _table(tmp_path / "l", large, large), target="y").classes) == 2


def test_whole_numbers_of_a_table_are_ids_and_codes_are_told_apart(tmp_path: Path) -> None:
    rows = "".join(f"{k / 4},{k + 1},{('007', '7', '08')[k % 3]},{k % 2 * 2 - 1}\n" for k in range(150))
    dataset = _load(
        "csv", _table(tmp_path / "t", "x,patient,site,y\n" + rows, "x,patient,site,y\n1,1,7,1\n"), target="y"
    )
    kept = {name: dataset.train.column(name) for name in ("x", "patient", "site", "y")}
    assert {name: column.dtype.kind for name, column in kept.items()} == {
        "x": "f",
        "patient": "i",
        "site": "U",
        "y": "i",
    }

    def sizes(name: str, partitioner: str, **settings: Any) -> list[int]:
        config = RunConfig(partitioner=partitioner, partition_by=name, **settings)
        return partition.assign(dataset, config).sizes.tolist()

    assert sizes("patient", "natural") == [1] * 150
    assert sizes("site", "natural", num_clients=3, fraction_fit=1.0) == [50] * 3
    assert sizes("y", "natural", num_clients=2, fraction_fit=1.0) == [75] * 2
    assert decided(RunConfig(partition_by="patient"), dataset)[0].partitioner == "dirichlet"
    for name in ("x", "patient", "site"):
        config = RunConfig(
            partitioner="continuous", partition_by=name, num_clients=5, partitioner_args={"strictness": 1.0}
        )
        assigned = partition.assign(dataset, config)
        means = [kept[name][assigned.of(client_id)].astype(float).mean() for client_id in range(5)]
        assert means == sorted(means)
        quantiles = partition.summary(dataset, assigned, config).quantiles
        assert (quantiles is None) == (name == "site")
    floats = "x,patient,y\n1,1.0,0.5\n2,2,1.5\n3,2.0,0.5\n4,-0,1.5\n"
    folder = _table(tmp_path / "f", floats, floats)
    same = _load("csv", folder, target="y", dataset_args={"task": "classification"})
    assert same.train.column("patient").tolist() == [1, 2, 2, 0]
    assert same.train.column("y").tolist() == ["0.5", "1.5", "0.5", "1.5"]
    measured = _load("csv", folder, target="patient", dataset_args={"task": "regression"})
    assert measured.train.column("patient").dtype == np.float64


def test_a_column_of_clients_called_label_is_no_target(tmp_path: Path) -> None:
    rows = "x,y,label\n1,0,5\n2,1,6\n3,0,7\n4,1,8\n"
    folder = _table(tmp_path / "t", rows, rows)
    few = {"num_clients": 4, "num_rounds": 1, "engine": "inline", "partitioner": "natural", "client_column": "label"}
    config = RunConfig(dataset="csv", data_dir=str(folder), target="y", results_dir=str(tmp_path), **few)
    assert simulate(config).rounds().num_clients.max() > 0


def _leaf(path: Path, data: dict[str, tuple[list[Any], list[Any]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {user: {"x": x, "y": y} for user, (x, y) in data.items()}
    sizes = [len(x) for x, _ in data.values()]
    path.write_text(json.dumps({"users": list(data), "num_samples": sizes, "user_data": content}), encoding="utf-8")


def test_leaf_images_keep_their_numbers_and_users(tmp_path: Path) -> None:
    pixels = [[k / 1000 + n for k in range(784)] for n in range(20)]
    _leaf(
        tmp_path / "data" / "all_data" / "all_data_0.json", {"f1": (pixels, list(range(20))), "f0": (pixels[:1], [3])}
    )
    dataset = _load("leaf", tmp_path)
    assert (dataset.image_shape, len(dataset.classes), dataset.clients) == ((1, 28, 28), 20, "client")
    assert (len(dataset.train), len(dataset.test)) == (19, 2)
    assert dataset.train.column("client").tolist() == ["f1"] * 18 + ["f0"]
    first = int(dataset.train.labels[0])
    assert np.array_equal(dataset.train.batch[0][0, 0], np.array(pixels[first], np.float32).reshape(28, 28))
    assert decided(RunConfig(dataset="leaf", data_dir=str(tmp_path)), dataset)[0].model == "Net"


def test_leaf_characters_words_and_features(tmp_path: Path) -> None:
    _leaf(tmp_path / "s" / "train" / "a.json", {"HAMLET": (["to b", "o be"], ["e", " "])})
    _leaf(tmp_path / "s" / "test" / "a.json", {"HAMLET": (["o be"], ["!"])})
    texts = _load("leaf", tmp_path / "s")
    assert texts.classes == ("unknown", " ", "b", "e", "o", "t")
    assert texts.train.batch[0].tolist() == [[5, 4, 1, 2], [4, 1, 2, 3]]
    assert (texts.train.batch[1].tolist(), texts.test.batch[1].tolist()) == ([3, 1], [0])
    net = _net(texts, "CharLstm", hidden_size=4)
    assert net(torch.tensor(texts.train.batch[0])).shape == (2, 6)  # one character, not one at each position

    tweets = [[1, "day", "q", "me", "Good good DAY!"], [2, "day", "q", "me", "bad"]]
    for split in ("train", "test"):
        _leaf(
            tmp_path / "t" / "data" / split / "a.json",
            {"me": (tweets[:1] if split == "train" else tweets, [1, 0][: 2 if split == "test" else 1])},
        )
    words = _load("leaf", tmp_path / "t", dataset_args={"sequence_length": 5})
    assert words.train.batch[0].tolist() == [[0, 2, 2, 4, 3]]
    assert words.test.batch[0].tolist() == [[0, 2, 2, 4, 3], [0, 0, 0, 0, 1]]
    assert (words.vocab_size, words.classes) == (5, ("negative", "positive"))

    _leaf(tmp_path / "n" / "train" / "a.json", {"k": ([[1, 2.5], [3, 4]], [1.0, 0.0])})
    _leaf(tmp_path / "n" / "test" / "a.json", {"k": ([[1, 2.5]], [1])})
    path = tmp_path / "n" / "test" / "a.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    numbers = _load("leaf", tmp_path / "n")
    assert numbers.train.batch[0].tolist() == [[1, 2.5], [3, 4]]
    assert numbers.train.batch[1].tolist() == [1, 0]
    assert numbers.classes == ("0", "1")
    _leaf(tmp_path / "n" / "train" / "a.json", {"k": ([[1, 2.5], [3, 4]], [1.5, 0.0])})
    assert _load("leaf", tmp_path / "n").notes[-1].endswith("so that this is a regression")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a.json: not valid JSON: "),
        ("[]", "a.json: has no users and user_data"),
        ('{"users": ["u"], "user_data": {}}', "user u: user_data has no lists x and y of it"),
        ('{"users": ["u"], "user_data": {"u": {"x": [1], "y": []}}}', "user u: x has 1 examples, y has 0"),
        ('{"users": ["u"], "user_data": {"u": {"x": [[1], [1, 2]], "y": [0, 1]}}}', "example 1 is not 1 numbers"),
        ('{"users": ["u"], "user_data": {"u": {"x": ["ab", "a"], "y": ["c", "d"]}}}', "example 1 is no text of 2 char"),
        ('{"users": ["u"], "user_data": {"u": {"x": [], "y": []}}}', "a.json: has no examples"),
        ('{"users": ["u"], "user_data": {"u": {"x": [[1' + 400 * "0" + ']], "y": [0]}}}', "example 0 is not 1 numbers"),
        ('{"users": ["u", "u"], "user_data": {"u": {"x": [[1]], "y": [0]}}}', "users has user u 2 times, not once"),
        ('{"users": [], "user_data": {"u": {"x": [[1]], "y": [0]}}}', "users has user u 0 times, not once"),
        (
            '{"users": ["u"], "user_data": {"u": {"x": [[1]], "y": [0]}, "u": {"x": [[2]], "y": [1]}}}',
            "a.json: not valid JSON: u is there 2 times, not once",
        ),
    ],
)
def test_what_is_wrong_with_leaf_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        _load("leaf", tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_folders_without_their_files_and_texts_that_are_too_short(tmp_path: Path) -> None:
    for name, message in (("text", "has no *.txt"), ("csv", "there is no train.csv"), ("leaf", "LEAF's data/all_data")):
        with pytest.raises(DataError) as raised:
            _load(name, tmp_path, **({"target": "y"} if name == "csv" else {}))
        assert message in str(raised.value)
    (tmp_path / "a.txt").write_bytes(b"ab\ncd\xff")
    with pytest.raises(DataError, match=r"a\.txt: line 2 is not UTF-8"):
        _load("text", tmp_path)
    (tmp_path / "a.txt").write_text("x" * 100)
    with pytest.raises(
        DataError, match=r"100 characters are too few .* sequence_length=80 in each of 10 parts; about 901"
    ):
        _load("text", tmp_path)


def test_the_data_decide_what_was_left_open(tmp_path: Path) -> None:
    def choice(dataset: Dataset, **settings: Any) -> tuple[str, str, int, float | None, int | None]:
        config, _ = decided(RunConfig(**settings), dataset)
        return config.model, config.partitioner, config.num_clients, config.fraction_fit, config.clients_per_round

    assert choice(_load("digits")) == ("Net", "dirichlet", 100, 0.2, None)
    assert decided(RunConfig(), _load("digits"))[1] == ()
    assert choice(_load("wine")) == ("Mlp", "dirichlet", 100, 0.2, None)
    assert choice(_load("diabetes")) == ("Mlp", "iid", 100, 0.2, None)
    natural = _load("fedprox-synthetic")
    assert choice(natural) == ("Mlp", "natural", 30, 0.2, None)
    assert choice(natural, num_clients=7) == ("Mlp", "natural", 7, 0.2, None)
    assert choice(natural, partitioner="dirichlet", model="Logistic") == ("Logistic", "dirichlet", 100, 0.2, None)
    (tmp_path / "a.txt").write_text("abc" * 20)
    (tmp_path / "b.txt").write_text("abd" * 20)
    texts = _load("text", tmp_path, dataset_args={"sequence_length": 2})
    assert choice(texts) == ("CharLstm", "natural", 2, None, 1)  # a fifth of two clients is none
    with pytest.raises(ConfigError, match=r"--alpha 0\.1: belongs to --partitioner dirichlet"):
        choice(natural, alpha=0.1)
    with pytest.raises(PartitionError, match="--clients-per-round 50: must be at most 30, because client has 30"):
        choice(natural, clients_per_round=50)
    with pytest.raises(PartitionError, match="--num-clients 31: client has 30 different values; at most 30"):
        choice(natural, num_clients=31)


def test_natural_and_continuous_partitions_are_those_of_flwr_datasets() -> None:
    import datasets

    ids = np.random.default_rng(0).integers(0, 7, 300)
    library: Any = NaturalIdPartitioner("label")
    library.dataset = datasets.Dataset.from_dict({"label": ids, "index": np.arange(300)})
    own = partitioners.natural(ids, 7)
    assert [part.tolist() for part in own] == [list(library.load_partition(k)["index"]) for k in range(7)]
    assert [part.tolist() for part in partitioners.natural(ids, 3)] == [part.tolist() for part in own[:3]]

    dataset = _load("diabetes")
    config = RunConfig(num_clients=5, partitioner="continuous", partitioner_args={"strictness": 1.0})
    assigned = partition.assign(dataset, config)
    target = dataset.train.batch[1]
    order = generator(0, Purpose.PARTITION).permutation(353)
    library = ContinuousPartitioner(**partitioners.arguments(config, target))
    library.dataset = datasets.Dataset.from_dict({"label": target[order], "index": order})
    for client_id in range(5):
        assert assigned.of(client_id).tolist() == list(library.load_partition(client_id)["index"])
    means = [target[assigned.of(client_id)].mean() for client_id in range(5)]
    assert means == sorted(means)


def test_partitions_by_a_column(tmp_path: Path) -> None:
    rows = "".join(f"{k},{'ab'[k % 2]},u{k // 10},{k % 3}\n" for k in range(60))
    root = _table(tmp_path / "t", "x,kind,who,y\n" + rows, "x,kind,who,y\n1,a,u0,0\n")
    dataset = _load("csv", root, target="y")
    kinds, who = dataset.train.column("kind"), dataset.train.column("who")
    shards = partition.assign(
        dataset,
        RunConfig(
            partitioner="pathological",
            partition_by="kind",
            num_clients=4,
            fraction_fit=1.0,
            partitioner_args={"num_classes_per_partition": 1},
        ),
    )
    assert [len(set(kinds[shards.of(k)])) for k in range(4)] == [1] * 4
    natural = partition.assign(dataset, RunConfig(partitioner="natural", partition_by="who"))
    assert [set(who[natural.of(k)]) for k in range(6)] == [{f"u{k}"} for k in range(6)]
    grouped = RunConfig(partitioner="grouped-natural", partition_by="who", partitioner_args={"group_size": 4})
    assert partition.assign(dataset, grouped).sizes.tolist() == [40, 20]
    with pytest.raises(ConfigError, match="grouped-natural: needs --partitioner-args group_size=N"):
        partition.assign(dataset, RunConfig(partitioner="grouped-natural", partition_by="who"))
    with pytest.raises(PartitionError, match=r"--partition-by z: is no column .*; the columns are x, kind, who, y"):
        partition.assign(dataset, RunConfig(partition_by="z"))
    with pytest.raises(PartitionError, match="continuous: needs a number for each example, but --partition-by kind is"):
        partition.assign(dataset, RunConfig(partitioner="continuous", partition_by="kind", num_clients=6))
    sizes = RunConfig(partitioner="size", partitioner_args={"partition_sizes": "10,5,20"})
    assert partition.assign(dataset, sizes).sizes.tolist() == [10, 5, 20]
    with pytest.raises(ConfigError, match="partition_sizes=10,x: must be numbers of examples"):
        partition.assign(dataset, RunConfig(partitioner="size", partitioner_args={"partition_sizes": "10,x"}))
    grown = RunConfig(partitioner="size-to-id", num_clients=3, clients_per_round=1, partitioner_args={"power": 1.0})
    assert partition.assign(dataset, grown).sizes.tolist() == [10, 20, 30]


def test_models_have_their_documented_sizes() -> None:
    sizes = {
        "Logistic": (DataFacts((60,), 10), 610),
        "Mlp": (DataFacts((1, 28, 28), 10), 199_210),
        "CharLstm": (DataFacts((80,), 80, 80, (80,)), 819_920),
    }
    for name, (facts, count) in sizes.items():
        assert sum(p.numel() for p in models.build(name, facts).parameters()) == count, name
    net = models.build("torchvision:mobilenet_v3_small", DataFacts((3, 32, 32), 7))
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(
        ConfigError, match="torchvision:resnet19: torchvision has no such classifier; it has resnet18, "
    ):
        models.build("torchvision:resnet19", DataFacts((3, 32, 32), 7))


def test_a_run_records_what_the_data_decided(command: Sim, tmp_path: Path) -> None:
    words = ("--engine", "inline", "--num-rounds", "1", "--local-epochs", "1", "--clients-per-round", "2")
    ended = command("run", "--dataset", "fedprox-synthetic", *words, "--name", "a", "--model", "Logistic")
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    config = (tmp_path / "results" / "a" / "config.toml").read_text()
    assert 'partitioner = "natural"' in config
    assert "num_clients = 30" in config
    assert "--partitioner natural, because the data say to which client" in ended.stderr


def test_a_partition_is_shown_by_classes_by_numbers_or_by_sizes(tmp_path: Path) -> None:
    def shown(dataset: Dataset, **settings: Any) -> tuple[partition.Summary, list[str]]:
        config, _ = decided(RunConfig(**settings), dataset)
        found = partition.summary(dataset, partition.assign(dataset, config), config)
        return found, [axes.get_ylabel() for axes in plots.summary_figure(found).axes]

    natural, labels = shown(_load("fedprox-synthetic"))
    assert (natural.counts.shape, natural.column, labels) == ((30, 10), "class", ["examples"])
    numbers, labels = shown(_load("diabetes"), num_clients=5)
    assert (numbers.column, labels) == ("target", ["examples", "target"])
    assert numbers.quantiles[:, 0].min() == 25
    assert numbers.quantiles[:, 4].max() == 346
    rows = "".join(f"{k},{k % 2},t{k}\n" for k in range(120))
    table = _load("csv", _table(tmp_path / "t", "x,y,many\n" + rows, "x,y,many\n1,1,t1\n"), target="y")
    many, labels = shown(table, num_clients=4, partitioner="shard", partition_by="many", fraction_fit=1.0)
    assert (many.distinct.tolist(), labels) == ([30] * 4, ["examples", "different values of many"])
    (tmp_path / "a.txt").write_text("abc" * 20)
    texts, labels = shown(_load("text", tmp_path, dataset_args={"sequence_length": 2}))
    assert (texts.sizes.tolist(), labels) == ([2] * 10, ["examples"])


def test_stragglers_train_for_fewer_epochs_or_are_dropped() -> None:
    def of_round(number: int, **settings: Any) -> dict[int, int]:
        config = RunConfig(num_clients=50, local_epochs=20, **settings)
        chosen = [(k, {"local_epochs": 20}) for k in range(49, -1, -1)]
        left = zip(range(49, -1, -1), with_stragglers(chosen, config, number), strict=True)
        return {client_id: each["local_epochs"] for client_id, each in left if each is not None}

    kept, dropped = of_round(3, stragglers=0.9), of_round(3, stragglers=0.9, straggler_policy="drop")
    assert len(kept) == 50
    assert len(dropped) == 5
    assert all(kept[client_id] == 20 for client_id in dropped)  # both policies have the same fast clients
    slow = [epochs for client_id, epochs in kept.items() if client_id not in dropped]
    assert (min(slow) >= 1, max(slow) <= 20, len(set(slow)) > 10) == (True, True, True)
    assert of_round(3, stragglers=0.9) == kept
    assert of_round(4, stragglers=0.9) != kept
    assert set(of_round(3).values()) == {20}
    assert len(of_round(3, stragglers=1.0, straggler_policy="drop")) == 1
    with pytest.raises(ConfigError, match="--straggler-policy drop: belongs to --stragglers above 0"):
        RunConfig(straggler_policy="drop")


def test_both_forms_of_strategy_have_the_same_stragglers(small: Small) -> None:
    """Multi-Krum that keeps all clients is their mean."""
    shared = {"model": "Mlp", "num_rounds": 1, "local_epochs": 3, "max_local_steps": None, "batch_size": 32}
    found = []
    for settings, num_clients in (
        ({"stragglers": 0.0}, 4),
        ({"stragglers": 1.0}, 4),
        ({"stragglers": 1.0, "straggler_policy": "drop"}, 1),
    ):
        both = [
            small(name=f"{name}-{len(found)}", strategy=name, **{**shared, **settings})
            for name in ("fedavg", "multikrum")
        ]
        assert [run.rounds().num_clients[1] for run in both] == [num_clients] * 2
        one, other = (np.concatenate([a.ravel() for a in load_file(run.model_path).values()]) for run in both)
        assert np.abs(one - other).max() < 1e-6
        found.append(other)
    assert min(np.abs(found[0] - each).max() for each in found[1:]) > 1e-3


@pytest.mark.slow
def test_an_lstm_predicts_three_books_better_than_the_frequencies_of_their_characters(tmp_path: Path) -> None:
    """Alice in Wonderland, As You Like It and Paradise Lost, which the sources of the package brotli hold."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "brotli", "brotli"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    books = tmp_path / "books"
    books.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            if name in ("alice29.txt", "asyoulik.txt", "plrabn12.txt"):
                (books / name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    config = RunConfig(
        dataset="text",
        data_dir=str(books),
        dataset_args={"sequence_length": 40},
        model_args={"hidden_size": 64, "num_layers": 1},
        fraction_fit=1.0,
        num_rounds=2,
        local_epochs=1,
        max_local_steps=60,
        batch_size=32,
        optimizer="adam",
        lr=0.01,
        metric="perplexity",
        engine="inline",
        results_dir=str(tmp_path),
    )
    run = simulate(config)
    assert run.config()["num_clients"] == 3
    dataset = load_dataset(config)
    assert dataset.vocab_size is not None
    counts = np.bincount(dataset.train.batch[1].ravel(), minlength=dataset.vocab_size) + 1
    unigram = np.exp(-np.log(counts / counts.sum())[dataset.test.batch[1]].mean())
    metrics = run.metrics()
    last = metrics[(metrics["phase"] == "test") & (metrics["name"] == "perplexity")]["value"].iloc[-1]
    assert last < 0.9 * unigram < 30
