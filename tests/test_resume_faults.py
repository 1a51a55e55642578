"""Damaged checkpoints and locks that outlive their process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sim.errors import RunFolderError
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder.folder import Run
from sim.run_folder.writer import locked_folder


@pytest.mark.parametrize("value", [-1, 1.5, True, float("inf"), "1", None])
@pytest.mark.parametrize("name", ["round", "num_weights"])
def test_a_count_that_is_none_is_damage(tmp_path: Path, name: str, value: object) -> None:
    about = {"format": 1, "round": 1, "num_weights": 0, "strategy": {}, "clients": [], "fits": {}, "tables": {}}
    folder = tmp_path / "checkpoints" / "1"
    folder.mkdir(parents=True)
    (folder / "arrays.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    about["arrays_sha256"] = checkpoints.hashlib.sha256(b"\x02\0\0\0\0\0\0\0{}").hexdigest()

    def written() -> None:
        content = {"sha256": checkpoints._sum_of(about), "state": about}
        (folder / "state.json").write_text(json.dumps(content))

    written()
    assert checkpoints.read_last(Run(tmp_path))[0].round == 1
    about[name] = value
    written()
    with pytest.raises(RunFolderError, match="checkpoints/1: "):
        checkpoints.read_last(Run(tmp_path))


def test_json_that_is_nested_deep_is_damage(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "1"
    folder.mkdir(parents=True)
    (folder / "arrays.safetensors").touch()
    (folder / "state.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(RunFolderError, match="damaged: RecursionError"):
        checkpoints.read_last(Run(tmp_path))


def test_a_process_that_a_client_forked_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    read, write = os.pipe()
    ready, say_ready = os.pipe()
    with locked_folder(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(say_ready, b"x")
            os.read(read, 1)  # until the test has locked the folder again
            os._exit(0)
        os.read(ready, 1)
    try:
        with locked_folder(tmp_path):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        for descriptor in (read, write, ready, say_ready):
            os.close(descriptor)
