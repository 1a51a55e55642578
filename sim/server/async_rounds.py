"""Executes the schedule of an asynchronous run: each round is one new version of the model.

The loop over the rounds is that of ``sim.server.rounds``, which asks for one version after another.

Clients that are at work at the same time do not depend on each other, so that they are executed together, as soon as
the versions that they began with are there. Their updates are used in the order of the schedule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from flwr.common import NDArrays, RecordDict

from sim.client.torch_client import fit_settings
from sim.engine.aggregation import cut, in_dtypes_of, same_shapes
from sim.engine.interface import Chunk, ChunkResult, ClientResult, Task
from sim.errors import RunError
from sim.run_folder.records import ClientRecord
from sim.server.async_rules import Arrived, rule_of
from sim.server.async_schedule import AsyncSchedule, Start, Version
from sim.server.executor import Executor, stop
from sim.server.prepared_run import Prepared
from sim.server.results import PhaseResults
from sim.server.run_sampler import RunSampler
from sim.server.virtual_rounds import time_of, unfinished, with_virtual_time

_MOST_BYTES_AHEAD = 2**30  # of updates that wait for their turn


@dataclass(frozen=True)
class _Waiting:
    """What waits for its turn.

    Attributes:
        begun: the weights from which the client began.
        state: what the client had left before.
    """

    result: ClientResult
    begun: NDArrays
    state: RecordDict | None


class AsyncRounds:
    """The versions of a run, one after another."""

    def __init__(self, prepared: Prepared, executor: Executor) -> None:
        """
        Args:
            executor: keeps the states of the clients, each from the moment at which its update arrives.
        """
        config = prepared.config
        self._config, self._executor, self._layout = config, executor, prepared.layout
        self._sizes = prepared.known_sizes
        self._sends_settings = prepared.dataset is not None
        self._rule = rule_of(config)
        self._versions = _versions(prepared)
        self._ahead: deque[Version] = deque()  # versions that are not made yet
        self._end: RunError | None = None  # why no version comes after these
        self._made: Version | None = None  # the last one
        self._weights: dict[int, NDArrays] = {0: prepared.initial_weights}  # of versions that clients began with
        self._results: dict[int, _Waiting] = {}  # by the number of the start
        self._batch: deque[tuple[int, RecordDict | None]] = deque()  # starts that are being executed, and their states
        self._executing: Iterator[tuple[Chunk, ChunkResult]] = iter(())  # what comes back from them
        self._num_failed = 0  # clients in succession that raised

    @property
    def seconds(self) -> float:
        """Virtual seconds since the start of the run."""
        return 0.0 if self._made is None else self._made.seconds

    def set_weights(self, server_round: int, weights: NDArrays) -> None:
        """Take the weights of the newest version."""
        self._weights[server_round] = weights
        at_work = () if self._made is None else self._made.at_work
        needed = {start.version for start in at_work if start.is_used and self._counts(start, server_round)}
        self._weights = {number: held for number, held in self._weights.items() if number in {*needed, server_round}}

    def _counts(self, start: Start, newest: int) -> bool:
        most = self._config.max_staleness
        return most is None or newest - start.version <= most

    def execute(self, server_round: int) -> tuple[PhaseResults, list[ClientRecord]]:
        """Collect the updates that make a version.

        Returns:
            What arrived, whose sum stands for the mean of the clients; and the records of all clients that ended.

        Raises:
            RunError, ClientError: see ``Executor.execute``; or no client is ever online again.
        """
        version = self._next()
        # An evaluation may have changed what a client left, since it was executed ahead.
        self._results = {number: each for number, each in self._results.items() if self._is_valid(each)}
        collected, records = PhaseResults(), []
        arrived: list[Arrived] = []
        for position, start in enumerate(version.ended):
            if not start.is_used:
                records.append(replace(unfinished(start.participation, server_round), staleness=start.staleness))
                continue
            while start.number not in self._results:
                if not self._receive(collected):
                    self._compute(version.ended[position:], server_round)
            waiting = self._results.pop(start.number)
            result = waiting.result
            self._executor.take(result, "fit", server_round, collected)
            self._count_failures(result, server_round)
            if result.wrote_state:
                rounds = self._executor.state_rounds
                self._executor.state_rounds = {**rounds, result.client_id: start.number + 1}
            records += [
                replace(record, staleness=start.staleness)
                for record in with_virtual_time(collected.records[-1:], [start.participation])
            ]
            if result.error is None:
                arrived.append(_arrived(start, result, waiting.begun))
        self._made = version
        if arrived:
            newest = self._weights[server_round - 1]
            untrained = self._layout.untrained
            mean = self._rule.mean(newest, arrived, untrained)
            collected.total.add(mean, sum(each.num_examples for each in arrived) or 1)
            collected.total.dtypes = [array.dtype for array in newest]
        return collected, records

    def _is_valid(self, waiting: _Waiting) -> bool:
        state = self._executor.states.get(waiting.result.client_id)
        return waiting.state is state or waiting.state == state

    def _count_failures(self, result: ClientResult, server_round: int) -> None:
        """Stop the run where as many clients in succession have raised as work at the same time, or make a version.

        Raises:
            ClientError: they have.
        """
        self._num_failed = 0 if result.error is None else self._num_failed + 1
        if self._num_failed >= max(self._config.num_concurrent, self._rule.num_arrivals):
            stop(result, "fit", server_round, f"; so did the {self._num_failed - 1} clients before")

    def _next(self) -> Version:
        if not self._ahead and not self._look_ahead():
            assert self._end is not None
            raise self._end
        return self._ahead.popleft()

    def _look_ahead(self) -> bool:
        """Take one more version from the schedule; return False if there is none, which matters when its turn comes."""
        if self._end is None:
            try:
                self._ahead.append(next(self._versions))
            except RunError as error:
                self._end = error
        return self._end is None

    def _upcoming(self, rest: Sequence[Start], server_round: int) -> Iterator[Start]:
        """Yield the starts whose updates come next, as far as this run goes."""
        yield from rest
        for number in range(self._config.num_rounds - server_round):
            if number == len(self._ahead) and not self._look_ahead():
                return
            yield from self._ahead[number].ended

    def finish(self) -> None:
        """Wait for the clients that are being executed, so that the engine is free for something else."""
        while self._receive(PhaseResults()):
            pass

    def _receive(self, collected: PhaseResults) -> bool:
        """Take the next results of what is being executed; return False if there are none."""
        for chunk, chunk_result in self._executing:
            collected.spans += chunk_result.spans
            for result in chunk_result.results:
                number, state = self._batch.popleft()
                self._results[number] = _Waiting(result, chunk.weights, state)
            return True
        return False

    def _compute(self, rest: Sequence[Start], server_round: int) -> None:
        """Begin to execute the first of ``rest``, and what else can be executed now of what comes next.

        The versions are made while the later ones of these clients are at work.
        """
        newest = self._weights[server_round - 1]
        each = max(1, sum(array.nbytes for array in newest))
        most = max(1, min(self._config.num_concurrent, _MOST_BYTES_AHEAD // each))
        batch: list[Start] = []
        seen: set[int] = set()
        used = 0
        for start in self._upcoming(rest, server_round):
            if not start.is_used:
                continue
            used += 1
            # A client that comes twice needs the state that it has after the first time.
            if start.client_id not in seen and start.version < server_round and start.number not in self._results:
                batch.append(start)
            seen.add(start.client_id)
            if used >= most:
                break
        by_version: dict[int, list[Start]] = {}  # what is needed first is in front
        for start in batch:
            by_version.setdefault(start.version, []).append(start)
        chunks = []
        for version, starts in by_version.items():
            starts.sort(key=lambda start: start.number)
            self._batch.extend((start.number, self._executor.states.get(start.client_id)) for start in starts)
            tasks = [self._task(start) for start in starts]
            weights = self._weights[version]
            chunks += [
                Chunk("fit", version + 1, part, weights, summed=False, untrained=self._layout.untrained)
                for part in cut(tasks, self._config.vectorized_clients)
            ]
        self._executing = self._executor.dispatch("fit", chunks)

    def _task(self, start: Start) -> Task:
        client_id, number = start.client_id, start.version + 1
        settings: dict[str, Any] = dict(self._rule.client_settings)
        if self._sends_settings:
            settings = {"server_round": number, **fit_settings(self._config, number), **settings}
        return Task(
            client_id,
            settings,
            self._executor.states.get(client_id),
            int(self._sizes[client_id]) if len(self._sizes) else 0,
            state_round=self._executor.state_rounds.get(client_id),
            state_number=start.number + 1,
            repeat=start.repeat,
        )

    def state(self) -> dict[str, Any]:
        """Return what belongs to a checkpoint: the clients at work, and the versions that they began with."""
        at_work = () if self._made is None else self._made.at_work
        queue = [
            [start.number, start.client_id, start.version, start.participation.start, start.participation.end]
            for start in at_work
        ]
        return {
            "now": self.seconds,
            "at_work": queue,
            "versions": self._weights,
            "num_failed": self._num_failed,
        }

    def restore(self, state: Mapping[str, Any], server_round: int) -> None:
        """Go to the version after which ``state`` was kept.

        Raises:
            RunError: this schedule is another one.
        """
        for _ in range(server_round):
            self._made = next(self._versions)
        known = self.state()
        if [known["now"], known["at_work"]] != [state["now"], state["at_work"]]:
            raise RunError(f"round {server_round}: the clients at work are others than in the checkpoint")
        self._num_failed = int(state["num_failed"])
        like = next(iter(self._weights.values()))
        self._weights = {
            int(number): in_dtypes_of(like, [np.asarray(array) for array in arrays]) if like else list(arrays)
            for number, arrays in state["versions"].items()
        }


def states_after(prepared: Prepared, server_round: int) -> dict[int, int]:
    """Return for each client the number under which it wrote its newest valid state, if it wrote one."""
    found: dict[int, int] = {}
    for version in islice(_versions(prepared), server_round):
        found.update({start.client_id: start.number + 1 for start in version.ended if start.is_used})
    return found


def _versions(prepared: Prepared) -> Iterator[Version]:
    config, time = prepared.config, time_of(prepared)
    assert time is not None, "asynchronous rounds happen in virtual time"
    sampler = RunSampler(config, prepared.known_sizes)
    return AsyncSchedule(config, time, sampler, rule_of(config).num_arrivals).versions()


def _arrived(start: Start, result: ClientResult, begun: NDArrays) -> Arrived:
    trained = result.weights or []
    if not same_shapes(trained, begun):
        raise RunError(
            f"client {start.client_id} returned arrays of shapes {[array.shape for array in trained]}, but an "
            f"asynchronous strategy needs those that it was sent, {[array.shape for array in begun]}"
        )
    return Arrived(trained, begun, start.staleness or 0, result.num_examples)
