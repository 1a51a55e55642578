"""Damaged, half-made, unwritable and shared entries of the cache."""

from __future__ import annotations

import logging
import os
import resource
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from sim.config.run_config import RunConfig
from sim.data import cache, partition
from sim.data.load_dataset import Dataset, load_dataset, open_dataset
from sim.engine.ray.shipping import pack, unpack
from sim.errors import DataError, RunError
from sim.setup.prepare import prepare
from sim.simulation import simulate

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


def _digit_of_a_sum(folder: Path) -> None:
    path = folder / "files.json"
    text = path.read_text()
    place = text.index('"]', text.index("train_images"))  # the end of a SHA-256
    path.write_text(text[: place - 1] + ("1" if text[place - 1] == "0" else "0") + text[place:])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_pixel, "train_images.npy has another checksum"),
        (_length, "train_labels.npy has 208 bytes, not 288"),
        (_label, "train_labels.npy has another checksum"),
        (_dtype, "test_labels.npy has another checksum"),
        (_missing, "classes.json is missing"),
        (_sums, "files.json cannot be read"),
        (_digit_of_a_sum, "files.json has another checksum"),
    ],
)
def test_a_damaged_entry_is_named_and_made_again(
    damage: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture, own_cache: Path
) -> None:
    made = load_dataset(CONFIG)
    whole = [np.array(array) for array in _arrays(made)]
    content = cache.checksum(made.folder)
    damage(made.folder)
    cache._CHECKED.clear()  # as in another process
    with caplog.at_level(logging.WARNING, "sim"):
        again = load_dataset(CONFIG)
    assert again.folder == made.folder
    assert all(np.array_equal(one, other) for one, other in zip(whole, _arrays(again), strict=True))
    assert [record.getMessage() for record in caplog.records] == [
        f"note: the cached data {made.folder} is damaged ({reason}) and is made again"
    ]
    assert sorted(path.name for path in own_cache.iterdir()) == ["data"]
    assert list((own_cache / "data").iterdir()) == [made.folder]
    assert cache.checksum(again.folder) == content


def _arrays(dataset: Dataset) -> list[np.ndarray]:
    return [dataset.train.images, dataset.train.labels, dataset.test.images, dataset.test.labels]


def test_a_partition_of_another_dtype_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    dataset = load_dataset(CONFIG)
    made = partition.assign(dataset, CONFIG)
    whole = np.array(made.indices)
    np.save(made.folder / "indices.npy", whole.astype(np.float32))
    cache._CHECKED.clear()  # as in another process
    again = partition.assign(dataset, CONFIG)
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


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_make_an_entry_at_once_neither_disturb_each_other_nor_leave_anything(
    damaged: bool, own_cache: Path
) -> None:
    def make(folder: Path) -> None:
        (folder / "content").write_bytes(b"1")

    def make_all(together: threading.Barrier) -> list[bytes]:
        together.wait()
        return [(cache.cached("data", {"number": number}, make) / "content").read_bytes() for number in range(20)]

    if damaged:
        for number in range(20):
            (cache.cached("data", {"number": number}, make) / "content").write_bytes(b"0")
        cache._CHECKED.clear()
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:  # locks of a file that is opened twice exclude threads as they do processes
        results = [pool.submit(make_all, together) for _ in range(4)]
    assert [result.result() for result in results] == [[b"1"] * 20] * 4
    names = [path.name for path in (own_cache / "data").iterdir()]
    assert (len(names), [name for name in names if name.startswith(".")]) == (20, [])


@pytest.mark.usefixtures("no_pictures")
def test_files_of_the_cache_are_closed_when_a_run_has_ended(own_cache: Path, tmp_path: Path) -> None:
    def train(net: Any, loader: Any) -> None:
        net.weight.data += 1

    def fail(net: Any, loader: Any) -> None:
        if len(loader.dataset) > 2:  # not in the dry run
            raise ValueError

    def run(train: Any) -> int:
        results = str(tmp_path / "results")
        config = RunConfig(num_clients=2, num_rounds=1, partitioner="iid", engine="inline", results_dir=results)
        x = np.ones((80, 2), np.float32), np.arange(80) % 2
        with nullcontext() if train is not fail else pytest.raises(RunError):
            simulate(config, model=lambda: nn.Linear(2, 2), load_data=lambda: (x, x), train=train)
        places = [os.path.realpath(place) for place in Path("/proc/self/fd").iterdir()]
        return sum(place.startswith(str(own_cache)) and place.endswith(".npy") for place in places)

    assert run(train) == run(train) < 10
    after_an_error = run(fail)
    assert run(fail) == after_an_error
    assert run(train) == run(train) < 10


def test_too_many_open_files_are_no_damage(own_cache: Path) -> None:
    dataset = load_dataset(CONFIG)
    assigned = partition.assign(dataset, CONFIG)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(own_cache, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    end = "cannot be opened: Too many open files; close files, or raise ulimit -n"
    try:
        with pytest.raises(DataError, match=f"^the cached partition {assigned.folder} {end}$"):
            partition.open_cached(assigned.folder)
        with pytest.raises(DataError, match=f"^the cached data set {dataset.folder} {end}$"):
            open_dataset(dataset.source)
        cache._CHECKED.clear()
        with pytest.raises(DataError, match=f"^the cache {own_cache}/data {end}$"):
            load_dataset(CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("most_bytes", [0, 150, 1000, 3900])  # within a .npy file: of its header, and of each array
def test_a_full_disk_is_one_line_and_leaves_nothing(most_bytes: int, own_cache: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))  # as on a full disk, with another reason
    try:
        with pytest.raises(
            DataError, match=f"^the cache {own_cache}/data cannot be used: File too large; set SIM_CACHE"
        ):
            load_dataset(CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((own_cache / "data").iterdir()) == []


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIM_CACHE", "~/data")
    assert cache.cache_folder() == tmp_path / "data"


def test_a_relative_cache_without_a_current_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    monkeypatch.setenv("SIM_CACHE", "cache")
    with pytest.raises(DataError, match=r"the cache has no folder: .*set SIM_CACHE"):
        load_dataset(CONFIG)


def test_actors_of_a_node_unpack_the_same_files_at_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = prepare(replace(CONFIG, model="Mlp")).spec
    files = pack(spec)
    monkeypatch.setenv("SIM_CACHE", str(own_cache / "other node"))
    together = threading.Barrier(8)

    def arrive() -> Path | None:
        together.wait()
        return unpack(spec, files).data.folder  # type: ignore[union-attr]

    with ThreadPoolExecutor(8) as pool:
        folders = {future.result() for future in [pool.submit(arrive) for _ in range(8)]}
    (folder,) = folders
    assert folder is not None
    assert folder.is_relative_to(own_cache / "other node")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files[f"data/{folder.name}"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
