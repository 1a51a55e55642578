"""Every error that a user can cause, as one tree.

SimError                 base: its text is one line, made for the user
├── UsageError           exit code 2: nothing was started, nothing was written
│   ├── ConfigError      a flag, a config file, a value out of its range
│   ├── DataError        a data set that is missing, broken or does not fit
│   ├── PartitionError   a partition that these examples cannot give
│   ├── PluginError      the user's own model, train, test, client or strategy
│   ├── RunFolderError   a run folder that exists, is foreign or cannot be written
│   ├── StateError       a strategy that holds what a checkpoint cannot keep
│   └── RefusedError     the server does not take this client
└── RunError             exit code 1: the run stopped, what was done is on disk
    ├── ClientError      a client raised
    ├── WriteError       the run folder can no longer be written
    └── EngineError      a process or a connection of the engine died or could not start
"""

from __future__ import annotations


class SimError(Exception):
    """Base of all errors with a message for the user; ``exit_code`` is what the command ends with."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class UsageError(SimError):
    """The input cannot work; raised before anything is written."""

    exit_code = 2


class ConfigError(UsageError):
    """A flag, a config file or a value of the configuration is wrong."""


class DataError(UsageError):
    """The data set is missing, unreadable or inconsistent."""


class PartitionError(UsageError):
    """The examples cannot be dealt to the clients as asked."""


class PluginError(UsageError):
    """An object given as ``package.module:name`` is missing or does the wrong thing."""


class RunFolderError(UsageError):
    """A run folder exists already, is missing, is not one, or cannot be written."""


class StateError(UsageError):
    """A value that a checkpoint cannot keep, or that none has written; the message names it."""


class RefusedError(UsageError):
    """The server says why it does not take this client."""


class RunError(SimError):
    """The run stopped; the rounds that were done are in the run folder."""


class ClientError(RunError):
    """A client raised while the run was configured to stop on that."""


class WriteError(RunError):
    """The disk is full, or the run folder was removed or made read-only; what was whole stays whole."""


class EngineError(RunError):
    """A process that executes clients died or could not be started."""
