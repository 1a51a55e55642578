"""One of the processes that ``sim.measure.measure_client`` starts.

It reads a ``MeasurementTask``, reports when it is ready, and writes a ``Measurement`` once all processes are ready.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from sim.client.runtime import ClientRuntime
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ClientResult, Task, TestSlice
from sim.engine.ray import actor  # noqa: F401 - what an actor imports is part of its memory
from sim.errors import EngineError
from sim.measure.measure_client import Measurement, MeasurementTask
from sim.run_folder.records import Phase


def _execute(task: MeasurementTask) -> Iterator[Measurement | None]:
    """Set up, warm up, yield, measure: the body of a process."""
    keeps_state = task.spec.keeps_state or getattr(task.spec, "algorithm", None) is not None
    states = tempfile.TemporaryDirectory() if keeps_state else None  # until the process ends
    spec = task.spec if states is None else replace(task.spec, states_folder=Path(states.name))
    worker = Worker(spec, task.num_clients, task.spec.seed)
    runtime = worker.runtime
    wrote: set[int] = set()  # ids of clients
    size = task.spec.vectorized_clients

    def run(phase: Phase, number: int, settings: dict[str, Any]) -> list[ClientResult]:
        ids = [task.clients[(number * size + i) % len(task.clients)] for i in range(size)]
        tasks = [
            Task(client_id, settings, state_round=1 if client_id in wrote else None)
            for client_id in (ids if phase == "fit" else ids[:1])
        ]
        weights, is_summed = [*task.weights, *task.sent], task.summed and phase == "fit"
        results = worker.run(Chunk(phase, 1, tasks, weights, is_summed, num_extras=len(task.sent))).results
        for result in results:
            if result.error is not None:
                raise EngineError(f"client {result.client_id}: {result.error}")
        wrote.update(result.client_id for result in results if result.wrote_state)
        return results

    slices = runtime.test_slices() if isinstance(runtime, ClientRuntime) else []
    run("fit", 0, {**task.settings, "local_epochs": 1} if "local_epochs" in task.settings else task.settings)
    for first, last in slices[:1]:  # there is none without a central test
        worker.test(task.weights, TestSlice(0, first, last))
    yield None
    fits: list[tuple[int, float]] = []
    start, used = time.perf_counter(), time.process_time()
    number = 0
    while not fits or time.perf_counter() - start < task.seconds:
        number += 1
        fits += [(result.num_examples, result.seconds) for result in run("fit", number, task.settings)]
    busy = (time.process_time() - used) / (time.perf_counter() - start)
    num_evaluated = min(5, len(task.clients)) if task.evaluates else 0
    evaluations = [run("evaluate", i, task.evaluate_settings)[0].seconds for i in range(num_evaluated)]
    start = time.perf_counter()
    for first, last in slices[:4]:
        worker.test(task.weights, TestSlice(0, first, last))
    test_seconds = (time.perf_counter() - start) / max(1, len(slices[:4]))
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_initialized() else None
    own = psutil.Process().memory_full_info().uss
    yield Measurement(fits, float(np.mean(evaluations or [0])), test_seconds, busy, int(own), free)


def _main() -> None:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a client prints must not mix with the output
    steps = _execute(pickle.load(sys.stdin.buffer))
    try:
        next(steps)
        output.write(b"ready\n")
        output.flush()
        sys.stdin.buffer.readline()
        output.write(pickle.dumps(next(steps)))
        output.flush()
    except EngineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
