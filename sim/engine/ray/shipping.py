"""Sends the cached data set and partition of a run to the nodes of a Ray cluster that do not have them."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle

from sim.client.flower_program import FlowerSpec
from sim.client.runtime import ClientSpec
from sim.config.fields import flag_of
from sim.data.cache import cache_folder, use
from sim.errors import PluginError, described
from sim.user_code import shown_name

CachedFiles = dict[str, dict[str, bytes]]  # kind/key of a folder in the cache → its files


def check_can_be_sent(spec: ClientSpec | FlowerSpec) -> None:
    """Check that a spec can be pickled for other processes.

    Raises:
        PluginError: a function or an object of the user's cannot; the message names it.
    """
    try:
        cloudpickle.dumps(spec)
    except Exception as whole:  # whatever the objects of the user's raise
        for each in fields(spec):
            part = getattr(spec, each.name)
            try:
                cloudpickle.dumps(part)
            except Exception as error:
                raise PluginError(
                    f"{flag_of(each.name)} {shown_name(part)}: cannot be sent to the processes that execute clients: "
                    f"{described(error)}; --engine inline needs no other process"
                ) from error
        reason = f"the program cannot be sent to the processes that execute clients: {described(whole)}"
        raise PluginError(reason) from whole


def pack(spec: ClientSpec | FlowerSpec) -> CachedFiles:
    """Read the data set and the partition of a spec; a Flower program brings its own."""
    if isinstance(spec, FlowerSpec):
        return {}
    folders = [folder for folder in (spec.data.folder, spec.partition_folder) if folder is not None]
    return {
        f"{folder.parent.name}/{folder.name}": {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in folders
    }


def unpack(spec: ClientSpec | FlowerSpec, cached_files: CachedFiles) -> ClientSpec | FlowerSpec:
    """Put the files into this node's cache, unless they are there; return the spec with this node's folders.

    Several processes of a node may do this at once: each writes a folder of its own, and one of them is renamed.
    """
    if isinstance(spec, FlowerSpec):
        return spec
    places: dict[str, Path] = {}
    for name, files in cached_files.items():
        folder = cache_folder() / name
        places[name.split("/")[0]] = folder
        use(folder)
        if folder.is_dir():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        arriving = Path(tempfile.mkdtemp(prefix=".arriving-", dir=folder.parent))
        try:
            for file_name, content in files.items():
                (arriving / file_name).write_bytes(content)
            arriving.chmod(0o755)
            arriving.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        use(folder)
    data = replace(spec.data, folder=places.get("data"))
    return replace(spec, data=data, partition_folder=places.get("partition"))


def runtime_env(spec: ClientSpec | FlowerSpec) -> dict[str, Any]:
    """Return what Ray sends to every node: this package, and the current folder if the user's own modules are used."""
    environment: dict[str, Any] = {
        "py_modules": [str(Path(__file__).resolve().parents[2])],
        "env_vars": {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")},
    }
    if any(isinstance(name, str) and ":" in name for name in spec.imported):
        environment["working_dir"] = str(spec.import_folder)
        environment["excludes"] = ["results", ".git", ".venv"]
    return environment
