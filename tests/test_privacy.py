"""The ε that ``metrics.csv`` has, and where it has none because no bound is known."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Small
from sim import Run, resume

FIXED = {"dp": "fixed", "dp_args": {"noise_multiplier": 0.5, "clipping_norm": 0.01}}
# 1,437 images; each client of a round of one has the weight 1.
ALONE = {**FIXED, "clients_per_round": 1, "partitioner": "iid"}


def _epsilons(run: Run) -> dict[int, float]:
    metrics = run.metrics()
    found = metrics[metrics.name == "epsilon"]
    return dict(zip(found["round"], found.value, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"validation_share": 0.1},
        {"sampler": "round-robin"},
        {"devices": "uniform"},
        {"strategy": "own:MessageAverages"},
        {"strategy": "ditto", "clients_per_round": 4},  # weights all clients alike, whatever their examples
    ],
    ids=str,
)
def test_epsilon_is_there_whatever_else_a_run_keeps(small: Small, in_programs: None, settings: dict[str, Any]) -> None:
    plain = _epsilons(small(name="plain", **ALONE))
    assert list(plain) == [1, 2]
    assert _epsilons(small(name="other", **{**ALONE, **settings})) == plain


@pytest.mark.parametrize(("seed", "first", "expected"), [(0, 1, [1, 2]), (1, 2, [])])
def test_a_resumed_run_knows_whether_weights_were_equal(
    small: Small, seed: int, first: int, expected: list[int]
) -> None:
    """With seed 1, the clients of round 1 have 143 and 144 examples, and those of round 2 have 144 each."""
    part = small(**{**ALONE, "clients_per_round": 2, "seed": seed, "num_rounds": 1})
    assert part.clients().num_examples.nunique() == first
    run = resume(part, num_rounds=2)
    assert run.clients().query("round == 2").num_examples.tolist() == [144, 144]
    assert list(_epsilons(run)) == expected
