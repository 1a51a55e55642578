"""``run.log``: it receives the log messages of Flower, Ray and sim, and warnings, during a run."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CLIENT_BYTES = 2**20  # the most that is kept of what one client prints while it is executed once, or of one message
LOG_BYTES = 32 * 2**20  # the size at which the file takes only what sim itself reports
_LOGGERS = ("flwr", "ray", "py.warnings", "sim")


@contextmanager
def notes() -> Iterator[None]:
    """Print the log messages of sim as lines on stderr."""
    logger = logging.getLogger("sim")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [_note_handler()], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


def say(notes: Iterable[str]) -> None:
    """Log what the user should know, one line each."""
    for note in notes:
        logging.getLogger("sim").warning("note: %s", note)


class NewNotes:
    """Reads the notes of several runs, each of them once."""

    def __init__(self) -> None:
        self._read = set[str]()

    def of(self, path: Path) -> list[str]:
        """Return the notes in the log of a run that no log before it had."""
        start, found = " WARNING sim: note: ", dict[str, None]()
        with suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
            found = dict.fromkeys(line.partition(start)[2].rstrip("\n") for line in lines if start in line)
        new = [note for note in found if note not in self._read]
        self._read.update(new)
        return new


@contextmanager
def quiet(name: str, *, show: bool) -> Iterator[None]:
    """Keep the log messages of a library off the screen, unless ``show``."""
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate
    if not show:
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


@contextmanager
def captured(path: Path, *, show: bool) -> Iterator[None]:
    """Write the log messages of Flower, Ray and sim, and warnings, to ``path`` only; with ``show``, also to stderr.

    With ``show``, the file is copied to stderr, because actors write to the same file. Without it, only the messages
    of sim are printed on stderr.
    """
    handler = _BoundedFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    if not show:
        logging.getLogger("sim").addHandler(_note_handler())  # the messages of sim are for the user
    logging.captureWarnings(True)
    raises, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk is reported once, by the tables
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(path, ended), daemon=True)
    if show:
        follower.start()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.raiseExceptions = raises
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        with suppress(OSError):  # a client of the user's has closed it
            handler.close()
        ended.set()
        if show:
            follower.join()


class _BoundedFile(logging.FileHandler):
    """Leaves out what others log, for example clients in this process, once the file has its largest size."""

    _full = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "sim" and self._has_largest_size():
            if self._full:
                return
            self._full = True
            text = f"run.log has {LOG_BYTES} bytes; what others than sim log is left out from here on"
            record = logging.makeLogRecord({"name": "sim", "levelname": "WARNING", "msg": text})
        super().emit(record)

    def _has_largest_size(self) -> bool:
        with suppress(OSError):  # a client of the user's has closed the file
            return self.stream is not None and os.fstat(self.stream.fileno()).st_size >= LOG_BYTES
        return False

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        cut = len(text) - CLIENT_BYTES
        return text if cut <= 0 else f"{text[:CLIENT_BYTES]}\nsim: {cut} more characters are left out"


def _note_handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("sim: %(message)s"))
    return handler


def _follow(path: Path, ended: threading.Event) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            last = ended.wait(0.1)
            sys.stderr.write(file.read())
            sys.stderr.flush()
            if last:
                return
