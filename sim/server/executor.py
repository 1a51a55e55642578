"""Has clients execute chunks through the engine: keeps their states, records failures, and stops the run at one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NoReturn

from flwr.common import RecordDict

from sim.engine.interface import Chunk, ChunkResult, ClientResult, Dispatcher
from sim.errors import ClientError, RunError, one_line
from sim.metrics import spelled
from sim.run_folder.records import Phase
from sim.server.results import Failures, PhaseResults, client_record
from sim.server.traffic import Traffic


class Executor:
    """The clients of a run, as round loop and grid call them.

    Attributes:
        states: client_id → what the client left last time.
        state_rounds: client_id → the round in which the client wrote its state of an algorithm.
    """

    def __init__(self, dispatcher: Dispatcher, *, on_client_error: str, traffic: Traffic | None = None) -> None:
        """
        Args:
            on_client_error: stop, or drop for a client that is left out.
            traffic: encodes what clients get, and counts bytes; None where that is not simulated.
        """
        self.dispatcher, self.traffic = dispatcher, traffic
        self.states: dict[int, RecordDict] = {}
        self.state_rounds: dict[int, int] = {}
        self.failures = Failures()
        self._stops = on_client_error == "stop"
        self._noted = False

    def execute(self, phase: Phase, server_round: int, chunks: Sequence[Chunk]) -> PhaseResults:
        """Have clients execute chunks; collect what comes back, in client order.

        Raises:
            RunError: a state of a client cannot be read or written.
            ClientError: a client raised, and ``on_client_error`` is stop, or no client is left that trains.
        """
        collected = PhaseResults()
        if self.state_rounds:
            chunks = [self._with_state_rounds(chunk) for chunk in chunks]
        for _, chunk_result in self._in_turns(phase, chunks):
            collected.spans += chunk_result.spans
            chunk_result.add_to(collected.total)
            for result in chunk_result.results:
                self.take(result, phase, server_round, collected)
        if phase == "fit" and not collected.succeeded and not all(result.lost for result in collected.clients):
            others = f"; so did all {len(collected.clients)} clients of the round"
            stop(collected.clients[0], phase, server_round, others)
        wrote = [result.client_id for result in collected.succeeded if result.wrote_state]
        if wrote:
            self.state_rounds = {**self.state_rounds, **dict.fromkeys(wrote, server_round)}
        return collected

    def execute_alone(self, chunk: Chunk) -> PhaseResults:
        """Have a client execute a chunk that belongs to no phase of a round.

        Raises:
            RunError, ClientError: see ``execute``.
        """
        collected = PhaseResults()
        for _, chunk_result in self.dispatch(chunk.phase, [chunk]):
            for result in chunk_result.results:
                self.take(result, chunk.phase, chunk.server_round, collected)
        return collected

    def dispatch(self, phase: Phase, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, ChunkResult]]:
        """Send chunks to the engine; yield what clients received and their results, in order, with the bytes of both.

        What came back is recorded by ``take``.
        """
        traffic = self.traffic
        sent = chunks if traffic is None else traffic.sent(phase, chunks)
        for chunk, chunk_result in zip(sent, self.dispatcher.execute(sent), strict=True):
            bytes_down = None if traffic is None else traffic.bytes_down(chunk)
            for result in chunk_result.results:
                # A client that failed has sent nothing, and one that evaluated nothing but metrics.
                result.bytes_down, result.bytes_up = bytes_down, None if traffic is None else result.bytes_up or 0
            yield chunk, chunk_result

    def _in_turns(self, phase: Phase, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, ChunkResult]]:
        """Have the next message of a client executed when what it left at the one before is there."""
        for repeat, group in groupby(chunks, key=lambda chunk: chunk.tasks[0].repeat):
            turn = list(group)
            if repeat:
                turn = [
                    replace(chunk, tasks=[replace(task, state=self.states.get(task.client_id)) for task in chunk.tasks])
                    for chunk in turn
                ]
            yield from self.dispatch(phase, turn)

    def take(self, result: ClientResult, phase: Phase, server_round: int, collected: PhaseResults) -> None:
        """Record what came back from a client, and keep its state.

        Raises:
            RunError, ClientError: see ``execute``.
        """
        if result.error is None and result.state is not None:
            self._keep_state(result.client_id, result.state)
        if result.stops_run:
            raise RunError(f"round {server_round} ({phase}): {one_line(result.error or '')}")
        if result.error is not None:
            self.failures.add(result, phase, server_round)
            if self._stops and not result.lost:
                stop(result, phase, server_round)
        self._note_accuracy(result)
        collected.clients.append(result)
        collected.records.append(client_record(result, phase, server_round))

    def _with_state_rounds(self, chunk: Chunk) -> Chunk:
        tasks = [replace(task, state_round=self.state_rounds.get(task.client_id)) for task in chunk.tasks]
        return replace(chunk, tasks=tasks)

    def _keep_state(self, client_id: int, state: RecordDict) -> None:
        if any(state.values()):
            self.states[client_id] = state
        else:
            self.states.pop(client_id, None)

    def _note_accuracy(self, result: ClientResult) -> None:
        value = spelled(result.metrics, "accuracy")
        if result.accuracy_unit and value is not None and result.accuracy is None and not self._noted:
            self._noted = True
            in_percent = "" if math.isnan(value) else "; --accuracy-in-percent says that it is in percent"
            logging.getLogger("sim").warning(
                "note: client %s returned accuracy %g, which is no fraction, so that it stands in metrics.csv only%s",
                result.client_id,
                value,
                in_percent,
            )

    def log_summary(self) -> None:
        """Log one line per kind of failure."""
        for line in self.failures.summary():
            logging.getLogger("sim").warning("%s", line)


def stop(result: ClientResult, phase: Phase, server_round: int, more: str = "") -> NoReturn:
    """Stop a run at a client that raised.

    Raises:
        ClientError: always.
    """
    if "Expected more than 1 value per channel" in (result.error or ""):
        more += "; its last batch is a single example, which BatchNorm cannot take: another batch size "
        more += "(--batch-size, or the program's own) avoids that"
    raise ClientError(
        f"client {result.client_id} raised in round {server_round} ({phase}): {one_line(result.error or '')}{more}"
    ) from result.cause
