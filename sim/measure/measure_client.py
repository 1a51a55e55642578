"""Measures what one client of a run takes on this machine, in processes like those of a run."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from flwr.common import NDArrays

from sim.client.flower_program import FlowerSpec
from sim.client.runtime import ClientSpec
from sim.client.torch_client import fit_settings
from sim.errors import ConfigError, EngineError, described
from sim.run_folder.records import Phase
from sim.seeds import Purpose, generator, seeded
from sim.server.make_adapter import adapter_of
from sim.server.prepared_run import Prepared
from sim.server.virtual_clients import virtual_clients

_MOST_CLIENTS = 256


@dataclass(frozen=True)
class MeasurementTask:
    """What a process has to measure: clients from the first on, until ``seconds`` have passed.

    Attributes:
        sent: what the server part of an algorithm sends beside the weights.
        settings, evaluate_settings: what a client gets with the instruction to train, and to evaluate.
    """

    spec: ClientSpec | FlowerSpec
    num_clients: int
    weights: NDArrays
    sent: NDArrays
    settings: dict[str, Any]
    evaluate_settings: dict[str, Any]
    summed: bool
    clients: list[int]
    evaluates: bool
    seconds: float

    @classmethod
    def of(cls, prepared: Prepared, number: int, seconds: float) -> MeasurementTask:
        """Choose clients of a run at random; each process ``number`` gets others.

        Raises:
            ConfigError: only the ServerApp of a Flower app knows what its clients do.
            EngineError: the strategy raised.
        """
        config = prepared.config
        if prepared.strategy is None:
            raise ConfigError(
                f"--app {config.app}: only its ServerApp knows what it will ask of clients, so that none can be "
                "measured alone; sim app with few rounds shows what a round takes"
            )
        evaluates = config.num_evaluate_clients > 0 or config.final_evaluate
        tuning: dict[str, Any] = {}
        if prepared.dataset is None:
            settings = _instruction(prepared, "fit")
            tuning = _instruction(prepared, "evaluate") if evaluates else {}
        else:
            settings = {"server_round": 1, **fit_settings(config, 1)}
            if prepared.spec.keeps_state or prepared.torch_spec.algorithm is not None:
                tuning = settings  # clients of an algorithm may train before they evaluate
        algorithm = prepared.strategy.algorithm
        order = generator(config.seed, Purpose.MEASURING, number).permutation(config.num_clients)
        return cls(
            prepared.spec,
            config.num_clients,
            prepared.initial_weights,
            [] if algorithm is None else algorithm.sent(),
            settings,
            tuning,
            prepared.averages,
            [int(client_id) for client_id in order[:_MOST_CLIENTS]],
            evaluates,
            seconds,
        )


def _instruction(prepared: Prepared, phase: Phase) -> dict[str, Any]:
    """Return what the strategy of a Flower program sends to its first client in round 1, beside the weights."""
    built, config = prepared.strategy, prepared.config
    assert built is not None
    try:
        with seeded(config.seed, Purpose.MEASURING):
            adapter = adapter_of(prepared, built, virtual_clients(config.num_clients))
            adapter.set_weights(prepared.initial_weights)
            chunks = adapter.configure(phase, 1, {})
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EngineError(f"--strategy {config.strategy}: raised {described(error)}") from error
    return dict(chunks[0].tasks[0].config) if chunks else {}


@dataclass(frozen=True)
class Measurement:
    """What one process measured.

    Attributes:
        fits: (examples, seconds) of each client that was trained.
        evaluate_seconds: of one client's evaluation.
        test_seconds: of one slice of the central test.
        busy_cpus: number of CPUs that the process kept busy.
        own_bytes: memory of the process alone, at its peak.
        free_gpu_bytes: GPU memory that was free at that moment; None without a GPU.
    """

    fits: list[tuple[int, float]]
    evaluate_seconds: float
    test_seconds: float
    busy_cpus: float
    own_bytes: int
    free_gpu_bytes: int | None


def measure(tasks: Sequence[MeasurementTask]) -> list[Measurement]:
    """Execute tasks at the same time, one process each.

    Raises:
        EngineError: a process failed; the message has its last line.
    """
    command = [sys.executable, "-P", "-m", "sim.measure.measuring_process", *sys.argv[1:]]
    with ExitStack() as stack:
        # A client that prints much would fill a pipe and block.
        said = stack.enter_context(tempfile.TemporaryFile())
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said))
            for _ in tasks
        ]
        try:
            for process, order in zip(processes, tasks, strict=True):
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
