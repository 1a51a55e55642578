"""What a run measures: one RoundRecord per round, one ClientRecord per client and phase.

The fields are the columns of ``rounds.csv`` and ``clients.csv``, in order. A value that was not
measured is None and an empty cell, never 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

PERCENTS = (10, 25, 50, 75, 90)  # quantiles over clients, with columns of their own
Phase = Literal["fit", "evaluate"]


@dataclass(frozen=True)
class RoundRecord:
    """One round; round 0 is the state before training.

    Losses are mean nats per example, accuracies fractions 0–1, both weighted by examples; seconds are wall clock.
    ``fit_seconds`` is the sum of the four columns behind it: until the first client begins, in clients and idle (means
    over the actors), and after the last client. ``eval_accuracy_p10`` is the quantile below which 10 % of the clients
    are, ``eval_accuracy_worst10`` the mean of the worst 10 %. ``checkpoint_seconds`` are spent after the round.
    """

    round: int
    num_clients: int | None = None
    num_failures: int | None = None
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    eval_accuracy_p10: float | None = None
    eval_accuracy_p25: float | None = None
    eval_accuracy_p50: float | None = None
    eval_accuracy_p75: float | None = None
    eval_accuracy_p90: float | None = None
    eval_accuracy_worst10: float | None = None
    fit_seconds: float | None = None
    broadcast_seconds: float | None = None
    train_seconds: float | None = None
    wait_seconds: float | None = None
    return_seconds: float | None = None
    aggregate_seconds: float | None = None
    test_seconds: float | None = None
    eval_seconds: float | None = None
    round_seconds: float | None = None
    checkpoint_seconds: float | None = None


@dataclass(frozen=True)
class ClientRecord:
    """One client in one phase of one round.

    Attributes:
        seconds: the time of the client in its process; an equal share of it for clients of one computation.
        actor: the process.
        vectorized_with: number of clients that one computation trained; None for one client after another.
    """

    round: int
    phase: Phase
    client_id: int
    num_examples: int | None
    loss: float | None
    accuracy: float | None
    seconds: float | None
    actor: int | None
    vectorized_with: int | None
    status: Literal["ok", "failed"]
    error: str | None


def columns(record_type: type[RoundRecord] | type[ClientRecord]) -> list[str]:
    """Return the CSV header of a record type."""
    return [field.name for field in fields(record_type)]


RENAMED_COLUMNS = {"together": "vectorized_with"}  # names in files of earlier versions → today's
_INTEGERS = {"round", "num_clients", "num_failures", "client_id", "num_examples", "actor", "vectorized_with"}
_TEXTS = {"phase", "status", "error"}


def read_frame(path: Path, record_type: type[RoundRecord] | type[ClientRecord]) -> pd.DataFrame:
    """Read a CSV of records, of this or another version; integers with gaps become pandas' nullable Int64.

    A column of ``record_type`` that the file does not have is missing in every row. A column that only the file has is
    kept, behind the others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a row does not say its round.
    """
    import pandas as pd

    names = columns(record_type)
    types = {name: "Int64" if name in _INTEGERS else "string" if name in _TEXTS else "float64" for name in names}
    types |= {old: types[new] for old, new in RENAMED_COLUMNS.items() if new in types}
    try:
        frame = pd.read_csv(path, dtype=types).rename(columns=RENAMED_COLUMNS)
    except FileNotFoundError:
        raise
    except Exception as error:  # pandas raises half a dozen types for what does not fit
        raise ValueError(f"cannot be read: {error}") from error
    if "round" not in frame or frame["round"].isna().any():
        raise ValueError("has no column round" if "round" not in frame else "has a row without round")
    for name in names:
        if name not in frame:
            frame[name] = pd.Series(pd.NA if types[name] != "float64" else math.nan, frame.index, types[name])
    return frame[[*names, *(name for name in frame.columns if name not in names)]]
