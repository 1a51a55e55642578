"""A program of the user's → the settings that name its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sim.errors import ConfigError, some
from sim.parameter_roles import ROLES, ROLES_OF_TEST, ROLES_OF_TRAINING, SETTINGS_OF_TRAINING
from sim.program_file import MODELS, PARTS, Parameters, ProgramFile, read

# Words of the names of functions that are not in the list of names.
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
_WORDS_OF_TRAIN = ("train", "training", "fit")
_WORDS_OF_TEST = ("test", "eval", "evaluate", "evaluation", "validate", "validation", "val", "accuracy")
# What may stand before that word, and words of other things that are done in training and tests.
_BEFORE = ("do", "run", "my", "start", "perform", "local", "client", "compute", "calculate", "check", "get")
_NO_MEASURE = (
    "time",
    "speed",
    "latency",
    "plot",
    "predict",
    "inference",
    "count",
    "sample",
    "example",
    "batch",
    "step",
)
_VERBS_OF_DATA = ("load", "get", "make", "create", "build", "prepare", "setup", "read", "download", "generate")
_DATA = (
    *("data", "dataset", "datasets", "set", "sets", "loader", "loaders", "dataloader", "dataloaders", "images"),
    *("mnist", "fashion", "emnist", "cifar", "svhn", "stl", "imagenet", "celeba", "imdb", "iris", "wine", "housing"),
    *("shakespeare", "reddit", "adult", "titanic", "covtype", "digits"),
)
_NO_DATA = (
    *("model", "net", "network", "optimizer", "optim", "scheduler", "criterion", "loss", "args", "config", "parser"),
    *("logger", "metrics", "metric", "weights", "params", "parameters", "device", "checkpoint", "transform"),
    *("transforms", "batch", "stats", "shape", "client", "clients", "server"),
)


def program_parts(program: str, *, needs_model: bool = True) -> dict[str, str]:
    """Return dataset, model, train and test → the import path, of those that a program of the user's has.

    Args:
        program: ``file.py`` or ``module``, in the current folder.
        needs_model: nothing else says the model.

    Raises:
        ConfigError: there is no such file, it has none of them or several models, or it lies elsewhere.
    """
    path = _path_of(program)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"--program {program}: must be a module in the current folder; start sim in its folder")
    for part in path.with_suffix("").parts:
        if not part.isidentifier():
            name = re.sub(r"\W", "_", f"_{part}" if part[:1].isdigit() else part)
            raise ConfigError(
                f"--program {program}: {part} is no name that Python can import; use a link to it, such as {name}"
            )
    found = read(path.resolve())
    if found is None:
        reason = "not valid Python" if path.is_file() else "no such file in the current folder"
        raise ConfigError(f"--program {program}: {reason}")
    module = ".".join(path.with_suffix("").parts)
    parts = {
        part: f"{module}:{name}" for part, name in {**_functions(found), **_methods(found), **found.parts()}.items()
    }
    variable = _trained_variable(found, parts.get("train", "").removeprefix(f"{module}:"))
    if variable is not None:
        parts["model"] = f"{module}:{variable}"
    if "client_fn" in found.names and "train" not in parts:
        raise ConfigError(f"--program {program}: is a Flower program; --client-fn {module}:client_fn runs it")
    if needs_model and "model" not in parts and len(found.modules) > 1:
        one = f"--model {module}:{found.modules[0]}"
        raise ConfigError(f"--program {program}: has the models {some(found.modules)}; say which one, such as {one}")
    if not parts:
        names = "; ".join(f"{part}: {', '.join(known)}" for part, known in PARTS.items())
        raise ConfigError(f"--program {program}: has none of the names that are looked for ({names})")
    return parts


def _trained_variable(found: ProgramFile, train: str) -> str | None:
    """Return the variable whose model a function trains that gets none; its class may make one with other weights."""
    if train not in found.functions:
        return None
    parameters = found.functions[train]
    roles = {ROLES.get(name.lower()) for name in (*parameters.required, *parameters.optional)}
    return None if "net" in roles else next((name for name in MODELS if name in found.variables), None)


def _methods(found: ProgramFile) -> dict[str, str]:
    """Return train and test → the method of a class that does it, of those that the only class has that can train.

    For a file whose functions train, it is the only class that can test.
    """
    methods: dict[str, dict[str, str]] = {}
    for part in ("train", "test"):
        in_order = {name: place for place, name in enumerate(PARTS[part])}
        able = [
            (not parameters.takes_epochs, in_order[own_name], owner, method)
            for method, parameters in found.methods.items()
            for owner, _, own_name in [method.partition(".")]
            if own_name in in_order and not _what_is_missing(parameters, part, of_class=True)
        ]
        for *_, owner, method in sorted(able, reverse=True):  # the last one is that for all epochs, with the usual name
            methods.setdefault(owner, {})[part] = method
    needed = "test" if "train" in found.parts() else "train"
    owners = [owner for owner, own in methods.items() if needed in own]
    return methods[owners[0]] if len(owners) == 1 else {}


def _functions(found: ProgramFile) -> dict[str, str]:
    """Return dataset, train and test → the only function whose name has a word that says so, and that can be called."""
    parts = {}
    for part in ("dataset", "train", "test"):
        names = [name for name in found.functions if _is_meant(name, part, found)]
        able = [name for name in names if not _what_is_missing(found.functions[name], part)]
        if len(able) == 1:
            parts[part] = able[0]
    return parts


def _is_meant(name: str, part: str, found: ProgramFile) -> bool:
    in_order = [word.lower() for word in _WORD.findall(name)]
    words = set(in_order)
    if part == "dataset":
        is_made = name in found.pairs and in_order[:1] and in_order[0] in _VERBS_OF_DATA
        return bool(is_made) and not words.isdisjoint(_DATA) and words.isdisjoint(_NO_DATA)
    first = next((word for word in in_order if word not in _BEFORE), "")
    if not words.isdisjoint(_NO_MEASURE):
        return False
    return first in _WORDS_OF_TRAIN if part == "train" else first in _WORDS_OF_TEST


def _what_is_missing(parameters: Parameters, part: str, *, of_class: bool = False) -> str:
    """Return why a function cannot be a part of a program: it needs something, or takes nothing of a client."""
    if part == "dataset":
        offered = {"data_dir", "batch_size", "seed", "args", "num_classes", "client_id", "num_clients"}
    else:
        offered = {*ROLES_OF_TRAINING, *SETTINGS_OF_TRAINING} if part == "train" or of_class else {*ROLES_OF_TEST}
        offered.add("dataset")  # or the loader, for one that makes none
    roles = {name: ROLES.get(name.lower()) for name in (*parameters.required, *parameters.optional)}
    unknown = [name for name in parameters.required if roles[name] not in offered]
    if unknown:
        return f"a client has nothing for its parameter {unknown[0]}"
    if part == "dataset":
        return ""
    if "net" not in roles.values():
        return "it has no parameter for the model"
    examples = {"loader", "loaders", "inputs", "dataset"} & offered
    return "" if examples & set(roles.values()) else "it has no parameter for the examples"


def what_was_found(program: str, parts: Mapping[str, str | None]) -> list[str]:
    """Return which parts of a run are the program's and which are built in, for notes.

    Args:
        parts: dataset, model, train, client and test → the value of the setting.
    """
    own = [f"{part} {name}" for part, name in parts.items() if name is not None and ":" in name]
    others = [part if name is None else f"{part} {name}" for part, name in parts.items() if ":" not in (name or "")]
    notes = [f"--program {program}: {', '.join(own)}" + (f"; built in: {', '.join(others)}" if others else "")]
    file = read(_path_of(program).resolve())
    if file is not None and parts.get("train", "") is None:
        unused = {name: each for name, each in file.functions.items() if _is_meant(name, "train", file)}
        unused = {name: each for name, each in unused.items() if "net" in map(ROLES.get, map(str.lower, each.required))}
        trains = (*PARTS["train"], "training_step")
        unused |= {name: each for name, each in file.methods.items() if name.rpartition(".")[2] in trains}
        for name, each in unused.items():
            reason = _what_is_missing(each, "train") or "there are several that train; --train says which one"
            notes.append(f"--program {program}: {name} is not used, because {reason}")
    return notes


def _path_of(program: str) -> Path:
    return Path(program if program.endswith(".py") else program.replace(".", "/") + ".py")
