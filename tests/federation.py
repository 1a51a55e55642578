"""A federation of real processes: one server, clients beside it, their output in files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sim.run_folder.folder import Run

DEADLINE_SECONDS = 300  # only for what would never end

# Each process is forked from one that has imported what all of them need, which takes 5 s of a CPU, and has done
# nothing else. scripts/federation.sh starts the same commands as a user does.
_LATE = ("flwr_datasets.partitioner", "matplotlib.figure", "sklearn.datasets")  # imported where they are needed
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["sim.cli", "sim.network.server", "sim.network.client", *_LATE])


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _execute(words: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    """Do in this process what ``python -m sim`` with these words does in its own."""
    from sim.cli import entry

    output = os.open(log, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sim", *words]
    entry()


class Program:
    """One ``sim`` command under way; what it prints is read from its file."""

    def __init__(self, folder: Path, name: str, words: list[str]) -> None:
        self.log = folder / f"{name}.log"
        self.log.touch()
        arguments = (words, folder, self.log, dict(os.environ))
        self.process = _PROCESSES.Process(target=_execute, args=arguments)
        self.process.start()

    @property
    def lines(self) -> list[str]:
        """What it has printed so far."""
        return self.log.read_text().splitlines()

    def wait_for(self, text: str) -> None:
        """Return when a line with ``text`` was printed."""
        wait_until(lambda: any(text in line for line in self.lines) or not self.process.is_alive())
        assert any(text in line for line in self.lines), self.lines

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        self.process.join(DEADLINE_SECONDS)
        assert self.process.exitcode is not None, "took too long"
        return self.process.exitcode


class Federation:
    """A server at a free port, and clients as they are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.programs: list[Program] = []

    def server(self, *words: str) -> Program:
        """Start the server; its run is called ``served``."""
        return self._start("server", ["server", "--address", self.address, "--name", "served", *words])

    def client(self, client_id: int, *words: str, name: str = "") -> Program:
        """Start a client."""
        place = ["--address", self.address, "--client-id", str(client_id)]
        return self._start(name or f"client{client_id}", ["client", *place, *words])

    @property
    def run(self) -> Run:
        """The server's run folder."""
        return Run(self.folder / "results" / "served")

    def _start(self, name: str, words: list[str]) -> Program:
        program = Program(self.folder, name, words)
        self.programs.append(program)
        return program

    def kill(self) -> None:
        """Leave no process behind."""
        for program in self.programs:
            program.process.kill()
            program.process.join()


def wait_until(is_true: Callable[[], bool]) -> None:
    """Return when ``is_true()``; fail when that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)
