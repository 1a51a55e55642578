"""What a run measures: a RoundRecord per round, a ClientRecord per client and phase, a MetricRecord per number.

The fields are the columns of ``rounds.csv``, ``clients.csv`` and ``metrics.csv``, in order. A value that was not
measured is None and an empty cell, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sim.disk import check_is_file

if TYPE_CHECKING:
    import pandas as pd

Phase = Literal["fit", "evaluate", "query"]


@dataclass(frozen=True)
class RoundRecord:
    """One round; round 0 is the state before training.

    Losses (cross-entropies in nats) and accuracies (fractions 0–1) are weighted by examples; seconds are wall clock.
    ``fit_seconds`` is the sum of the four columns behind it: until the first client begins, in clients and idle (means
    over the actors), and after the last client. ``eval_accuracy_p10`` is the quantile below which 10 % of the clients
    are, ``eval_accuracy_worst10`` the mean of the worst 10 %. ``checkpoint_seconds`` are spent after the round.
    ``virtual_seconds`` are those from the start of the run to the end of this round. ``bytes_down`` and ``bytes_up``
    are sums over the clients. ``num_late`` and ``num_offline`` count clients that did not finish in virtual time.
    ``num_dropped`` counts clients that ``client_dropout`` let send nothing back.
    ``staleness_mean`` is the mean over the clients of the versions that were made while they trained.
    ``test_metrics``, which is no column, has every number of the central test but its loss; NaN is one not measured.
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
    virtual_seconds: float | None = None
    bytes_down: int | None = None
    bytes_up: int | None = None
    num_late: int | None = None
    num_offline: int | None = None
    staleness_mean: float | None = None
    num_dropped: int | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_seconds: float | None = None
    test_metrics: Mapping[str, float] = field(default_factory=dict, metadata={"is_column": False})

    def tested(self, name: str) -> float | None:
        """Return a number of the central test, ``loss`` or a metric; None if it was not measured."""
        in_rounds = {"loss": self.test_loss, "accuracy": self.test_accuracy}
        value = in_rounds[name] if name in in_rounds else self.test_metrics.get(name)
        return None if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class ClientRecord:
    """One client in one phase of one round.

    Attributes:
        seconds: the time of the client in its process; an equal share of it for clients of one computation.
        actor: the process.
        vectorized_with: number of clients that one computation trained; None for one client after another.
        status: late and offline are clients that did not finish in virtual time; void is one that did, in a round that
            was repeated because too few others did; dropped is one that ``client_dropout`` let send nothing back.
        virtual_start, virtual_end: virtual seconds since the start of the run.
        virtual_download_seconds, virtual_upload_seconds: the time between them that is not spent on training.
        staleness: versions that were made while the client trained.
        bytes_down, bytes_up: what was sent to the client and what it sent.
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
    status: Literal["ok", "failed", "late", "offline", "void", "dropped"]
    error: str | None
    virtual_start: float | None = None
    virtual_end: float | None = None
    virtual_download_seconds: float | None = None
    virtual_upload_seconds: float | None = None
    staleness: int | None = None
    bytes_down: int | None = None
    bytes_up: int | None = None


class MetricRecord(NamedTuple):
    """One number that was measured in a round.

    Attributes:
        client_id: the client; None for a mean over clients weighted by examples, and for the central test.
        num_examples: the examples behind the number; None where nobody knows.
        value: NaN where it could not be measured.
    """

    round: int
    phase: Literal["fit", "evaluate", "query", "test", "validation"]
    client_id: int | None
    num_examples: int | None
    name: str
    value: float | None


Record = RoundRecord | ClientRecord | MetricRecord
RecordType = type[RoundRecord] | type[ClientRecord] | type[MetricRecord]


def columns(record_type: RecordType) -> list[str]:
    """Return the CSV header of a record type."""
    if record_type is MetricRecord:
        return list(MetricRecord._fields)
    return [each.name for each in fields(record_type) if each.metadata.get("is_column", True)]  # type: ignore[arg-type]


RENAMED_COLUMNS = {"together": "vectorized_with"}  # names in files of earlier versions → today's
_INTEGERS = {"round", "num_clients", "num_failures", "client_id", "num_examples", "actor", "vectorized_with"}
_INTEGERS |= {"bytes_down", "bytes_up", "num_late", "num_offline", "num_dropped", "staleness"}
_TEXTS = {"phase", "status", "error", "name"}


def read_frame(path: Path, record_type: RecordType) -> pd.DataFrame:
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
        check_is_file(path)
        read_as = {name: kind for name, kind in types.items() if name != "name"}
        # A metric may be called NA or None, which pandas would take for a missing value.
        frame = pd.read_csv(path, dtype=read_as, converters={"name": "={}".format}).rename(columns=RENAMED_COLUMNS)
        if "name" in frame:
            frame["name"] = frame["name"].astype("string").str[1:]
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
