"""All errors that a user can cause, as one tree.

SimError                 base class; the message is one line for the user
├── UsageError           exit code 2: nothing was started and nothing was written
│   ├── ConfigError      a flag, a config file or a value is not valid
│   ├── DataError        the data set is missing, damaged or inconsistent
│   ├── PartitionError   the examples cannot be partitioned as configured
│   ├── PluginError      the user's own model, train, test, client or strategy does not work
│   ├── RunFolderError   a run folder exists already, is missing, is not a run, or cannot be written
│   ├── StateError       a strategy holds a value that a checkpoint cannot store
│   └── RefusedError     the server refuses this client
└── RunError             exit code 1: the run stopped; the rounds before that are on disk
    ├── ClientError      a client raised
    ├── WriteError       the run folder can no longer be written
    └── EngineError      a process or a connection of the engine died or could not be started
        └── BrokenProcessError   user code has broken the process of the run itself
"""

from __future__ import annotations

from collections.abc import Sequence

_MOST_CHARACTERS = 2000  # of one line; a path or a list of choices is far shorter


def one_line(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return text that others wrote as one line that is safe on a terminal and in a CSV file.

    White space becomes single spaces, what cannot be printed (control characters, escape sequences, bytes that are not
    valid UTF-8) is shown as an escape, and what exceeds ``most`` characters is cut out of the middle, which is said.
    """
    head = text
    left_out = len(text) - most
    if left_out > 0:
        head = f"{text[: most // 2]} … ({left_out} characters left out) … {text[-most // 2 :]}"
    words = " ".join(head.split())
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def some(names: Sequence[str], most: int = 3) -> str:
    """Return a few names of many."""
    return ", ".join(names[:most]) + ("" if len(names) <= most else f" and {len(names) - most} more")


def many_lines(text: str, most: int = 200) -> str:
    """Return text that others wrote, such as a traceback, with its lines; each is safe and bounded as by ``one_line``.

    Indentation stays, and what exceeds ``most`` lines is left out of the middle, which is said.
    """
    lines = text.split("\n")
    if len(lines) > most:
        left_out = f"… ({len(lines) - most} lines left out) …"
        lines = [*lines[: most // 2], left_out, *lines[-(most - most // 2) :]]
    return "\n".join(line[: len(line) - len(line.lstrip(" "))][:80] + one_line(line) for line in lines)


def described(error: BaseException) -> str:
    """Return ``Type: text`` of an error that user code raised, or ``Type`` of one without text, in one line."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its own __str__ raises
        text = "(its text cannot be shown)"
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class SimError(Exception):
    """The base class of all errors with a message for the user; ``exit_code`` is the exit code of the command."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(SimError):
    """The user's input does not work; it is raised before anything is written."""

    exit_code = 2


class ConfigError(UsageError):
    """A flag, a config file or a value of the config is not valid."""


class DataError(UsageError):
    """The data set is missing, damaged or inconsistent."""


class PartitionError(UsageError):
    """The examples cannot be assigned to the clients as configured."""


class PluginError(UsageError):
    """The user's own object, given as ``package.module:name``, is missing or does not work."""


class RunFolderError(UsageError):
    """A run folder exists already, is missing, is not a run, or cannot be written."""


class NothingLeftError(RunFolderError):
    """A run that is to go on has done all that its config asks for."""


class StateError(UsageError):
    """A value cannot be stored in a checkpoint or restored from one; the message names the value."""


class RefusedError(UsageError):
    """The server refuses this client; the message gives the reason."""


class RunError(SimError):
    """The run stopped; the completed rounds are in the run folder."""


class ClientError(RunError):
    """A client raised, and the run is configured to stop in that case."""


class WriteError(RunError):
    """The disk is full, or the run folder was removed or made read-only; complete files are unchanged."""


class EngineError(RunError):
    """A process or a connection of the engine died or could not be started."""


class BrokenProcessError(EngineError):
    """User code has closed the open files of the process in which the run itself is; nothing more can be written."""
