from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sim.config.run_config import RunConfig
from sim.data.dataset import Dataset, load_dataset


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


def test_real_cifar_images(cifar: Path) -> None:
    found = _load(cifar)
    assert found.train.images.shape == (1000, 32, 32, 3)
    assert found.classes[:2] == ("airplane", "automobile")
    assert 100 < found.train.images.mean() < 140
