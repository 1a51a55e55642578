"""Copies what an actor and its clients print to ``run.log``, up to a limit for each client and for the whole file.

A program of its own that imports nothing of sim: ``python output.py LIVENESS_FILE ACTOR CLIENT_BYTES
LOG_BYTES``. It reads from stdin and writes to stdout, which is ``run.log``. It is a process and not a thread of the
actor, because a client that fills the pipe while it holds Python's lock would wait for ever for a thread that needs the
lock to empty it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_COLUMNS = 4  # of a row of the liveness file, see sim.engine.liveness


def redirect(log_path: Path, liveness_path: Path, actor: int) -> None:
    """Let stdout and stderr of this process, and of the programs that it starts, go to ``log_path`` through a copier.

    Raises:
        OSError: there is no such file, for example on another machine.
    """
    from sim.run_folder.log import CLIENT_BYTES, LOG_BYTES

    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        numbers = [str(number) for number in (actor, CLIENT_BYTES, LOG_BYTES)]
        command = [sys.executable, "-I", "-S", __file__, str(liveness_path), *numbers]
        copier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, start_new_session=True)
    finally:
        os.close(log)
    assert copier.stdin is not None
    for number in (1, 2):
        os.dup2(copier.stdin.fileno(), number)
    copier.stdin.close()
    copier.wait()


def wait_until_copied(log_path: Path, seconds: float = 2.0) -> None:
    """Wait until all copiers have ended, for at most some seconds: a program that a client started may still print."""
    deadline = time.monotonic() + seconds
    with suppress(OSError), log_path.open("rb") as log:
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.01)


def _current(liveness: Path, actor: int) -> tuple[float, ...]:
    """Return the client that the actor executes and when it began; the same value as long as that does not change."""
    with suppress(OSError, struct.error), liveness.open("rb") as file:
        file.seek(actor * _COLUMNS * 8)
        return struct.unpack("2d", file.read(16))
    return ()


def main() -> None:
    """Copy until the last process that can print has ended."""
    liveness, (actor, client_bytes, log_bytes) = Path(sys.argv[1]), map(int, sys.argv[2:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for others; what they print last is still to be copied
    with suppress(OSError):  # not every file system of another machine has locks
        fcntl.flock(1, fcntl.LOCK_SH)
    if os.fork():  # Ray kills the children of an actor with it, when what it printed last is not yet copied
        os._exit(0)
    current: tuple[float, ...] = ()
    written = cut = 0
    full = False

    def say_what_was_cut() -> None:
        if cut and not full:
            who = f"client {current[0]:.0f}" if current and current[0] >= 0 else "the program"
            _write(f"\nsim: {who} printed {written + cut} bytes; {cut} of them are left out\n".encode())

    while block := os.read(0, 2**16):
        now = _current(liveness, actor)
        if now != current:
            say_what_was_cut()
            current, written, cut = now, 0, 0
        if not full and os.fstat(1).st_size >= log_bytes:
            full = True
            line = f"sim: run.log has {log_bytes} bytes; what actor {actor} prints is left out from here on"
            _write(f"\n{line}\n".encode())
        kept = b"" if full else block[: max(0, client_bytes - written)]
        written, cut = written + len(kept), cut + len(block) - len(kept)
        _write(kept)
    say_what_was_cut()


def _write(content: bytes) -> None:
    with suppress(OSError):  # a full disk is reported by the tables, and the client must be able to go on
        while content:
            content = content[os.write(1, content) :]


if __name__ == "__main__":
    main()
