"""Ends what a run leaves behind. It waits beside the process of the run until that has ended, however it ends.

Also a program of its own that imports nothing of sim: ``python reaper.py SESSION RUN_PID [SESSION_FOLDER RAY_FOLDER]``.
When its stdin closes, it kills the processes of this user that belong to the session, and removes that folder. They are

- programs that user code started, which inherited the session's name in their environment;
- forks of the process of the run, which inherited a file in memory with that name;
- those that run Ray's code and have a file of the session's folder open (Ray's logs are there).

A process of somebody else that reads such a file is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SESSION_VARIABLE = "SIM_SESSION"  # in the environment of what executes clients, so also of the programs that they start

_PIPES: set[int] = set()  # to the reapers of this process; in a fork that lives longer they would keep these waiting


def _close_pipes_in_child() -> None:
    for pipe in _PIPES:
        with suppress(OSError):
            os.close(pipe)
    _PIPES.clear()


@contextmanager
def reaped(session: str, session_folder: str = "", ray_folder: str = "") -> Iterator[None]:
    """Kill what is left of a session at the end of the block, or when this process has died in it."""
    import subprocess

    arguments = [session, str(os.getpid()), session_folder, ray_folder]
    # It belongs to no session itself: the reaper of another one of this process would kill it before it has begun.
    environment = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE}
    reaper = subprocess.Popen(
        [sys.executable, "-S", __file__, *arguments], stdin=subprocess.PIPE, start_new_session=True, env=environment
    )
    assert reaper.stdin is not None
    pipe = reaper.stdin.fileno()
    _PIPES.add(pipe)
    mark = os.memfd_create(session) if hasattr(os, "memfd_create") else None  # on Linux, as /proc
    try:
        yield
    finally:
        _PIPES.discard(pipe)
        with suppress(OSError):  # user code has closed the pipe, which the reaper has noticed
            reaper.stdin.close()
        reaper.wait()
        if mark is not None:
            with suppress(OSError):  # user code has closed it
                os.close(mark)


@contextmanager
def adopting(session: str) -> Iterator[None]:
    """Let the programs that are started inside the block belong to a session."""
    before = os.environ.get(SESSION_VARIABLE)
    os.environ[SESSION_VARIABLE] = session
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SESSION_VARIABLE, None)
        else:
            os.environ[SESSION_VARIABLE] = before


@contextmanager
def nothing_left() -> Iterator[None]:
    """End the programs and forks that user code starts in this process inside the block, if they outlast it."""
    session = os.urandom(8).hex()
    with reaped(session), adopting(session):
        yield


def processes_of(session: str, run: int, session_folder: str = "", ray_folder: str = "") -> list[int]:
    """Return the ids of the processes that belong to a session, except its run; none where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(path.name) in (run, os.getpid()) or path.stat().st_uid != os.getuid():
                continue
            # Ray's own processes not by name or environment, because they overwrite both with a title.
            if f"{SESSION_VARIABLE}={session}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
                continue
            files = _open_files(path)
            if any(file.startswith(f"/memfd:{session} ") for file in files) or (
                session_folder
                and any(file.startswith(f"{session_folder}/") for file in files)
                and _runs_code_of(ray_folder, path)
            ):
                found.append(int(path.name))
    return found


def _open_files(process: Path) -> list[str]:
    """Return the files that a process has open; one that it closes meanwhile hides no other."""
    found = []
    for file in (process / "fd").iterdir():
        with suppress(OSError):
            found.append(str(file.readlink()))
    return found


def _runs_code_of(ray_folder: str, process: Path) -> bool:
    """Whether a process is one of Ray's executables, or a Python that executes a file of Ray's or has its library.

    The command line tells it of a process that has just begun, before that has loaded anything.
    """
    if str((process / "exe").readlink()).startswith(f"{ray_folder}/"):
        return True
    if any(word.startswith(f"{ray_folder}/".encode()) for word in (process / "cmdline").read_bytes().split(b"\0")[1:]):
        return True
    return f" {ray_folder}/" in (process / "maps").read_text(encoding="utf-8", errors="replace")


def main() -> None:
    """Wait, kill, remove."""
    session, run, session_folder, ray_folder = sys.argv[1], int(sys.argv[2]), *sys.argv[3:5]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, after whose end there is work to do here
    sys.stdin.read()
    for _ in range(20):
        left = processes_of(session, run, session_folder, ray_folder)
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)
    if session_folder:
        import shutil

        shutil.rmtree(session_folder, ignore_errors=True)


if __name__ == "__main__":
    main()
else:
    os.register_at_fork(after_in_child=_close_pipes_in_child)
