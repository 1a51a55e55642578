"""``run.log`` is bounded, whatever clients print, and says what was cut."""

from __future__ import annotations

import logging
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Small
from sim.engine.ray import output
from sim.run_folder import log as run_log

_NOISY = """
import os, subprocess, sys
from sim.client.torch_client import CifarClient


class Noisy(CifarClient):
    def fit(self, parameters, config):
        print("begin")
        print("x" * 5_000_000)
        subprocess.run(["head", "-c", "5000000", "/dev/zero"])
        os.write(2, b"end")
        return super().fit(parameters, config)
"""


@pytest.mark.ray
def test_what_clients_and_their_programs_print_is_bounded(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy.py").write_text(_NOISY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = small(engine="ray", num_cpus=2.0, client="noisy:Noisy", clients_per_round=2, num_rounds=1)
    assert run.rounds().num_failures.tolist()[1] == 0
    output.wait_until_copied(run.log_path, seconds=60)
    log = run.log_path.read_text(errors="replace")
    found = re.findall(r"sim: client \d printed (\d+) bytes; (\d+) of them", log)
    assert len(found) == 2
    for printed, cut in found:  # the last block of a client may be copied when the client has ended, and is not counted
        assert 9_900_000 < int(printed) < 10_100_000
        assert int(printed) - int(cut) == run_log.CLIENT_BYTES
    assert log.count("begin\n") == 2
    assert len(log) < 3 * run_log.CLIENT_BYTES


def _copied(tmp_path: Path, content: bytes, *limits: int) -> str:
    (tmp_path / "liveness").write_bytes(struct.pack("8d", *[-1.0] * 4, 7.0, 1.5, 1.0, 1.0))
    words = [sys.executable, "-I", "-S", output.__file__, str(tmp_path / "liveness"), "1", *map(str, limits)]
    with (tmp_path / "log").open("ab") as log:
        subprocess.run(words, input=content, stdout=log, check=True)
    output.wait_until_copied(tmp_path / "log")
    return (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_copier_says_what_it_cuts(tmp_path: Path) -> None:
    assert _copied(tmp_path, b"short", 10, 100) == "short"
    said = "short0123456789\nsim: client 7 printed 12 bytes; 2 of them are left out\n"
    assert _copied(tmp_path, b"0123456789ab", 10, 100) == said
    full = f"{said}\nsim: run.log has 20 bytes; what actor 1 prints is left out from here on\n"
    assert _copied(tmp_path, b"more", 10, 20) == full


def test_what_is_logged_in_this_process_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "CLIENT_BYTES", 1000)
    monkeypatch.setattr(run_log, "LOG_BYTES", 5000)
    path = tmp_path / "run.log"
    with run_log.captured(path, show=False):
        for _ in range(100):
            logging.getLogger("flwr").warning("x" * 3000)
        logging.getLogger("sim").warning("the end")
    text = path.read_text()
    assert text.count("more characters are left out") == text.count(" flwr: x") == 5
    assert text.count("run.log has 5000 bytes; what others than sim log is left out") == 1
    assert text.endswith("the end\n")
    assert path.stat().st_size < 7000
