from __future__ import annotations

import os
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from flwr.common import Context, EvaluateIns, RecordDict, ndarrays_to_parameters
from PIL import Image

from sim.client.runtime import ClientRuntime, ClientSpec
from sim.config.run_config import RunConfig
from sim.data import partition
from sim.data.batches import Batches
from sim.data.load_dataset import Dataset, Examples, load_dataset
from sim.errors import DataError
from sim.seeds import Purpose, sequence
from sim.setup.prepare import spec_parts
from sim.training.weights import get_weights


def _folder(root: Path, colour: int = 200) -> Path:
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                value = (colour, 10 * label, number)
                Image.new("RGB", (32, 32), value).save(root / split / name / f"{number}.png")
    return root


def _load(root: Path, **settings: object) -> Dataset:
    return load_dataset(RunConfig(dataset="imagefolder", data_dir=str(root), **settings))  # type: ignore[arg-type]


def test_digits_are_complete_with_a_fixed_stratified_split() -> None:
    digits = load_dataset(RunConfig())
    assert digits.train.images.shape == (1437, 32, 32, 1)
    assert digits.test.images.shape == (360, 32, 32, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int64
    assert int(digits.train.images.max()) == 255
    assert sorted(np.bincount(digits.test.labels)) == [35, 35, 36, 36, 36, 36, 36, 36, 37, 37]
    assert load_dataset(RunConfig(seed=5)).folder == digits.folder
    assert digits.image_shape == (1, 32, 32)


def test_the_class_of_a_synthetic_image_can_be_recognized() -> None:
    made = load_dataset(RunConfig(dataset="synthetic", num_examples=300, num_classes=3, image_size=16))
    assert made.train.images.shape == (300, 16, 16, 3)
    assert made.test.images.shape == (60, 16, 16, 3)
    assert list(np.bincount(made.train.labels)) == [100, 100, 100]
    means = np.stack([made.train.images[made.train.labels == c].mean(axis=0) for c in range(3)])
    distances = ((made.test.images[:, None].astype(float) - means[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == made.test.labels).mean() > 0.8


def test_an_image_folder_is_decoded_exactly(tmp_path: Path) -> None:
    found = _load(_folder(tmp_path))
    assert found.classes == ("cat", "dog")
    assert list(found.train.labels) == [0, 0, 0, 1, 1, 1]
    assert found.train.images[4, 0, 0].tolist() == [200, 10, 1]
    assert found.test.images.shape == (2, 32, 32, 3)


def test_other_sizes_and_grey_images_become_square_rgb(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    Image.new("L", (50, 20), 90).save(root / "train" / "cat" / "grey.png")
    assert _load(root, image_size=24).train.images[3, 0, 0].tolist() == [90, 90, 90]


def test_pixels_of_16_bits_are_scaled_and_those_of_32_bits_refused(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    path = root / "train" / "cat" / "deep.png"
    Image.fromarray(np.full((32, 32), 90 * 257, np.uint16)).save(path)
    assert _load(root).train.images[3, 0, 0].tolist() == [90, 90, 90]
    path.unlink()
    path = path.with_suffix(".tif")
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(path)
    with pytest.raises(DataError, match=r"deep.tif: has pixels of 32 bits, whose range is not known; 8 or 16 bits are"):
        _load(root)


def test_the_second_load_maps_the_cache_read_only_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    first, second = _load(root), _load(root)
    assert first.folder == second.folder
    assert isinstance(second.train.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        second.train.images[0] = 0
    path = root / "train" / "cat" / "0.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    os.utime(path, ns=(1, 1))
    assert _load(root).train.images[0, 0, 0].tolist() == [1, 2, 3]


def test_two_folders_of_the_same_names_sizes_and_times_are_two_data_sets(tmp_path: Path) -> None:
    loaded = []
    for number in (0, 1):
        root = _folder(tmp_path / str(number))
        for path in root.rglob("*.png"):
            Image.new("RGB", (32, 32), (50 + number, 0, 0)).save(path.with_suffix(".bmp"))
            path.unlink()
            os.utime(path.with_suffix(".bmp"), ns=(1, 1))
        loaded.append(int(_load(root).train.images[0, 0, 0, 0]))
    assert loaded == [50, 51]


def test_a_link_that_moves_to_another_class_and_a_class_with_another_name_are_noticed(tmp_path: Path) -> None:
    pool = _folder(tmp_path / "pool")
    root = tmp_path / "links"
    for path in sorted(pool.rglob("*.png")):
        link = root / path.relative_to(pool)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.with_stem(f"{link.parent.name} {link.stem}").symlink_to(path)
    assert list(_load(root).train.labels) == [0, 0, 0, 1, 1, 1]
    (root / "train" / "cat" / "cat 2.png").rename(root / "train" / "dog" / "cat 2.png")  # the order stays
    assert list(_load(root).train.labels) == [0, 0, 1, 1, 1, 1]
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "fox")
    assert _load(root).classes == ("cat", "fox")


def test_real_cifar_images(cifar: Path) -> None:
    found = _load(cifar)
    assert found.train.images.shape == (1000, 32, 32, 3)
    assert found.classes[:2] == ("airplane", "automobile")
    assert 100 < found.train.images.mean() < 140


def _settings() -> list[object]:
    mask = os.umask(0o022)
    os.umask(mask)
    changed = torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters)
    return [mask, dict(os.environ), Path.cwd(), list(sys.path), *changed]


@pytest.mark.parametrize("name", ["changes_settings", "changes_settings_while_read"])
def test_what_a_function_that_loads_data_changes_in_its_process_is_put_back(name: str, in_programs: None) -> None:
    load_dataset(RunConfig(dataset="loaders:arrays"))  # its folder is on sys.path from now on
    before = _settings()
    load_dataset(RunConfig(dataset=f"untidy_data:{name}"))
    assert _settings() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("leaves", r"train: an item cannot be read: SystemExit: no licence\\x1b\[2J"),
        ("unreadable_example", "test: an item cannot be read: OSError: disk is gone"),
        ("nan_pixels", "train: example 0 has NaN, from which nothing can be learnt"),
        ("huge_label", r"train: labels are 999997 … 1000000; 0 … 999999 is possible"),
        ("ragged", r"train: arrays of shapes \(3,\), \(4,\), \(4,\) do not have one row for each example"),
        ("without_pixels", r"train: an array of shape \(4, 0, 0\) holds no values"),
    ],
)
def test_data_of_a_users_function_that_cannot_be_read_are_named(name: str, text: str, in_programs: None) -> None:
    with pytest.raises(DataError, match=f"^--dataset untidy_data:{name}: {text}"):
        load_dataset(RunConfig(dataset=f"untidy_data:{name}"))


def test_data_that_do_not_fit_into_the_memory_are_one_line() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**30, limits[1]))
    try:
        with pytest.raises(DataError, match=r"^--dataset synthetic: does not fit into the memory .*2.86 TiB"):
            load_dataset(RunConfig(dataset="synthetic", num_examples=1_000_000, image_size=1024))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "num_in_block"), [(16, 40), (512, 4)])
def test_images_are_read_in_blocks_of_at_most_16_mib_as_float32(size: int, num_in_block: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, size, size, 3), np.uint8)
    loader = Batches(Examples(images, np.arange(40)), None, 2, torch.device("cpu"), shuffle=False, channels_last=False)
    batches = [batch for batch, _ in loader]
    assert {batch.untyped_storage().nbytes() for batch in batches} == {num_in_block * size * size * 3 * 4}
    expected = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) * (2 / 255) - 1
    assert torch.equal(torch.cat(batches), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "expected"), [(32, 500), (74, 500), (256, 42), (512, 10)])
def test_a_batch_of_a_test_has_500_examples_or_32_mib(size: int, expected: int, in_programs: None) -> None:
    config = RunConfig(
        dataset="synthetic",
        num_examples=2,
        num_classes=2,
        image_size=size,
        num_clients=1,
        partitioner="iid",
        model="Net",
        test="untidy_data:test_with_the_size_of_a_batch_as_loss",
    )
    config = config.resolved({})
    dataset = load_dataset(config)
    assigned = partition.assign(dataset, config)
    runtime = ClientRuntime(ClientSpec(**spec_parts(config, dataset), partition_folder=assigned.folder, eval_share=0.5))
    assert runtime.central_test(sequence(0, Purpose.TEST)).loss == expected  # of one example
    context = Context(0, 0, {"partition-id": 0}, RecordDict(), {})
    result = runtime.client(context).evaluate(EvaluateIns(ndarrays_to_parameters(get_weights(runtime.net)), {}))
    assert (result.loss, result.num_examples) == (expected, 1)
