"""The process that removes what Ray leaves: it ends Ray's processes, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sim.reaper import adopting, processes_of, reaped

RAY_FOLDER = str(Path(str(find_spec("ray").origin)).parent)  # type: ignore[union-attr]
# Holds a file open after it has loaded Ray's library, as an actor does, or without it.
HOLDER = "import sys\n{first}\nfile = open(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.read()"

WAITS = "echo ready; read line"


OPENS_AND_CLOSES = (
    "import os, sys\nfile = open(sys.argv[1])\nprint('ready', flush=True)\n"
    "while True:\n    for each in [os.open('/dev/null', os.O_RDONLY) for _ in range(200)]: os.close(each)"
)


@pytest.mark.slow
def test_the_reaper_of_one_session_is_no_part_of_another() -> None:
    with adopting("one"), reaped("two"):
        assert processes_of("one", os.getpid()) == []


@pytest.mark.slow
def test_a_process_that_opens_and_closes_files_all_the_time_is_found(tmp_path: Path) -> None:
    log = tmp_path / "raylet.out"
    log.write_text("line\n")
    words = [sys.executable, "-c", OPENS_AND_CLOSES, str(log), f"{RAY_FOLDER}/dashboard/agent.py"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            found = [processes_of("this", 0, str(tmp_path), RAY_FOLDER) for _ in range(20)]
        finally:
            process.kill()
    assert found == [[process.pid]] * 20


@pytest.mark.slow
def test_a_bystander_who_reads_a_log_of_ray_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "raylet.out"
    log.write_text("line\n")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = {
        "helper": ["env", "SIM_SESSION=this", "setsid", "sh", "-c", WAITS],
        "of another run": ["env", "SIM_SESSION=other", "sh", "-c", WAITS],
        "tail": ["tail", "-f", str(log)],
        "python": [sys.executable, "-c", HOLDER.format(first=""), str(log)],
        "agent": [sys.executable, "-c", HOLDER.format(first=""), str(log), f"{RAY_FOLDER}/dashboard/agent.py"],
        "actor": [sys.executable, "-c", HOLDER.format(first="import ray._raylet"), str(log)],
    }
    started = {name: subprocess.Popen(command, **pipes) for name, command in commands.items()}  # type: ignore[call-overload]
    try:
        for process in started.values():
            assert process.stdout is not None
            assert process.stdout.readline()
        found = processes_of("this", 0, str(tmp_path), RAY_FOLDER)
        # The helper is what a client starts: in a session of its own, without any file of Ray.
        # The agent has just begun, and has loaded nothing of Ray.
        ours = {started["actor"].pid, started["agent"].pid, started["helper"].pid}
        assert set(found) == ours
        for pid in ours:
            assert set(processes_of("this", pid, str(tmp_path), RAY_FOLDER)) == ours - {pid}
        assert processes_of("none", 0, str(tmp_path / "other"), RAY_FOLDER) == []
    finally:
        for process in started.values():
            process.kill()
            process.communicate()
