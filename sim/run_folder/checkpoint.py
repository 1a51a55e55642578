"""Checkpoints: ``checkpoints/<round>/`` holds everything that a run needs to continue after that round.

``arrays.safetensors`` holds the weights and all arrays of the strategy and the clients, ``state.json`` the rest. A
checkpoint is written under a temporary name, synced and renamed, so it is either complete or absent. The last ones are
kept, as many as ``keep_checkpoints`` says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.common import NDArrays, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sim.errors import RunFolderError, StateError
from sim.run_folder.encode_state import Arrays, Decoder, Encoder, pack_record, unpack_record
from sim.run_folder.folder import Run
from sim.run_folder.torch_states import Tree

Code = dict[str, tuple[str, str]]

FORMAT = 1
# What reading a damaged file can raise: RecursionError for one that is nested deep, OverflowError for infinite numbers.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    SafetensorError,
)


@dataclass
class Checkpoint:
    """The state of a run after a complete round.

    Attributes:
        weights: the arrays of the model's state_dict, in its order.
        strategy: the state of the strategy without its arrays, see ``encode``.
        arrays: the arrays of the strategy and the clients, by name.
        clients: the client_ids of the clients that have a state.
        fits: what must be unchanged when the run continues: config, data, partition and columns.
        code: the user's modules by name: the path of each file, and the sha256 of its content.
        state_rounds: client_id → the round in which the client wrote its state, see ``client_states``.
        states: client_id → state, of clients whose arrays are not yet in ``arrays``.
        variables: of the server's code, see ``encode``; empty if it keeps nothing outside of the strategy.
        tables: name of each table → its length in bytes up to this round, and the sha256 of these bytes.
    """

    round: int
    weights: NDArrays
    strategy: Tree
    arrays: Arrays
    clients: list[int]
    fits: dict[str, Any]
    code: Code = field(default_factory=dict)
    state_rounds: dict[int, int] = field(default_factory=dict)
    states: dict[int, RecordDict] = field(default_factory=dict)
    tables: dict[str, tuple[int, str]] = field(default_factory=dict)
    variables: Tree = field(default_factory=dict)
    _decoder: Decoder = field(init=False, repr=False, default_factory=lambda: Decoder({}))

    @classmethod
    def of(
        cls,
        server_round: int,
        weights: NDArrays,
        strategy: Any,
        states: dict[int, RecordDict],
        fits: dict[str, Any],
        variables: dict[str, Any] | None = None,
    ) -> Checkpoint:
        """Keep the state of a run after a round, while the next one goes on.

        The strategy is copied, because it may write into its arrays. The round loop replaces weights and states of
        clients and never writes into them, so that they are copied only when they are written.

        Args:
            states: client_id → ``Context.state`` of the client.
            variables: what the server's code keeps outside of the strategy, by name.

        Raises:
            StateError: the strategy or a variable holds a value that cannot be stored.
        """
        arrays: Arrays = {}
        encoder = Encoder(arrays)  # of both, because a variable may hold what the strategy holds
        tree = encoder.encode(strategy, "strategy")
        kept = encoder.encode(variables, "variables") if variables else {}
        return cls(server_round, weights, tree, arrays, sorted(states), fits, states=dict(states), variables=kept)

    def restore(self, strategy: Any) -> dict[int, RecordDict]:
        """Set ``strategy``, or a dict that holds one, to its state after that round.

        Returns:
            The states of the clients by client_id.

        Raises:
            StateError: the state belongs to another strategy.
        """
        self._decoder = Decoder(self.arrays)
        state = self._decoder.decode(self.strategy, "strategy", strategy)
        if isinstance(strategy, dict):
            strategy.update(state)
        return {client_id: unpack_record(self.arrays[f"client.{client_id}"]) for client_id in self.clients}

    def kept_variables(self, present: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the server's code kept outside of the strategy, by name, after ``restore``.

        Args:
            present: what variables hold, whose objects are given the content that they had.

        Raises:
            StateError: it cannot be read.
        """
        found = {}
        for name, tree in self.variables.get("dict", []):
            held = present.get(name)
            found[name] = self._decoder.decode(tree, f"variables.{name}", held, held)
        return found


class CheckpointWriter:
    """Writes checkpoints in two steps: ``begin`` writes the arrays, which takes time; ``commit`` makes them valid."""

    def __init__(self, run: Run, keep: int = 2) -> None:
        """
        Args:
            keep: number of checkpoints that are kept.
        """
        self._run, self._folder, self._keep = run, run.checkpoints_path, keep
        self._begun: Path | None = None
        self._sha256 = ""

    def begin(self, checkpoint: Checkpoint) -> None:
        """Write and sync the arrays of a checkpoint.

        Raises:
            OSError: the disk is full, or the folder was removed.
        """
        self._folder.mkdir(exist_ok=True)
        self._begun = self._folder / f".{checkpoint.round}"
        shutil.rmtree(self._begun, ignore_errors=True)
        self._begun.mkdir()
        weights = {f"weights.{number}": array for number, array in enumerate(checkpoint.weights)}
        states = {f"client.{client_id}": pack_record(state) for client_id, state in checkpoint.states.items()}
        content = save({**weights, **states, **checkpoint.arrays})
        self._sha256 = hashlib.sha256(content).hexdigest()
        _write_synced(self._begun / "arrays.safetensors", content)

    def commit(self, checkpoint: Checkpoint) -> None:
        """Complete the checkpoint that ``begin`` started, and remove all but the last ones.

        Raises:
            OSError: the disk is full, or the folder was removed.
        """
        assert self._begun is not None
        about = {
            "format": FORMAT,
            "round": checkpoint.round,
            "num_weights": len(checkpoint.weights),
            "strategy": checkpoint.strategy,
            **({"variables": checkpoint.variables} if checkpoint.variables else {}),
            "clients": checkpoint.clients,
            "state_rounds": {str(client_id): number for client_id, number in checkpoint.state_rounds.items()},
            "fits": checkpoint.fits,
            "code": checkpoint.code,
            "tables": checkpoint.tables,
            "arrays_sha256": self._sha256,
        }
        content = json.dumps({"sha256": _sum_of(about), "state": about})
        _write_synced(self._begun / "state.json", content.encode())
        target = self._folder / str(checkpoint.round)
        if target.is_symlink() or target.is_file():
            target.unlink()
        shutil.rmtree(target, ignore_errors=True)
        self._begun.rename(target)
        _sync_folder(self._folder)
        for old in self._run.checkpoints()[: -self._keep]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)


def read_last(run: Run) -> tuple[Checkpoint, list[str]]:
    """Read the last checkpoint of a run; if it is damaged, read the one before it.

    Returns:
        The checkpoint, and what is wrong with each newer one.

    Raises:
        RunFolderError: there is no checkpoint, or all are damaged.
    """
    problems: list[str] = []
    for number in reversed(run.checkpoints()):
        try:
            return _read(run.checkpoints_path / str(number)), problems
        except RunFolderError as error:
            problems.append(str(error))
    raise RunFolderError("; ".join(problems) or f"{run.path} has no checkpoint to continue from")


def _read(folder: Path) -> Checkpoint:
    try:
        for name in ("state.json", "arrays.safetensors"):
            if not (folder / name).is_file():  # a named pipe would be read for ever
                raise RunFolderError(f"{folder}: {name} is damaged: there is no such file")
        file = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        about = file["state"]
        if file["sha256"] != _sum_of(about):
            raise RunFolderError(f"{folder}: state.json is damaged")
        if about["format"] != FORMAT:
            raise RunFolderError(
                f"{folder}: has the format {about['format']}, but this version of sim reads format {FORMAT}"
            )
        content = (folder / "arrays.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != about["arrays_sha256"]:
            raise RunFolderError(f"{folder}: arrays.safetensors is damaged or belongs to another checkpoint")
        arrays = load(content)
        weights = [arrays.pop(f"weights.{number}") for number in range(_count(about["num_weights"]))]
        tables = {str(name): (_count(size), str(digest)) for name, (size, digest) in about["tables"].items()}
        clients: Sequence[int] = [_count(client_id) for client_id in about["clients"]]
        rounds = {_count(int(key)): _count(value) for key, value in dict(about.get("state_rounds", {})).items()}
        strategy, fits = dict(about["strategy"]), dict(about["fits"])
        variables = dict(about.get("variables", {}))
        code = {str(name): (str(path), str(digest)) for name, (path, digest) in about.get("code", {}).items()}
        if str(_count(about["round"])) != folder.name:
            raise RunFolderError(f"{folder}: is the checkpoint of round {about['round']}")
        return Checkpoint(
            about["round"],
            weights,
            strategy,
            arrays,
            list(clients),
            fits,
            code,
            rounds,
            tables=tables,
            variables=variables,
        )
    except _DAMAGE as error:
        raise RunFolderError(f"{folder}: damaged: {type(error).__name__}: {error}") from error


def restored(checkpoint: Checkpoint, strategy: Any, place: Path) -> dict[int, RecordDict]:
    """Call ``Checkpoint.restore`` for a checkpoint that was read from disk, whose content may be wrong.

    Args:
        place: the folder of the checkpoint, for the error message.

    Raises:
        RunFolderError: the checkpoint does not belong to this strategy, or it is damaged.
    """
    try:
        return checkpoint.restore(strategy)
    except StateError as error:
        raise RunFolderError(f"{place}: does not belong to this strategy: {error}") from error
    except _DAMAGE as error:
        raise RunFolderError(f"{place}: damaged: {type(error).__name__}: {error}") from error


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _sum_of(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
