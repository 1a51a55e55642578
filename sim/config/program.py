"""A program of the user's → the settings that name its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sim.errors import ConfigError, some
from sim.parameter_roles import ROLES
from sim.program_file import PARTS, Parameters, ProgramFile, read


def program_parts(program: str, *, needs_model: bool = True) -> dict[str, str]:
    """Return dataset, model, train and test → the import path, of those that a program of the user's has.

    Args:
        program: ``file.py`` or ``module``, in the current folder.
        needs_model: nothing else says the model.

    Raises:
        ConfigError: there is no such file, it has none of them or several models, or it lies elsewhere.
    """
    path = _path_of(program)
    if path.is_absolute() or ".." in path.parts or not all(part.isidentifier() for part in path.with_suffix("").parts):
        raise ConfigError(f"--program {program}: must be a module in the current folder; start sim in its folder")
    found = read(path.resolve())
    if found is None:
        reason = "not valid Python" if path.is_file() else "no such file in the current folder"
        raise ConfigError(f"--program {program}: {reason}")
    module = ".".join(path.with_suffix("").parts)
    parts = {part: f"{module}:{name}" for part, name in {**_methods(found), **found.parts()}.items()}
    if "client_fn" in found.names and "train" not in parts:
        raise ConfigError(f"--program {program}: is a Flower program; --client-fn {module}:client_fn runs it")
    if needs_model and "model" not in parts and len(found.modules) > 1:
        one = f"--model {module}:{found.modules[0]}"
        raise ConfigError(f"--program {program}: has the models {some(found.modules)}; say which one, such as {one}")
    if not parts:
        names = "; ".join(f"{part}: {', '.join(known)}" for part, known in PARTS.items())
        raise ConfigError(f"--program {program}: has none of the names that are looked for ({names})")
    return parts


def _methods(found: ProgramFile) -> dict[str, str]:
    """Return train and test → the method of a class that does it, of those that the only class has that can train.

    For a file whose functions train, it is the only class that can test.
    """
    methods: dict[str, dict[str, str]] = {}
    for part in ("train", "test"):
        for name in reversed(PARTS[part]):
            for method, parameters in found.methods.items():
                owner, _, own_name = method.partition(".")
                if own_name == name and _can_be_called(parameters):
                    methods.setdefault(owner, {})[part] = method
    needed = "test" if "train" in found.parts() else "train"
    owners = [owner for owner, own in methods.items() if needed in own]
    return methods[owners[0]] if len(owners) == 1 else {}


def _can_be_called(parameters: Parameters) -> bool:
    return not _what_is_missing(parameters)


def _what_is_missing(parameters: Parameters) -> str:
    """Return why a client cannot use a class and its method: it cannot give a parameter, or has no effect on it."""
    roles = {name: ROLES.get(name.lower()) for name in (*parameters.required, *parameters.optional)}
    unknown = [name for name in parameters.required if roles[name] is None]
    if unknown:
        return f"a client has nothing for its parameter {unknown[0]}"
    if "net" not in roles.values():
        return "it has no parameter for the model"
    examples = {"loader", "loaders", "inputs", *(["dataset"] if parameters.makes_loaders else [])}
    return "" if examples & set(roles.values()) else "it has no parameter for the examples"


def what_was_found(program: str, parts: Mapping[str, str | None]) -> list[str]:
    """Return which parts of a run are the program's and which are built in, for notes.

    Args:
        parts: dataset, model, train and test → the value of the setting.
    """
    own = [f"{part} {name}" for part, name in parts.items() if name is not None and ":" in name]
    others = [part if name is None else f"{part} {name}" for part, name in parts.items() if ":" not in (name or "")]
    notes = [f"--program {program}: {', '.join(own)}" + (f"; built in: {', '.join(others)}" if others else "")]
    file = read(_path_of(program).resolve())
    for method, parameters in file.methods.items() if file is not None and parts["train"] is None else ():
        if method.rpartition(".")[2] in (*PARTS["train"], "training_step"):
            reason = _what_is_missing(parameters) or "there are several such methods; --train says which one"
            notes.append(f"--program {program}: {method} is not used, because {reason}")
    return notes


def _path_of(program: str) -> Path:
    return Path(program if program.endswith(".py") else program.replace(".", "/") + ".py")
