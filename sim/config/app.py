"""The folder of a Flower app → its components and its run config, as ``flwr run`` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.config.fields import IMPORT_PATH, flattened, read_table, shown
from sim.errors import ConfigError, one_line

_FLOWER = re.compile(r"flwr\s*(\[[^\]]*\])?\s*(?P<versions>[^;]*)")


@dataclass(frozen=True)
class AppFiles:
    """What the ``pyproject.toml`` of an app says.

    Attributes:
        server_app, client_app: ``package.module:name``.
        run_config: flat, with the values that override those of the file.
        notes: what the user should know, one line each.
    """

    folder: Path
    server_app: str
    client_app: str
    run_config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_app(app: str, overrides: Mapping[str, Any]) -> AppFiles:
    """Read the ``pyproject.toml`` of an app.

    Args:
        app: its folder.
        overrides: ``--run-config``.

    Raises:
        ConfigError: there is no app, it needs a newer version of Flower, or it does not know an override.
    """
    folder = Path(app).resolve()
    path = folder / "pyproject.toml"
    if not folder.is_dir():
        raise ConfigError(f"--app {app}: no such folder")
    if not path.is_file():
        raise ConfigError(f"--app {app}: no Flower app there: pyproject.toml is missing")
    table = read_table(path, "--app")
    section = _table(_table(_table(table, "tool"), "flwr"), "app")
    if not section:
        raise ConfigError(f"--app {path}: no Flower app: [tool.flwr.app] is missing")
    components = _table(section, "components")
    found = {name: components.get(name) for name in ("serverapp", "clientapp")}
    for name, value in found.items():
        if not isinstance(value, str) or not IMPORT_PATH.fullmatch(value):
            problem = "is missing" if value is None else f"is {shown(value)}"
            raise ConfigError(f"--app {path}: {name} in [tool.flwr.app.components] {problem}")
    notes = _notes_of_versions(path, _table(table, "project").get("dependencies"))
    run_config = flattened(_table(section, "config"))
    for key, value in run_config.items():
        if type(value) not in (bool, int, float, str):
            raise ConfigError(f"--app {path}: {key} in [tool.flwr.app.config] must be a number, text, true or false")
    for key, value in overrides.items():
        if key not in run_config:
            known = one_line(", ".join(run_config)) or "none"
            raise ConfigError(f"--run-config {key}={value}: the app has no such key; it has {known}")
        if not _same_kind(value, run_config[key]):
            was = shown(run_config[key])
            raise ConfigError(f"--run-config {key}={value}: must be of the type that the app has there, as {was}")
    return AppFiles(folder, str(found["serverapp"]), str(found["clientapp"]), {**run_config, **overrides}, notes)


def _table(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def _same_kind(value: Any, known: Any) -> bool:
    return type(value) is type(known) or (type(value) is int and type(known) is float)


def _notes_of_versions(path: Path, dependencies: Any) -> tuple[str, ...]:
    """Check that the app can run with the Flower that is installed, without importing it; note what may not fit.

    Many apps name the one version that was the newest when they were written; most of them run with later ones.

    Raises:
        ConfigError: it needs a newer one.
    """
    from importlib.metadata import version

    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    notes = []
    for dependency in dependencies if isinstance(dependencies, list) else []:
        match = _FLOWER.fullmatch(str(dependency).strip())
        if match is None:
            continue
        try:
            wanted = SpecifierSet(match["versions"].strip())
        except InvalidSpecifier:
            continue
        installed = version("flwr")
        if wanted.contains(installed, prereleases=True):
            continue
        if any(each.operator in (">=", ">", "==", "~=") and _is_newer(each.version, installed) for each in wanted):
            raise ConfigError(f"--app {path}: the app needs flwr{wanted}; installed is {installed}")
        notes.append(f"the app asks for flwr{wanted}; installed is {installed}")
    return tuple(notes)


def _is_newer(version: str, installed: str) -> bool:
    from packaging.version import Version

    return Version(version.removesuffix(".*")) >= Version(installed)
