"""Ends what a run's Ray leaves: started beside it, waits for its driver to end, however that ends.

A program of its own that imports nothing of sim: ``python reaper.py FOLDER DRIVER``. When its stdin closes, it kills
every process that has a file of the session's folder open (Ray's logs are there), and removes that folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def processes_of(folder: str, driver: int) -> list[int]:
    """Ids of the processes that belong to a session, its driver aside; none where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Not by name or environment: Ray's processes write a title over both.
            if int(path.name) != driver and any(
                str(file.readlink()).startswith(f"{folder}/") for file in (path / "fd").iterdir()
            ):
                found.append(int(path.name))
    return found


def main() -> None:
    """Wait, kill, remove."""
    folder, driver = sys.argv[1], int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the driver, after which there is work to do
    sys.stdin.read()
    for _ in range(20):
        left = processes_of(folder, driver)
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
