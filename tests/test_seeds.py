from __future__ import annotations

import multiprocessing
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sim.seeds import Purpose, generator, seeded


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_stream_depends_on_each_of_its_four_numbers() -> None:
    first = generator(0, Purpose.FIT, 1, 2).integers(2**62)
    assert first == generator(0, Purpose.FIT, 1, 2).integers(2**62)
    others = [(1, Purpose.FIT, 1, 2), (0, Purpose.TEST, 1, 2), (0, Purpose.FIT, 2, 2), (0, Purpose.FIT, 1, 3)]
    drawn = {first, *(generator(*key).integers(2**62) for key in others)}
    assert len(drawn) == 5


def _unseeded() -> list[object]:
    numpy_legacy = np.random.RandomState()
    found: list[object] = [np.random.default_rng().random(), random.Random().random(), numpy_legacy.rand()]
    random.seed(), np.random.seed()  # noqa: NPY002
    found += [*_draw(), torch.seed()]
    return [*found, *_draw()]


def test_generators_without_a_seed_follow_from_the_stream_inside_and_from_nothing_outside() -> None:
    with seeded(5, Purpose.FIT, 3, 4):
        inside = _unseeded()
    with seeded(5, Purpose.FIT, 3, 4):
        assert _unseeded() == inside
    with seeded(5, Purpose.FIT, 3, 5):
        assert not set(_unseeded()) & set(inside)
    assert len({np.random.default_rng().integers(2**62) for _ in range(3)}) == 3
    outside = _unseeded()
    assert not set(outside) & set(inside)
    assert not set(_unseeded()) & set(outside)


class _Unseeded(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng().random()


def _drawn_by_workers() -> list[float]:
    with seeded(5, Purpose.FIT, 3, 4):
        return torch.cat([*DataLoader(_Unseeded(), num_workers=2)]).tolist()


@pytest.mark.slow
def test_workers_of_a_loader_draw_different_numbers_that_follow_from_the_stream() -> None:
    found = _drawn_by_workers()
    assert len(set(found)) == 4
    assert _drawn_by_workers() == found


def test_a_fork_without_a_loader_asks_the_operating_system() -> None:
    with seeded(5, Purpose.FIT, 3, 4):
        here = np.random.default_rng().integers(2**62)
    with seeded(5, Purpose.FIT, 3, 4), multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_drawn) != here


def _drawn() -> int:
    return int(np.random.default_rng().integers(2**62))


def test_the_global_generators_are_seeded_inside_and_unchanged_outside() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = _draw(), _draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before = _draw()
    with seeded(5, Purpose.FIT, 3, 4):
        inside = _draw()
    after = _draw()
    assert (before, after) == expected
    with seeded(5, Purpose.FIT, 3, 4):
        assert _draw() == inside
    with seeded(5, Purpose.FIT, 3, 5):
        assert not set(_draw()) & set(inside)
