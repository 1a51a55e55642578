"""What one client of a run takes on this machine, measured in processes like those of a run."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

from flwr.common import NDArrays, Scalar

from sim.client.runtime import ClientSpec
from sim.errors import EngineError
from sim.seeds import Purpose, generator
from sim.setup.prepare import Prepared, fit_config

_MOST_CLIENTS = 256


@dataclass(frozen=True)
class Order:
    """What a process is to measure: clients from the first on, until ``seconds`` have passed."""

    program: ClientSpec
    num_clients: int
    weights: NDArrays
    settings: dict[str, Scalar]
    summed: bool
    clients: list[int]
    evaluates: bool
    seconds: float

    @classmethod
    def of(cls, prepared: Prepared, number: int, seconds: float) -> Order:
        """Choose clients of a run at random; process ``number`` gets others than its neighbours."""
        config = prepared.config
        order = generator(config.seed, Purpose.MEASURING, number).permutation(config.num_clients)
        return cls(
            prepared.program,
            config.num_clients,
            prepared.initial_weights,
            {"server_round": 1, **fit_config(config, 1)},
            prepared.chosen.averages,
            [int(client_id) for client_id in order[:_MOST_CLIENTS]],
            config.num_evaluate_clients > 0,
            seconds,
        )


@dataclass(frozen=True)
class Measurement:
    """What one process measured: seconds of each client with its examples; of an evaluation; of a part of the central
    test; how many CPUs it kept busy; memory of its own at its peak; GPU memory that was still free then."""

    fits: list[tuple[int, float]]
    evaluate_seconds: float
    test_seconds: float
    busy_cpus: float
    own_bytes: int
    free_gpu_bytes: int | None


def measure(orders: Sequence[Order]) -> list[Measurement]:
    """Execute orders at the same time, one process each.

    Raises:
        EngineError: a process failed; the message has its last line.
    """
    command = [sys.executable, "-m", "sim.measure.process"]
    with ExitStack() as stack:
        # Not a pipe, which a client that prints much would fill, and wait.
        said = stack.enter_context(tempfile.TemporaryFile())
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said))
            for _ in orders
        ]
        try:
            for process, order in zip(processes, orders, strict=True):
                _tell(process, pickle.dumps(order))
            for process in processes:
                _expect(process, b"ready\n")
            for process in processes:
                _tell(process, b"go\n")
            return [_answer(process) for process in processes]
        except _FailedError as error:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            last = next((line.strip() for line in reversed(lines) if line.strip()), str(error))
            raise EngineError(f"a client could not be measured: {last}") from None
        finally:
            for process in processes:
                process.kill()


class _FailedError(Exception):
    """A process ended before it answered."""


def _tell(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(content)
        process.stdin.flush()
    except BrokenPipeError:
        _fail(process)


def _expect(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != line:
        _fail(process)


def _answer(process: subprocess.Popen[bytes]) -> Measurement:
    assert process.stdout is not None
    content = process.stdout.read()
    if process.wait() != 0:
        _fail(process)
    found: Measurement = pickle.loads(content)
    return found


def _fail(process: subprocess.Popen[bytes]) -> NoReturn:
    raise _FailedError(f"exit code {process.wait()}")
