"""What a program is told while a run is in progress: before each round, after it, and at the end."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from sim.errors import ConfigError, RunError, described, many_lines
from sim.run_folder.folder import Run
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord

OnRecord = Callable[[RoundRecord], None]


class Callback(Protocol):
    """What ``simulate(config, callbacks=[…])`` calls in the process of the run.

    A subclass overrides the methods that it needs; the others do nothing. A method that raises stops the run with a
    RunError of one line, which names the method and the class: all rounds that were done are on disk, and the run can
    be resumed. What a method changes in the settings of the process is put back, and random numbers that it draws
    change nothing, because a run draws its own from its seed.
    """

    def before_round(self, run: Run, number: int) -> None:
        """Do something before a round.

        Args:
            run: the folder of the run, which holds the rounds before.
            number: of the round; 0 is the test of the initial weights. A resumed run begins with a later one.
        """

    def after_round(
        self, run: Run, record: RoundRecord, clients: Sequence[ClientRecord], metrics: Sequence[MetricRecord]
    ) -> None:
        """Do something after a round, which is on disk.

        Args:
            run: the folder of the run, which holds this round.
            record: its row of ``rounds.csv``.
            clients: its rows of ``clients.csv``; empty for ``train_centralized``, which has no clients.
            metrics: its rows of ``metrics.csv``.
        """

    def at_end(self, run: Run, error: BaseException | None) -> None:
        """Do something at the end, when pictures and model are written; it is called once for each callback.

        Args:
            run: the folder of the run, which other processes cannot write to before this has returned.
            error: what has stopped the run, for example a RunError, or KeyboardInterrupt for Ctrl-C; None if the run is
                complete.
        """


_METHODS = ("before_round", "after_round", "at_end")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that each callback has the methods of ``Callback``.

    Raises:
        ConfigError: one has not.
    """
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks: must be a list, not {type(callbacks).__qualname__}")
    for callback in callbacks:
        if isinstance(callback, type):
            name = callback.__qualname__
            raise ConfigError(f"callbacks: {name} is a class; give an object of it, for example {name}()")
        missing = [method for method in _METHODS if not callable(getattr(callback, method, None))]
        if missing:
            name = type(callback).__qualname__
            raise ConfigError(f"callbacks: {name} has no {', '.join(missing)}; derive the class from sim.Callback")


class Callbacks:
    """The callbacks of one run, which are called in their order."""

    def __init__(self, callbacks: Sequence[Callback], run: Run) -> None:
        self._callbacks, self._run = callbacks, run

    def before_round(self, number: int) -> None:
        """Say that a round begins.

        Raises:
            RunError: a callback raised.
        """
        for callback in self._callbacks:
            _call(callback, "before_round", f"round {number}", self._run, number)

    def after_round(
        self, record: RoundRecord, clients: Sequence[ClientRecord], metrics: Sequence[MetricRecord]
    ) -> None:
        """Say that a round is over and on disk.

        Raises:
            RunError: a callback raised.
        """
        for callback in self._callbacks:
            _call(callback, "after_round", f"round {record.round}", self._run, record, clients, metrics)

    def at_end(self, error: BaseException | None) -> None:
        """Say to each callback that the run has ended, also where an earlier one raises.

        Args:
            error: what has stopped the run; it remains the error to report.

        Raises:
            RunError: a callback raised, and ``error`` is None.
        """
        first: RunError | None = None
        for callback in self._callbacks:
            try:
                _call(callback, "at_end", "after the last round", self._run, error)
            except RunError as raised:
                if error is not None or first is not None:
                    logging.getLogger("sim").warning("note: %s", raised)
                else:
                    first = raised
        if first is not None:
            raise first


def _call(callback: Callback, method: str, when: str, *arguments: object) -> None:
    from sim.process_settings import restored_settings  # PyTorch, which is imported once a run has begun

    try:
        with restored_settings():
            getattr(callback, method)(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        name = f"{method} of the callback {type(callback).__qualname__}"
        logging.getLogger("flwr").error("%s: %s:\n%s", when, name, many_lines(traceback.format_exc()))
        raise RunError(f"{when}: {name} raised {described(error)}") from error
