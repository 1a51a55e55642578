"""What the trackers share: the numbers of a round by name, the config, and what happens if a tracker fails."""

from __future__ import annotations

import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sim.config.fields import flattened
from sim.disk import check_is_file
from sim.errors import described, one_line
from sim.run_folder.callbacks import Callback
from sim.run_folder.folder import Run
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord, columns
from sim.run_folder.writer import write_whole

# The beginning of a column of rounds.csv → the phase in metrics.csv.
_PHASES = {"test": "test", "train": "fit", "eval": "evaluate", "validation": "validation"}


class Tracker(ABC):
    """One program that shows experiments, for one run. All that it raises is caught by ``Tracking``."""

    @abstractmethod
    def begin(self, run: Run, number: int) -> int:
        """Begin before the first round of this process, or continue what an earlier process began.

        Args:
            number: of the round; above 0 for a run that is resumed.

        Returns:
            The last round that an earlier process has logged; -1 for none.
        """

    @abstractmethod
    def log(self, number: int, numbers: dict[str, float]) -> None:
        """Take the numbers of a round, by name."""

    @abstractmethod
    def end(self, run: Run, error: BaseException | None) -> None:
        """Take pictures and model, and end.

        Args:
            error: what has stopped the run; None if it is complete.
        """


class Tracking(Callback):
    """Tells a tracker of a run. If the tracker fails, the run goes on without it, and one line says so."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        """
        Args:
            name: that of ``--track``.
        """
        self._name, self._tracker = name, tracker
        self._has_begun = self._has_failed = False

    def before_round(self, run: Run, number: int) -> None:
        """Begin, if this is the first round."""
        if not self._has_begun:
            self._has_begun = True
            self._guard(f"round {number}", self._begin, run, number)

    def _begin(self, run: Run, number: int) -> None:
        """Begin, and log the rounds before that are on disk and that the tracker does not have."""
        last = self._tracker.begin(run, number)
        if last >= number - 1:
            return
        rounds, metrics = run.rounds(), run.metrics()
        metrics = metrics[metrics["client_id"].isna() & (metrics["round"] > last)]
        missing: Iterable[Any] = rounds[rounds["round"] > last].itertuples(index=False)
        for record in missing:
            rows = metrics[metrics["round"] == record.round].itertuples(index=False)
            self._tracker.log(int(record.round), numbers_of(record, rows))

    def after_round(
        self, run: Run, record: RoundRecord, clients: Sequence[ClientRecord], metrics: Sequence[MetricRecord]
    ) -> None:
        """Pass the numbers of the round on."""
        self._guard(f"round {record.round}", self._tracker.log, record.round, numbers_of(record, metrics))

    def at_end(self, run: Run, error: BaseException | None) -> None:
        """End, if a round had begun."""
        if self._has_begun:
            self._guard("the end", self._tracker.end, run, error)

    def _guard(self, when: str, call: Any, *arguments: Any) -> None:
        if self._has_failed:
            return
        try:
            call(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever another program raises
            self._has_failed = True
            reason = one_line(described(error), 300)  # MLflow repeats the whole query of a database
            message = "note: --track %s: failed in %s, and the run goes on without it: %s"
            logging.getLogger("sim").warning(message, self._name, when, reason)


def numbers_of(record: Any, metrics: Iterable[Any]) -> dict[str, float]:
    """Return the numbers of a round that trackers show, by names such as ``test/accuracy`` and ``seconds/fit``.

    They are the columns of ``rounds.csv`` and the rows of ``metrics.csv`` that belong to no single client.

    Args:
        record: a RoundRecord, or a row of ``Run.rounds``.
        metrics: MetricRecords, or rows of ``Run.metrics``.
    """
    found: dict[str, float] = {}
    for name in columns(RoundRecord):
        value = getattr(record, name)
        if name != "round" and not _is_missing(value):
            found[_shown(name)] = float(value)
    for each in metrics:
        if _is_missing(each.client_id) and not _is_missing(each.value):
            found[f"{each.phase}/{each.name}"] = float(each.value)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _is_missing(value: Any) -> bool:
    """Return whether a value is None, or pandas' NA, which is equal to nothing."""
    return value is None or type(value).__name__ == "NAType"


def _shown(column: str) -> str:
    first, _, rest = column.partition("_")
    if column.endswith("_seconds"):
        return f"seconds/{column.removesuffix('_seconds')}"
    if first in _PHASES:
        return f"{_PHASES[first]}/{rest}"
    return f"bytes/{rest}" if first == "bytes" else f"clients/{column}"


def settings_of(run: Run) -> dict[str, Any]:
    """Return the settings of a run, those of arguments by names such as ``strategy_args.eta``."""
    return flattened(run.config())


def pictures_of(run: Run) -> list[Path]:
    """Return the pictures of a run that are there."""
    paths = (run.accuracy_path, run.metric_path, run.loss_path, run.fairness_path, run.partition_path)
    return [path for path in (*paths, run.timeline_path) if path.exists()]


def known_id(run: Run, name: str) -> str | None:
    """Return the id under which a tracker knows a run from an earlier process; None if it does not know it."""
    found = _ids(run).get(name)
    return found if isinstance(found, str) else None


def keep_id(run: Run, name: str, tracker_id: str) -> None:
    """Keep the id under which a tracker knows a run.

    Raises:
        OSError: the run folder cannot be written.
    """
    write_whole(run.trackers_path, (json.dumps({**_ids(run), name: tracker_id}, indent=2) + "\n").encode())


def _ids(run: Run) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        check_is_file(run.trackers_path)
        found = json.loads(run.trackers_path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
