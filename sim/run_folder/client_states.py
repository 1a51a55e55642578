"""What clients keep from round to round, as files that the process reads and writes that executes the client.

A state is ``client_states/<client_id>.<round>.safetensors``, written in the round in which the client trained. A
checkpoint records which one is valid by the number of its round, so that what a round has written that was never
recorded is ignored. A file that no kept checkpoint needs is removed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sim.disk import check_is_file

ClientState = dict[str, list[NDArray[Any]]]
_CHECKSUM = "crc32"


class ClientStateError(RuntimeError):
    """The state of a client cannot be read or written."""


class ClientStates(Protocol):
    """Where the states of clients are kept."""

    def read(self, client_id: int, server_round: int) -> ClientState:
        """Return what a client kept in a round.

        Raises:
            ClientStateError: it is missing or damaged.
        """

    def write(self, client_id: int, server_round: int, state: Mapping[str, Iterable[NDArray[Any]]]) -> None:
        """Keep what a client has after a round.

        Raises:
            ClientStateError: it cannot be written.
        """


class StatesInFolder:
    """The states of a run, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, client_id: int, server_round: int) -> Path:
        """Return where a state is."""
        return self.folder / f"{client_id}.{server_round}.safetensors"

    def read(self, client_id: int, server_round: int) -> ClientState:
        """Read a state and compare its checksum."""
        path = self.path(client_id, server_round)
        state: ClientState = {}
        try:
            check_is_file(path)
            with safe_open(path, framework="np") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
                checksum = (file.metadata() or {}).get(_CHECKSUM)
            for key in sorted(arrays, key=_place):
                state.setdefault(_place(key)[0], []).append(arrays[key])
            if checksum != _checksum(state):
                raise ValueError("its checksum is another")
        except (OSError, ValueError, SafetensorError) as error:
            problem = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
            raise ClientStateError(f"{path}: the state of client {client_id} {problem}") from None
        return state

    def write(self, client_id: int, server_round: int, state: Mapping[str, Iterable[NDArray[Any]]]) -> None:
        """Write a state under a temporary name, and rename it."""
        path = self.path(client_id, server_round)
        written = path.with_suffix(f".{os.getpid()}")
        whole = {name: [np.asarray(array, order="C") for array in arrays] for name, arrays in state.items()}
        arrays = {f"{name}.{number}": array for name, each in whole.items() for number, array in enumerate(each)}
        try:
            save_file(arrays, written, metadata={_CHECKSUM: _checksum(whole)})
            written.rename(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                written.unlink()
            where = "" if self.folder.is_dir() else "; every node of a cluster needs the folder of the run"
            raise ClientStateError(
                f"{path}: the state of client {client_id} cannot be written: {error}{where}"
            ) from None

    def rounds(self) -> dict[int, list[int]]:
        """Return the rounds of the states of each client that are there, in ascending order."""
        found: dict[int, list[int]] = {}
        with suppress(OSError):
            for path in self.folder.iterdir():
                words = path.name.split(".")
                if len(words) == 3 and words[2] == "safetensors" and words[0].isdecimal() and words[1].isdecimal():
                    found.setdefault(int(words[0]), []).append(int(words[1]))
        return {client_id: sorted(rounds) for client_id, rounds in found.items()}

    def remove(self, client_id: int, server_round: int) -> None:
        """Remove a state that nothing needs."""
        with suppress(OSError):
            self.path(client_id, server_round).unlink()


class StatesInMemory:
    """The states of clients that live in this process."""

    def __init__(self, states: Mapping[tuple[int, int], ClientState] | None = None) -> None:
        """
        Args:
            states: those that are there, by client_id and round.
        """
        self._states: dict[tuple[int, int], ClientState] = dict(states or {})

    def read(self, client_id: int, server_round: int) -> ClientState:
        """Return a state."""
        try:
            return self._states[client_id, server_round]
        except KeyError:
            raise ClientStateError(f"client {client_id} no longer has its state of round {server_round}") from None

    def write(self, client_id: int, server_round: int, state: Mapping[str, Iterable[NDArray[Any]]]) -> None:
        """Keep a state, in the place of the client's one before."""
        for key in [key for key in self._states if key[0] == client_id]:
            del self._states[key]
        self._states[client_id, server_round] = {name: [np.array(a) for a in arrays] for name, arrays in state.items()}


def states_in(folder: Path | None) -> ClientStates:
    """Return the states in a folder; None for those of this process."""
    return StatesInMemory() if folder is None else StatesInFolder(folder)


class ValidStates:
    """Which state of each client is valid, and which files are needed no longer.

    Attributes:
        rounds: client_id → the round in which its valid state was written.
    """

    def __init__(self, folder: StatesInFolder, rounds: Mapping[int, int], server_round: int) -> None:
        """Begin after round ``server_round``: later states are removed."""
        self.rounds = dict(rounds)
        self._folder = folder
        self._replaced: list[tuple[int, int, int]] = []  # (client_id, round of the state, round that replaced it)
        for client_id, found in folder.rounds().items():
            valid = self.rounds.get(client_id, -1)
            for number in found:
                if number > valid:
                    folder.remove(client_id, number)
                elif number < valid:
                    self._replaced.append((client_id, number, server_round))

    def renew(self, rounds: Mapping[int, int], server_round: int) -> None:
        """Take the valid states after a round."""
        for client_id, number in rounds.items():
            before = self.rounds.get(client_id)
            if before is not None and before != number:
                self._replaced.append((client_id, before, server_round))
        self.rounds = dict(rounds)

    def prune(self, oldest_kept_round: int) -> None:
        """Remove what no round from ``oldest_kept_round`` on needs."""
        needed = []
        for entry in self._replaced:
            if entry[2] <= oldest_kept_round:
                self._folder.remove(entry[0], entry[1])
            else:
                needed.append(entry)
        self._replaced = needed


def _place(key: str) -> tuple[str, int]:
    name, _, number = key.rpartition(".")
    return name, int(number)


def _checksum(state: Mapping[str, Iterable[NDArray[Any]]]) -> str:
    value = 0
    for name in sorted(state):
        for array in state[name]:
            value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"
