"""What clients leave in a function with a cache is forgotten, and data stay."""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from sim.seeds import Purpose, sequence
from sim.user_variables import UserVariables


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An empty module of the user's."""
    made = types.ModuleType("of_the_user")
    made.__file__ = str(tmp_path / "of_the_user.py")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_what_the_server_keeps_in_a_function_with_a_cache_stays(module: Any) -> None:
    made: Any = functools.cache(torch.nn.Linear)
    module.made = made
    variables = UserVariables()
    variables.renew(module)
    of_server = made(2, 2)
    with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
        made(1, 1)
    assert made(2, 2) is of_server
    made.cache_clear()
    with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
        made(1, 1)
    assert made.cache_info().currsize == 0


@pytest.mark.parametrize("size", [None, 8])
def test_random_numbers_that_a_function_keeps_are_forgotten_and_data_stay(module: Any, size: int | None) -> None:
    module.noise = functools.lru_cache(size)(torch.randn)
    module.pair = functools.lru_cache(size)(lambda: (np.random.default_rng().random(2), 1))
    module.load = functools.lru_cache(size)(lambda path, kind: TensorDataset(torch.zeros(2, 1)))
    variables = UserVariables()
    variables.renew(module)
    for _ in range(2):
        with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
            module.noise(3)
            module.pair()
            module.load(Path("data"), kind=np.int64(1))
    assert [each.cache_info()[:2] for each in (module.noise, module.pair, module.load)] == [(0, 0), (0, 0), (1, 1)]
    (note,) = variables.notes
    assert note.startswith("clients change of_the_user.noise, of_the_user.pair, which each of them finds")
