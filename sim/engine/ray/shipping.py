"""What a run maps from the cache folder → to the nodes of a Ray cluster that have another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.client.runtime import ClientSpec
from sim.data.cache import cache_folder

Parcel = dict[str, dict[str, bytes]]  # kind/key of a folder in the cache → its files


def pack(program: ClientSpec) -> Parcel:
    """Read the data set and the partition of a program."""
    folders = [program.data_folder, *([program.partition_folder] if program.partition_folder else [])]
    return {
        f"{folder.parent.name}/{folder.name}": {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in folders
    }


def unpack(program: ClientSpec, parcel: Parcel) -> ClientSpec:
    """Put a parcel into this node's cache, unless it is there; return the program with this node's folders."""
    places: dict[str, Path] = {}
    for name, files in parcel.items():
        folder = cache_folder() / name
        places[name.split("/")[0]] = folder
        if folder.is_dir():
            continue
        arriving = folder.with_name(f".arriving-{folder.name}")
        arriving.mkdir(parents=True, exist_ok=True)
        for file_name, content in files.items():
            (arriving / file_name).write_bytes(content)
        arriving.rename(folder)
    return replace(program, data_folder=places["data"], partition_folder=places.get("partition"))


def runtime_env(program: ClientSpec) -> dict[str, Any]:
    """What Ray sends to every node: this package, and the current folder where the user's own modules are in it."""
    environment: dict[str, Any] = {"py_modules": [str(Path(__file__).resolve().parent.parent.parent)]}
    if any(spec and ":" in spec for spec in (program.model, program.train, program.test, program.client)):
        environment["working_dir"] = str(program.import_folder)
        environment["excludes"] = ["results", ".git", ".venv"]
    return environment
