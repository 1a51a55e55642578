"""Damaged, half-made, unwritable and shared entries of the cache."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sim.config.run_config import RunConfig
from sim.data import cache, partition
from sim.data.dataset import Dataset, load_dataset
from sim.errors import DataError

CONFIG = RunConfig(dataset="synthetic", num_examples=20, num_clients=2, fraction_fit=1.0, image_size=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SIM_CACHE", str(folder))
    return folder


def _pixel(folder: Path) -> None:
    path = folder / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def _length(folder: Path) -> None:
    np.save(folder / "train_labels.npy", np.load(folder / "train_labels.npy")[:10])


def _label(folder: Path) -> None:
    labels = np.load(folder / "train_labels.npy")
    labels[5] = 77
    np.save(folder / "train_labels.npy", labels)


def _dtype(folder: Path) -> None:
    np.save(folder / "test_labels.npy", np.load(folder / "test_labels.npy").astype(np.float64))


def _missing(folder: Path) -> None:
    (folder / "classes.json").unlink()


def _sums(folder: Path) -> None:
    (folder / "files.json").write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [_pixel, _length, _label, _dtype, _missing, _sums])
def test_a_damaged_entry_is_named_and_made_again(
    damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture, own_cache: Path
) -> None:
    made = load_dataset(CONFIG)
    whole = [np.array(array) for array in _arrays(made)]
    damage(made.folder)
    with caplog.at_level(logging.WARNING, "sim"):
        again = load_dataset(CONFIG)
    assert again.folder == made.folder
    assert all(np.array_equal(one, other) for one, other in zip(whole, _arrays(again), strict=True))
    assert [
        record.getMessage().startswith(f"note: the cached data {made.folder} is damaged") for record in caplog.records
    ] == [True]
    assert sorted(path.name for path in own_cache.iterdir()) == ["data"]
    assert list((own_cache / "data").iterdir()) == [made.folder]


def _arrays(dataset: Dataset) -> list[np.ndarray]:
    return [dataset.train.images, dataset.train.labels, dataset.test.images, dataset.test.labels]


def test_a_partition_of_another_dtype_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    labels = load_dataset(CONFIG).train.labels
    made = partition.assign(labels, CONFIG)
    whole = np.array(made.indices)
    np.save(made.folder / "indices.npy", whole.astype(np.float32))
    again = partition.assign(labels, CONFIG)
    assert again.indices.dtype == np.int64
    assert np.array_equal(again.indices, whole)
    assert "indices.npy has" in caplog.text


def test_what_a_killed_process_had_half_made_is_removed_and_what_a_living_one_makes_is_kept(own_cache: Path) -> None:
    (own_cache / "data" / ".making-dead").mkdir(parents=True)
    living = own_cache / "data" / ".making-living"
    living.mkdir()
    lock = cache._lock(living)
    assert lock is not None
    folder = load_dataset(CONFIG).folder
    assert sorted(path.name for path in folder.parent.iterdir()) == [".making-living", folder.name]
    os.close(lock)


def test_a_shared_cache_gives_its_permissions_to_what_is_made_in_it(own_cache: Path) -> None:
    own_cache.mkdir()
    own_cache.chmod(0o1777)
    before = os.umask(0o077)
    try:
        folder = load_dataset(CONFIG).folder
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder, folder / "train_labels.npy")]
    assert [oct(mode) for mode in modes] == ["0o1777", "0o755", "0o644"]


def test_a_full_disk_is_said_where_numpy_gives_no_reason(own_cache: Path) -> None:
    def make(folder: Path) -> None:
        raise OSError("4096 requested and 0 written")  # as numpy does

    with pytest.raises(
        DataError, match=r"the cache .*/data cannot be used: a file could not be written whole .*disk full"
    ) as caught:
        cache.cached("data", {}, make)
    assert str(own_cache) in str(caught.value)
    assert list((own_cache / "data").iterdir()) == []


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIM_CACHE", "~/data")
    assert cache.cache_folder() == tmp_path / "data"
