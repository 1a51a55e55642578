"""Files in the formats of torchvision's data sets, written by these tests and read with torchvision."""

from __future__ import annotations

import gzip
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Sim
from sim.config.run_config import RunConfig
from sim.data.columns import Columns, LoaderSettings
from sim.data.load_dataset import Examples, load_dataset
from sim.errors import DataError

SPLITS = (("train", 60), ("t10k", 20))


def _idx(array: np.ndarray) -> bytes:
    """Return an array in the MNIST format: 0, 0, type (8 for uint8), number of dimensions, big-endian sizes, bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _mnist(root: Path, folder: str = "MNIST") -> Path:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split, count in SPLITS:
        images = np.arange(count * 28 * 28).reshape(count, 28, 28) % 251
        (raw / f"{split}-images-idx3-ubyte").write_bytes(_idx(images))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(_idx(np.arange(count) % 10))
    return raw


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_files_in_the_mnist_format_are_read_exactly(tmp_path: Path, name: str, folder: str) -> None:
    _mnist(tmp_path, folder)
    found = load_dataset(RunConfig(dataset=name, data_dir=str(tmp_path), image_size=28))
    assert found.train.images.shape == (60, 28, 28, 1)
    assert found.test.images.shape == (20, 28, 28, 1)
    assert found.train.images[7].flatten().tolist() == [(7 * 784 + i) % 251 for i in range(784)]
    assert found.train.labels.tolist() == [i % 10 for i in range(60)]
    assert len(found.classes) == 10
    assert load_dataset(RunConfig(dataset=name, data_dir=str(tmp_path))).train.images.shape == (60, 32, 32, 1)


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    raw = _mnist(tmp_path)
    config = RunConfig(dataset="mnist", data_dir=str(tmp_path))
    first = load_dataset(config).folder
    assert load_dataset(config).folder == first
    (raw / "train-labels-idx1-ubyte").write_bytes(_idx(np.arange(60) % 5))
    assert load_dataset(config).train.labels.tolist() == [i % 5 for i in range(60)]


def _check(result: subprocess.CompletedProcess[str], name: str, place: str) -> None:
    assert result.returncode == 2, result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"sim: --dataset {name}: ")
    assert place in line
    assert "use --dataset digits, synthetic or imagefolder" in line
    assert "Traceback" not in result.stderr


def test_a_damaged_file_is_one_line(command: Sim, tmp_path: Path) -> None:
    path = _mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    _check(command("run", "--engine", "inline", "--dataset", "mnist", "--data-dir", "."), "mnist", "MNIST/raw")


def test_a_broken_link_is_one_line(tmp_path: Path) -> None:
    (_mnist(tmp_path) / "lost").symlink_to("nowhere")
    with pytest.raises(DataError, match="MNIST/raw/lost: No such file or directory; repair or remove that file"):
        load_dataset(RunConfig(dataset="mnist", data_dir=str(tmp_path)))


def test_an_incomplete_download_is_one_line(command: Sim, tmp_path: Path) -> None:
    raw = _mnist(tmp_path)
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").unlink()
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:500])
    result = command("run", "--engine", "inline", "--dataset", "mnist", "--data-dir", ".")
    _check(result, "mnist", "MNIST/raw: RuntimeError: Dataset not found")


@pytest.mark.network
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_files_without_a_network_are_one_line(
    command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # a proxy address at which no program listens stands for a missing network
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    result = command("run", "--engine", "inline", "--dataset", name, "--data-dir", "nowhere")
    _check(result, name, f"nowhere/cifar-{name.removeprefix('cifar')}")
    assert not (tmp_path / "results").exists()


def test_a_loader_of_the_users_own(in_programs: None) -> None:
    """The images of a DataLoader are those that the same images as bytes become."""
    found = [load_dataset(RunConfig(dataset=f"loaders:{name}")) for name in ("arrays", "loaders")]
    images, columns = (each.train for each in found)
    assert isinstance(images, Examples)
    assert isinstance(columns, Columns)
    expected = torch.from_numpy(images.images).permute(0, 3, 1, 2) / 127.5 - 1
    assert np.array_equal(columns.batch[0], expected.numpy())
    assert columns.loader == LoaderSettings(batch_size=8, shuffle=True)
    assert [each.classes for each in found] == [("0", "1", "2", "3", "4")] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised OSError: disk is gone"),
        ("nothing", r"returned NoneType; \(train, test\) of Datasets, DataLoaders or arrays is expected"),
        ("few_labels", r"train: arrays of shapes \(3, 32, 32, 3\), \(2,\) do not have one row for each example"),
    ],
)
def test_a_loader_that_does_not_fit(in_programs: None, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"--dataset loaders:{name}: .*{message}"):
        load_dataset(RunConfig(dataset=f"loaders:{name}"))


@pytest.mark.parametrize(("name", "low", "high"), [("floats", 0, 0), ("wide", 0, 255)])
def test_values_are_not_rescaled(in_programs: None, name: str, low: int, high: int) -> None:
    train = load_dataset(RunConfig(dataset=f"loaders:{name}")).train
    assert isinstance(train, Columns)
    assert (train.batch[0].min(), train.batch[0].max()) == (low, high)
