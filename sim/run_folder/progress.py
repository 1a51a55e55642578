"""The progress of a run on stderr: one live line on a terminal, otherwise one plain line per round."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sim.errors import one_line
from sim.metrics import shown
from sim.run_folder.callbacks import OnRecord
from sim.run_folder.records import RoundRecord


class Console(RichConsole):
    """A console that ignores a closed pipe, because a run must not end when nobody reads its progress.

    What stands in brackets in a name or an error is shown as it is, and is no markup.
    """

    def __init__(self) -> None:
        # FORCE_COLOR, which notebooks and CI set, makes no terminal of a pipe: it would get every state of the line.
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        super().__init__(stderr=True, markup=False, emoji=False, force_terminal=None if is_terminal else False)

    def on_broken_pipe(self) -> None:
        """Ignore the closed pipe."""


def measured_first(record: RoundRecord) -> list[str]:
    """Return as texts the accuracy of the central test, or its first other metric, and its loss.

    Without a central test in this round, they are what the clients measured, which the texts say.
    """
    found = []
    name = next((name for name in record.test_metrics if record.tested(name) is not None), None)
    is_tested = name is not None or record.test_accuracy is not None or record.test_loss is not None
    whose = "" if is_tested else "clients' "
    accuracy = record.test_accuracy if is_tested else record.eval_accuracy
    if accuracy is not None:
        found.append(f"{whose}accuracy {accuracy:.4f}")
    elif name is not None:
        found.append(f"{one_line(name, 60)} {shown(record.test_metrics[name])}")
    loss = record.test_loss if is_tested else record.eval_loss
    return found if loss is None else [*found, f"{whose}loss {loss:.4f}"]


class RoundProgress:
    """Shows the round, accuracy or the first metric, loss, clients per second and remaining time on stderr."""

    def __init__(self, num_rounds: int, word: str = "round") -> None:
        """
        Args:
            num_rounds: number of the last round; 0 where nobody knows it yet.
            word: what a row is called, ``round`` or ``epoch``.
        """
        self._num_rounds = num_rounds
        self._word = word
        self._console = Console()
        self._start = time.perf_counter()
        self._in_notebook = is_notebook()
        self._shown: Any = None  # the line in a notebook
        self._started, self._first_round = False, 0
        self._clients, self._seconds = 0, 0.0
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._live.add_task(f"{word} 0", total=num_rounds or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, record: RoundRecord) -> None:
        """Show the record of a round that has ended."""
        if not self._started:  # not earlier, so that an error before the first round is the only line
            self._started = True
            self._first_round = record.round
            self._start = time.perf_counter()
            if not self._in_notebook:
                self._live.start()
        total = f"/{self._num_rounds}" if self._num_rounds else ""
        parts = [f"{self._word} {record.round}{total}", *measured_first(record)]
        if record.num_clients and record.fit_seconds:
            is_alone = record.staleness_mean is None  # otherwise clients have trained while others did
            self._clients = record.num_clients + (0 if is_alone else self._clients)
            self._seconds = record.fit_seconds + (0.0 if is_alone else self._seconds)
            parts.append(f"{self._clients / self._seconds:.1f} clients/s")
        if record.virtual_seconds is not None:
            parts.append(f"{record.virtual_seconds:.4g} virtual s")
        if record.num_failures:
            parts.append(f"{record.num_failures} failed")
        line = " · ".join(parts)
        if self._in_notebook:
            self._show_in_notebook(line + self._time_left(record))
            return
        if self._console.is_terminal:
            self._live.update(self._task, completed=record.round, description=line)
            return
        line += self._time_left(record)
        with suppress(OSError):  # stderr is a file on a full disk; the run goes on
            self._console.print(line, highlight=False, soft_wrap=True)

    def _time_left(self, record: RoundRecord) -> str:
        done = record.round - self._first_round
        if done <= 0 or not self._num_rounds:
            return ""
        return f" · {(time.perf_counter() - self._start) / done * (self._num_rounds - record.round):.0f} s left"

    def _show_in_notebook(self, line: str) -> None:
        """Show the line below the cell, in the place of the one before."""
        from IPython.display import display

        content = {"text/plain": line}
        if self._shown is None:
            self._shown = display(content, raw=True, display_id=True)
        else:
            self._shown.update(content, raw=True)


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook; a shell of IPython on a terminal is none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextmanager
def live_line(on_record: OnRecord | None, num_rounds: int, word: str = "round") -> Iterator[OnRecord | None]:
    """Add the progress line to what is called with each record, if this is a notebook.

    Args:
        num_rounds, word: see ``RoundProgress``.
    """
    if not is_notebook():
        yield on_record
        return
    warnings.filterwarnings("ignore", message="IProgress not found")  # of the bars of a library that shows none here
    with RoundProgress(num_rounds, word) as progress:

        def both(record: RoundRecord) -> None:
            progress.update(record)
            if on_record is not None:
                on_record(record)

        yield both
