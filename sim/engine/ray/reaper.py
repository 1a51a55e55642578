"""Ends what a run's Ray leaves behind. It is started beside Ray and waits until the driver has ended, however it ends.

A program of its own that imports nothing of sim: ``python reaper.py SESSION_FOLDER DRIVER_PID RAY_FOLDER SESSION``.
When its stdin closes, it kills the processes of this user that belong to the session, and removes that folder. They are
those that run Ray's code and have a file of the session's folder open (Ray's logs are there), and those that clients
started, which inherited the session's name in their environment. A process of somebody else that reads such a file is
left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

SESSION_VARIABLE = "SIM_RAY_SESSION"  # in the environment of actors, so also of the programs that clients start


def processes_of(session_folder: str, driver: int, ray_folder: str, session: str) -> list[int]:
    """Return the ids of the processes that belong to a session, except its driver; none where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(path.name) in (driver, os.getpid()) or path.stat().st_uid != os.getuid():
                continue
            # Ray's own processes not by name or environment, because they overwrite both with a title.
            if f"{SESSION_VARIABLE}={session}".encode() in (path / "environ").read_bytes().split(b"\0") or (
                any(str(file.readlink()).startswith(f"{session_folder}/") for file in (path / "fd").iterdir())
                and _runs_code_of(ray_folder, path)
            ):
                found.append(int(path.name))
    return found


def _runs_code_of(ray_folder: str, process: Path) -> bool:
    """Whether a process is one of Ray's executables, or a Python that has loaded Ray's library."""
    if str((process / "exe").readlink()).startswith(f"{ray_folder}/"):
        return True
    return f" {ray_folder}/" in (process / "maps").read_text(encoding="utf-8", errors="replace")


def main() -> None:
    """Wait, kill, remove."""
    session_folder, driver, ray_folder, session = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the driver, after whose end there is work to do here
    sys.stdin.read()
    for _ in range(20):
        left = processes_of(session_folder, driver, ray_folder, session)
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)
    shutil.rmtree(session_folder, ignore_errors=True)


if __name__ == "__main__":
    main()
