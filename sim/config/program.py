"""A program of the user's → the settings that name its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sim.errors import ConfigError, some
from sim.program_file import PARTS, read


def program_parts(program: str, *, needs_model: bool = True) -> dict[str, str]:
    """Return dataset, model, train and test → the import path, of those that a program of the user's has.

    Args:
        program: ``file.py`` or ``module``, in the current folder.
        needs_model: nothing else says the model.

    Raises:
        ConfigError: there is no such file, it has none of them or several models, or it lies elsewhere.
    """
    path = Path(program if program.endswith(".py") else program.replace(".", "/") + ".py")
    if path.is_absolute() or ".." in path.parts or not all(part.isidentifier() for part in path.with_suffix("").parts):
        raise ConfigError(f"--program {program}: must be a module in the current folder; start sim in its folder")
    found = read(path.resolve())
    if found is None:
        reason = "not valid Python" if path.is_file() else "no such file in the current folder"
        raise ConfigError(f"--program {program}: {reason}")
    module = ".".join(path.with_suffix("").parts)
    parts = {part: f"{module}:{name}" for part, name in found.parts().items()}
    if "client_fn" in found.names and "train" not in parts:
        raise ConfigError(f"--program {program}: is a Flower program; --client-fn {module}:client_fn runs it")
    if needs_model and "model" not in parts and len(found.modules) > 1:
        one = f"--model {module}:{found.modules[0]}"
        raise ConfigError(f"--program {program}: has the models {some(found.modules)}; say which one, such as {one}")
    if not parts:
        names = "; ".join(f"{part}: {', '.join(known)}" for part, known in PARTS.items())
        raise ConfigError(f"--program {program}: has none of the names that are looked for ({names})")
    return parts


def what_was_found(program: str, parts: Mapping[str, str | None]) -> str:
    """Return which parts of a run are the program's and which are built in, for a note.

    Args:
        parts: dataset, model, train and test → the value of the setting.
    """
    own = [f"{part} {name}" for part, name in parts.items() if name is not None and ":" in name]
    others = [part if name is None else f"{part} {name}" for part, name in parts.items() if ":" not in (name or "")]
    return f"--program {program}: {', '.join(own)}" + (f"; built in: {', '.join(others)}" if others else "")
