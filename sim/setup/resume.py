"""A run folder → the run after its last checkpoint, or one line that says what does not fit."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from sim.config.fields import flag_of, read_toml
from sim.config.run_config import CHANGEABLE, RunConfig
from sim.data.dataset import Examples
from sim.errors import ConfigError, RunFolderError, one_line
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder.folder import Run
from sim.run_folder.records import RENAMED_COLUMNS, ClientRecord, RoundRecord, columns
from sim.server.prepared import Prepared, ResumePoint
from sim.training.local import pick_device

_PLACES = ("name", "results_dir", "data_dir")  # a folder that was moved is the same run
_SAMPLE_BYTES = 2**26  # of the images; labels are compared whole


def config_of(run: Run, changes: dict[str, Any]) -> RunConfig:
    """Return a run's own config with the changes.

    Raises:
        ConfigError: its file is broken, or ``changes`` has a setting that may not change.
        RunFolderError: there is no checkpoint, or nothing is left to do.
    """
    values = read_toml(RunConfig, run.config_path, "--resume")
    for name, value in changes.items():
        if name not in CHANGEABLE and values.get(name) != value:
            allowed = ", ".join(flag_of(setting) for setting in CHANGEABLE)
            raise ConfigError(f"{flag_of(name)}: a resumed run keeps its config; it may change {allowed}")
    config = RunConfig(**{**values, **changes})
    last = run.last_checkpoint()
    if last is None:
        raise RunFolderError(
            f"{run.path} has no checkpoint to resume from; if it ended before its first one, remove the folder to use "
            "the name again"
        )
    # A full disk can keep the last files of a run from being written; resuming it writes them.
    done = run.model_path.exists()
    if done and last >= config.num_rounds:
        raise RunFolderError(f"{run.path}: all {last} rounds are done; a larger --num-rounds continues")
    if done and run.reached(config.target_accuracy):
        raise RunFolderError(
            f"{run.path}: reached --target-accuracy {config.target_accuracy:g} in round {last}; a higher one continues"
        )
    if config.num_rounds != values.get("num_rounds") and config.lr_schedule == "cosine":
        raise ConfigError(
            f"--num-rounds {config.num_rounds}: the cosine of --lr-schedule ends at round {values['num_rounds']}"
        )
    return config


def resumed(run: Run, prepared: Prepared) -> Prepared:
    """Read a run's last checkpoint and check that it fits; return what is prepared with that checkpoint to begin from.

    Raises:
        RunFolderError: it is damaged, or something differs.
    """
    checkpoint, problems = checkpoints.read_last(run)
    place = run.checkpoints_path / str(checkpoint.round)
    differences = _differences(_in_todays_words(checkpoint.fits), what_must_fit(prepared))
    if differences:
        raise RunFolderError(f"{place}: does not fit: {'; '.join(differences)}")
    shapes = [array.shape for array in prepared.initial_weights]
    if [array.shape for array in checkpoint.weights] != shapes:
        raise RunFolderError(f"{place}: does not fit: its weights are of another model")
    if [array.dtype for array in checkpoint.weights] != [array.dtype for array in prepared.initial_weights]:
        raise RunFolderError(f"{place}: does not fit: its weights have other dtypes")
    checkpoints.restored(checkpoint, prepared.strategy.strategy, place)
    if problems:
        logging.getLogger("sim").warning(
            "note: the run continues after round %s, because a newer checkpoint is damaged: %s",
            checkpoint.round,
            one_line("; ".join(problems)),
        )
    return replace(prepared, resume_point=ResumePoint(run, checkpoint))


def _in_todays_words(fits: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version wrote under today's names of columns."""
    name = "columns of clients.csv"
    return {**fits, name: [RENAMED_COLUMNS.get(column, column) for column in fits.get(name, [])]}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted({*then, *now}):
        was, is_now = then.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += _differences(was, is_now)
        elif was != is_now:
            found.append(f"{name} was {was}, is {is_now}")
    return found


def what_must_fit(prepared: Prepared) -> dict[str, Any]:
    """Return what must be the same for a run to continue to the bit."""
    skipped = {*CHANGEABLE, *_PLACES}
    dataset, assigned = prepared.dataset, prepared.partition
    return {
        "config": {name: value for name, value in asdict(prepared.config).items() if name not in skipped},
        "training images": _fingerprint(dataset.train),
        "test images": _fingerprint(dataset.test),
        "partition": hashlib.sha256(assigned.indices.tobytes() + assigned.offsets.tobytes()).hexdigest()[:16],
        "device": pick_device(prepared.spec.device).type,
        "columns of rounds.csv": columns(RoundRecord),
        "columns of clients.csv": columns(ClientRecord),
    }


def _fingerprint(examples: Examples) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(examples.labels).tobytes())
    images = examples.images
    step = max(1, images.nbytes // _SAMPLE_BYTES)
    digest.update(np.ascontiguousarray(images[::step]).tobytes())
    return f"{len(examples)} of {digest.hexdigest()[:16]}"
