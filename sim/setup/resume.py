"""A run folder → the run after its last checkpoint, or one line that says what does not fit."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import NDArrays, Parameters, parameters_to_ndarrays
from flwr.server.strategy import Strategy

from sim import user_code
from sim.client.flower_program import FlowerSpec
from sim.client.runtime import ClientSpec
from sim.config.choices import CHANGEABLE
from sim.config.fields import default_of, flag_of, read_toml, rules_of
from sim.config.run_config import RunConfig, config_type_of
from sim.data.load_dataset import Examples
from sim.devices.by_name import files_of
from sim.engine.aggregation import check_finite
from sim.errors import ConfigError, NothingLeftError, RunFolderError, one_line
from sim.metrics import Target
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder import environment
from sim.run_folder.checkpoint import Checkpoint, Code
from sim.run_folder.client_states import StatesInFolder
from sim.run_folder.encode_state import is_flowers
from sim.run_folder.folder import Run
from sim.server.prepared_run import Prepared, ResumePoint
from sim.training.device import pick_device
from sim.user_objects import is_library

_no_users: dict[str, Any] = {}  # modules of libraries by name, because to look at all again takes 10 ms
_OLD_DATA = "training images"  # what checkpoints had instead of the checksum of the data set
_PLACES = ("name", "results_dir", "data_dir")  # a folder that was moved is the same run
_SAMPLE_BYTES = 2**26  # of the images, in checkpoints of earlier versions


# What run.log says of an app whose state no checkpoint can keep.
_NOTED = re.compile("note: this run cannot be resumed, because (.+)")


def config_of(run: Run, changes: dict[str, Any]) -> RunConfig:
    """Return a run's own config with the changes.

    Raises:
        ConfigError: its file is broken, or ``changes`` has a setting that may not change.
        RunFolderError: there is no checkpoint.
        NothingLeftError: nothing is left to do.
    """
    config, values = changed_config(run, changes, CHANGEABLE, "--resume", "a resumed run")
    last = run.last_checkpoint()
    if last is None:
        reason = "; if it ended before its first one, remove the folder to use the name again"
        if any("server" in part for part in environment.parts(run.environment_path)):
            reason = ": sim server made it, whose clients keep their own state; only runs of sim run are resumed"
        elif config.checkpoint_every == 0:
            reason = ": it was made with --checkpoint-every 0"
        elif noted := _NOTED.search(run.log_path.read_text("utf-8", "replace") if run.log_path.is_file() else ""):
            reason = f", because {one_line(noted[1])}"
        elif run.is_done():
            reason = ": the run is done, and sim clean has removed its checkpoints"
        raise RunFolderError(f"{run.path} has no checkpoint to resume from{reason}")
    # The model is written last. A full disk or a kill can prevent that; resuming the run writes what is missing.
    done = run.model_path.exists()
    if done and last >= config.num_rounds:
        done_rounds = f"all {last} rounds are" if last > 1 else "its only round is"
        raise NothingLeftError(f"{run.path}: {done_rounds} done; a larger --num-rounds continues")
    target = Target.of(vars(config))
    if done and target is not None and run.reached(target):
        asked = f"--target-accuracy {target.value:g}" if config.target_accuracy else f"--target-metric {target}"
        raise NothingLeftError(
            f"{run.path}: reached {asked} in round {last}; a {'lower' if target.at_most else 'higher'} one continues"
        )
    if done and config.patience is not None and run.stopped_early(config.patience):
        raise NothingLeftError(
            f"{run.path}: stopped early in round {last}, because of --patience {values.get('patience')}; a larger one "
            "continues"
        )
    if config.num_rounds != values.get("num_rounds") and config.lr_schedule == "cosine":
        raise ConfigError(
            f"--num-rounds {config.num_rounds}: the cosine of --lr-schedule ends at round {values['num_rounds']}"
        )
    return config


def changed_config(
    run: Run, changes: dict[str, Any], changeable: Sequence[str], flag: str, what: str
) -> tuple[RunConfig, dict[str, Any]]:
    """Return a run's own config with the changes, and its settings without them.

    Args:
        changeable: the settings that may change.
        flag, what: names the run, and has its config, for messages.

    Raises:
        ConfigError: its file is broken, or ``changes`` has a setting that may not change.
    """
    values = read_toml(RunConfig, run.config_path, flag) or run.config()  # which says that it is damaged
    config_type = config_type_of(values)
    for name, value in changes.items():
        if name not in {each.name for each in fields(config_type)}:
            raise ConfigError(f"{name}: there is no such setting; {what} may change {', '.join(changeable)}")
        if name not in changeable and values.get(name) != value:
            allowed = ", ".join(flag_of(setting) for setting in changeable)
            raise ConfigError(f"{flag_of(name)}: {what} keeps its config; it may change {allowed}")
    return config_type(**config_type.layered([values, changes])), values


@dataclass(frozen=True)
class FittingCheckpoint:
    """The last checkpoint of a run, which fits what is prepared, and what the user should know about it, in one line.

    Attributes:
        damage: what is wrong with newer checkpoints; empty for nothing.
        changed_code: files of the user's that have changed since; empty for none.
        elsewhere: which versions and hardware have changed since; empty for none.
        unknown: why that is not known; empty if it is.
    """

    checkpoint: Checkpoint
    damage: str
    changed_code: str
    elsewhere: str
    unknown: str


def resumed(run: Run, prepared: Prepared, *, allow_changed_code: bool = False) -> Prepared:
    """Read a run's last checkpoint and check that it fits; return what is prepared with that checkpoint to begin from.

    Args:
        allow_changed_code: continue although the user's modules have changed.

    Raises:
        RunFolderError: it is damaged, or something differs.
    """
    found = fitting_checkpoint(run, prepared, allow_changed_code=allow_changed_code)
    checkpoint = found.checkpoint
    number, notes = checkpoint.round, []
    if run.metrics_path.name not in checkpoint.tables:
        notes.append(f"metrics.csv begins after round {number}, because the rounds before were made by another version")
    if found.changed_code:
        notes.append(f"the rounds after round {number} are made with other code: {found.changed_code}")
    if found.damage:
        notes.append(f"the run continues after round {number}, because a newer checkpoint is damaged: {found.damage}")
    if found.elsewhere:
        notes.append(
            f"the rounds after round {number} are made elsewhere, so that their bits may differ from those of an "
            f"uninterrupted run: {found.elsewhere}"
        )
    if found.unknown:
        notes.append(
            f"whether the rounds after round {number} are made with the same versions and hardware is not known, "
            f"because {found.unknown}"
        )
    kept = replace(checkpoint, code=_code_now(checkpoint.code))
    return replace(prepared, resume_point=ResumePoint(run, kept, tuple(notes)))


def fitting_checkpoint(run: Run, prepared: Prepared, *, allow_changed_code: bool = False) -> FittingCheckpoint:
    """Read a run's last checkpoint and check that it fits what is prepared.

    Args:
        allow_changed_code: take it although the user's modules have changed.

    Raises:
        RunFolderError: it is damaged, or something differs.
    """
    checkpoint, problems = checkpoints.read_last(run)
    place = run.checkpoints_path / str(checkpoint.round)
    try:
        then = _in_todays_words(checkpoint.fits)
    except TypeError as error:
        raise RunFolderError(f"{place}: damaged: what must fit is no table of settings: {error}") from None
    differences = _differences(then, what_must_fit(prepared, old_data=_OLD_DATA in then))
    if differences:
        raise RunFolderError(f"{place}: does not fit: {'; '.join(differences)}")
    _check_weights(checkpoint, prepared, place)
    _check_states(checkpoint, run)
    files = changed_code(checkpoint.code)
    if files and not allow_changed_code:
        raise RunFolderError(
            f"{place}: does not fit: the code was changed after it was written: {files}; undo that, or continue with "
            "the changed code by --allow-changed-code"
        )
    others = environment.changes(environment.of_round(run.environment_path, checkpoint.round), environment.describe())
    unknown = environment.damage(run.environment_path)
    return FittingCheckpoint(checkpoint, one_line("; ".join(problems)), files, one_line("; ".join(others)), unknown)


def _check_weights(checkpoint: Checkpoint, prepared: Prepared, place: Path) -> None:
    """Check that weights and strategy of a checkpoint are those of the run.

    Raises:
        RunFolderError: they are others, or damaged.
    """
    built, like = prepared.strategy, prepared.initial_weights
    if prepared.layout.is_known:
        if [array.shape for array in checkpoint.weights] != [array.shape for array in like]:
            raise RunFolderError(f"{place}: does not fit: its weights are of another model")
        if [array.dtype for array in checkpoint.weights] != [array.dtype for array in like]:
            raise RunFolderError(f"{place}: does not fit: its weights have other dtypes")
    else:
        like = checkpoint.weights  # clients may send other arrays than the first ones
    if built is not None:
        checkpoints.restored(checkpoint, built.kept, place)
    try:
        check_finite(checkpoint.weights, prepared.initial_weights, prepared.layout.names)
        if built is not None:
            _check_arrays(built.strategy, built.view.of(like))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise RunFolderError(f"{place}: damaged: {error}") from None


def _check_states(checkpoint: Checkpoint, run: Run) -> None:
    """Check that what clients kept is there.

    Raises:
        RunFolderError: it is not.
    """
    folder = StatesInFolder(run.client_states_path)
    missing = [pair for pair in checkpoint.state_rounds.items() if not folder.path(*pair).is_file()]
    if missing:
        others = f", and those of {len(missing) - 1} others" if len(missing) > 1 else ""
        raise RunFolderError(f"{folder.path(*missing[0])}: the state of client {missing[0][0]} is missing{others}")


def _check_arrays(strategy: Any, like: NDArrays) -> None:
    """Check the lists of arrays in a strategy of Flower's: they are weights or moments of the arrays that it sees.

    Raises:
        ValueError: their number, shapes or values are wrong.
    """
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            _check_arrays(value, like)
        elif not is_flowers(strategy):
            continue
        arrays = parameters_to_ndarrays(value) if isinstance(value, Parameters) else value
        if not isinstance(arrays, list) or not arrays:
            continue
        if [np.shape(array) for array in arrays] != [array.shape for array in like]:
            raise ValueError(f"{name} of the strategy has the shapes of another model")
        check_finite(arrays, like, [f"{name} of the strategy, array {number}," for number in range(len(arrays))])


def code_of(spec: ClientSpec | FlowerSpec, config: RunConfig) -> Code:
    """Return the user's own modules that this process has imported: name → path and sha256 of the file.

    They are all those in the folder where the run was started and beside the modules that the config names, libraries
    aside. The program that is executed itself is none of them: ``simulate`` and ``resume`` stand in different ones.
    """
    values = [getattr(config, f.name) for f in fields(config) if rules_of(f).importable]
    values += (config.metric or "").split(",")
    named = [value.partition(":")[0] for value in values if value is not None and ":" in value]
    folder = os.path.join(spec.import_folder, "")  # noqa: PTH118 - texts, because there are thousands of modules
    roots = [folder]
    for name in named:
        path = _path_of(name)
        if path is not None:
            depth = name.count(".") + path.endswith("__init__.py")
            roots.append(os.path.join(Path(path).parents[depth], ""))  # noqa: PTH118
    found: Code = {}
    places = tuple(roots)
    for name, module in list(sys.modules.items()):
        if _no_users.get(name) is module:
            continue
        path = _file_of(module)
        if path is None or is_library(path):
            _no_users[name] = module
        elif path.startswith(places) and name not in ("__main__", "__mp_main__"):
            with suppress(OSError):
                found[name] = path.removeprefix(folder), _sha256(path)
    return found


def changed_code(code: Code, *, with_missing: bool = True) -> str:
    """Return which of the user's files are not what they were, in one line; empty for none.

    Args:
        with_missing: also those that are no longer there, or not seen from the current folder.
    """
    now = _code_now(code)
    changed = [path for name, (path, digest) in code.items() if now.get(name) != (path, digest)]
    seen = {path for path, _ in now.values()}
    return one_line(", ".join(sorted(path for path in changed if with_missing or path in seen)))


def _code_now(code: Code) -> Code:
    """Return what the files of these modules are now, without those that are gone."""
    found: Code = {}
    for name, (path, _) in code.items():
        with suppress(OSError, ValueError):
            file = _path_of(name) or path
            if Path(file).is_file():  # a named pipe would be read for ever
                found[name] = path, _sha256(file)
    return found


def _path_of(name: str) -> str | None:
    return _file_of(sys.modules.get(name))


def _file_of(module: Any) -> str | None:
    file = getattr(module, "__dict__", {}).get("__file__")
    return file if isinstance(file, str) else None


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_todays_words(fits: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version wrote, without the columns of its tables, which go on as they are."""
    defaults = {f.name: default_of(f) for f in fields(RunConfig) if f.name not in {*CHANGEABLE, *_PLACES}}
    config = {**defaults, **fits.get("config", {})}
    others = {name: value for name, value in fits.items() if not name.startswith("columns of ")}
    if isinstance(described := others.get("data set"), str):
        others["data set"] = described.replace(" test images of ", " test examples of ")
    return {**others, "config": config}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted({*then, *now}):
        was, is_now = then.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += _differences(was, is_now)
        elif was != is_now:
            found.append(f"{name} was {was}, is {is_now}")
    return found


def what_must_fit(prepared: Prepared, *, old_data: bool = False) -> dict[str, Any]:
    """Return what must be the same for a run to continue to the bit.

    Args:
        old_data: as a checkpoint of an earlier version has it, which compared a sample of large data sets.
    """
    skipped = {*CHANGEABLE, *_PLACES}
    dataset, assigned = prepared.dataset, prepared.partition
    if dataset is None:
        data = {"data set": "of the clients"}
    elif old_data and isinstance(dataset.train, Examples) and isinstance(dataset.test, Examples):
        data = {_OLD_DATA: _fingerprint(dataset.train), "test images": _fingerprint(dataset.test)}
    else:
        counts = f"{len(dataset.train)} training and {dataset.num_test_examples} test examples"
        data = {"data set": f"{counts} of {dataset.fingerprint[:16]}"}
    # A table of devices says how long a client works, as its partition says on what.
    manager = prepared.objects.client_manager
    files = {f"content of {path}": _sha256(path)[:16] for path in files_of(prepared.config)} if prepared.devices else {}
    return {
        **({"device files": files} if files else {}),
        **({} if manager is None or is_flowers(manager) else {"client_manager": user_code.name_of(manager)}),
        "config": {name: value for name, value in asdict(prepared.config).items() if name not in skipped},
        **data,
        "partition": hashlib.sha256(assigned.indices.tobytes() + assigned.offsets.tobytes()).hexdigest()[:16],
        "device": "cpu" if isinstance(prepared.spec, FlowerSpec) else pick_device(prepared.spec.device).type,
    }


def _fingerprint(examples: Examples) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(examples.labels).tobytes())
    images = examples.images
    step = max(1, images.nbytes // _SAMPLE_BYTES)
    digest.update(np.ascontiguousarray(images[::step]).tobytes())
    return f"{len(examples)} of {digest.hexdigest()[:16]}"
