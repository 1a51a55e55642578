"""Assigns chunks to Ray actors, and recovers when an actor dies or hangs."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from flwr.common import NDArrays
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayActorError, RayError

from sim.engine.aggregation import WeightedSum
from sim.engine.interface import Chunk, ChunkResult, ClientResult, RetryPolicy, Task, TestSlice
from sim.engine.liveness import Liveness
from sim.engine.ray.actor import INLINE_BYTES
from sim.engine.ray.scheduling import WorkItem, by_work, bytes_of, in_items, joined, least_clients, next_message
from sim.errors import EngineError, RunError
from sim.run_folder.records import Phase
from sim.training.local import TestSums

_DIED = (RayActorError, OutOfMemoryError)  # Ray ends the largest process when the machine's memory runs out
_START_SECONDS = 150.0  # an actor that Ray has not started by then never starts
_SILENT_SECONDS = 30.0  # between the end of an actor's last client and the arrival of its result
_LOOK_SECONDS = 1.0  # between two looks at what actors do, while the driver waits for them
_MOST_BYTES = INLINE_BYTES // 4  # of weights that travel in a message
_SPARE_DEATHS = 3  # beyond one per actor: deaths without a known client after which the run gives up


@dataclass
class _Message:
    """Work items that an actor executes; ``handle`` distinguishes the actor from one that replaces it."""

    items: list[WorkItem]
    actor: int
    handle: Any
    sent: float = field(default_factory=time.monotonic)

    @property
    def clients(self) -> list[int]:
        """Ids of the clients in the message."""
        return [task.client_id for item in self.items for task in item.chunk.tasks]


class RayDispatcher:
    """Sends work items to free actors, and replaces actors that die."""

    def __init__(
        self,
        actors: Sequence[Any],
        start_actor: Callable[[int], Any],
        liveness: Liveness,
        retry_policy: RetryPolicy,
        spills: Callable[[], bool],
        check_ray: Callable[[], None],
        *,
        vectorized: bool,
        on_this_machine: bool = True,
    ) -> None:
        """
        Args:
            start_actor: starts an actor in the place of the one with this number.
            spills: returns whether Ray has written objects to the disk.
            check_ray: raises EngineError if Ray's own programs have ended.
            vectorized: the clients of a chunk are trained in one computation, so that chunks are not cut.
            on_this_machine: all actors are, so that each writes what it does where the driver reads it.
        """
        self.actors = list(actors)
        self.start_actor = start_actor
        self.liveness = liveness
        self.retry_policy = retry_policy
        self.spills = spills
        self.check_ray = check_ray
        self.vectorized = vectorized
        self.on_this_machine = on_this_machine
        self._started = [time.monotonic()] * len(self.actors)
        self._spilled = False
        self._held: list[NDArrays | None] = [None] * len(self.actors)  # the weights that each actor was sent last
        self._stored: list[tuple[NDArrays, Any]] = []  # weights and where they are in Ray's shared memory
        self._seconds: dict[Phase, float] = {}
        self._deaths: Counter[int] = Counter()  # client_id → deaths of actors that executed it
        self._notes: set[str] = set()
        self._spare_deaths = _SPARE_DEATHS + len(self.actors)

    def wait_until_ready(self) -> None:
        """Virtual clients are always there."""

    def execute(self, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Yield results in the order of ``chunks``.

        A message carries several work items, fewer towards the end of the round: few messages are sent, and no actor
        has much work left when the others are done. Which items share a message changes no sum.

        Raises:
            EngineError: actors die one after another before they begin a client.
        """
        phase = chunks[0].phase
        divisible = phase == "evaluate" or not self.vectorized
        seconds = self._seconds.get(phase)
        items = in_items(chunks, len(self.actors), divisible=divisible, seconds_per_client=seconds)
        waiting = by_work(items)
        least = least_clients(sum(len(chunk.tasks) for chunk in chunks), len(self.actors), seconds)
        running: dict[Any, _Message] = {}
        self._stored = [pair for pair in self._stored if any(pair[0] is chunk.weights for chunk in chunks)]
        self._deaths.clear()
        took: list[float] = []
        for chunk_items in items:
            while True:
                self._send(waiting, running, least)
                done = all(item.result for item in chunk_items)
                # Also with a result available: an actor that has finished gets work before that result is folded.
                if not self._collect(running, items, waiting, wait=not done) and done:
                    break
            chunk_result = joined(chunk_items)
            for item in chunk_items:
                item.result = None
            took += [result.seconds for result in chunk_result.results]
            yield chunk_result
        self._seconds[phase] = sum(took) / len(took)
        if not self._spilled and self.spills():
            self._spilled = True
            logging.getLogger("sim").warning(
                "Ray's shared memory is full and spills to the disk, which is slow; fewer clients per round or "
                "more memory would avoid it"
            )

    def _send(self, waiting: deque[WorkItem], running: dict[Any, _Message], least: int) -> None:
        load = dict.fromkeys(range(len(self.actors)), 0)
        for message in running.values():
            load[message.actor] += 1
        # A second message waits at each actor, so that it does not idle between two; not at the end of the round,
        # where another actor could execute it.
        while waiting and min(load.values()) < (2 if len(waiting) > len(load) else 1):
            items = next_message(waiting, len(load), least, _MOST_BYTES)
            actor = min(load, key=load.__getitem__)
            load[actor] += 1
            chunks, sent, weights = [item.chunk for item in items], None, items[0].chunk.weights
            if all(chunk.weights is weights for chunk in chunks):  # otherwise they are small and stay in the chunks
                sent = None if self._held[actor] is weights else self._packed(weights)
                self._held[actor] = weights
                chunks = [replace(chunk, weights=[]) for chunk in chunks]
            handle = self.actors[actor]
            running[handle.run_chunks.remote(chunks, sent, actor)] = _Message(items, actor, handle)

    def _packed(self, weights: NDArrays) -> Any:
        """Return weights as an argument: in the message if they are small, otherwise once in Ray's shared memory.

        Raises:
            EngineError: there is no room for them.
        """
        if bytes_of(weights) <= _MOST_BYTES:
            return weights
        for held, reference in self._stored:
            if held is weights:
                return reference
        try:
            reference = ray.put(weights)
        except RayError as error:
            raise EngineError(f"the weights cannot be sent to the clients: {last_line(error)}") from error
        self._stored.append((weights, reference))
        return reference

    def _collect(
        self, running: dict[Any, _Message], items: list[list[WorkItem]], waiting: deque[WorkItem], *, wait: bool
    ) -> bool:
        """Receive the results of one message, if they are there or with ``wait``; return whether there were any."""
        if not running:
            return False
        ready, _ = ray.wait(list(running), num_returns=1, timeout=self._look_seconds if wait else 0.0)
        if wait and not ready:
            self.check_ray()
        for reference in ready:
            message = running.pop(reference)
            try:
                results = ray.get(reference)
            except _DIED as error:
                first, *others = self._lost_with(message, running)
                self._recover(first, running, items, waiting, _why(error))
                for other in others:
                    waiting.extendleft(reversed(other.items))
            except RayError as error:
                raise EngineError(f"round {message.items[0].chunk.server_round}: {last_line(error)}") from error
            else:
                self._take(message, results)
        if wait:  # also while other actors work
            self._end_hanging(running, items, waiting)
        return bool(ready)

    def _take(self, message: _Message, results: list[ChunkResult]) -> None:
        self._spare_deaths = _SPARE_DEATHS + len(self.actors)
        for item, result in zip(message.items, results, strict=True):
            item.result = result
            for note in result.notes:
                if note not in self._notes:  # the other actors may say the same
                    self._notes.add(note)
                    logging.getLogger("sim").warning("%s", note)

    def _lost_with(self, message: _Message, running: dict[Any, _Message]) -> list[_Message]:
        """Return the messages that were lost with an actor; the first is the one that it was executing when it died.

        Ray reports them in any order, so that ``message`` may be one that the actor had not begun.
        """
        lost = [message]
        if self.actors[message.actor] is message.handle:  # otherwise it was replaced, and they are known
            for reference in [reference for reference, other in running.items() if other.handle is message.handle]:
                other = running.pop(reference)
                try:
                    self._take(other, ray.get(reference))
                except _DIED:
                    lost.append(other)
        current = self.liveness.current(message.actor)
        executed = None if current is None else current.client_id
        return sorted(lost, key=lambda each: (executed not in each.clients, each.sent))

    def _end_hanging(self, running: dict[Any, _Message], items: list[list[WorkItem]], waiting: deque[WorkItem]) -> None:
        sent: dict[int, float] = {}
        for message in running.values():
            if message.handle is self.actors[message.actor]:
                sent[message.actor] = min(message.sent, sent.get(message.actor, message.sent))
        for actor, since in sent.items():
            limit = self._exceeded(actor, since)
            if limit is None:
                continue
            current, handle = self.liveness.current(actor), self.actors[actor]
            client = current.client_id if current is not None and current.client_id >= 0 else None
            for reference, message in list(running.items()):
                # With a client not simply the first message, whose results may be on their way.
                if message.handle is handle and (client is None or client in message.clients):
                    if ray.wait([reference], timeout=0)[0]:
                        break  # it has arrived while the driver was busy
                    self._kill(actor)
                    del running[reference]
                    reason = f"Timeout: no end after {limit:g} s"
                    self._recover(message, running, items, waiting, reason, hung=client is not None)
                    break

    @property
    def _look_seconds(self) -> float:
        return min(_LOOK_SECONDS, (self.retry_policy.client_timeout or math.inf) / 4)

    def _exceeded(self, actor: int, since: float) -> float | None:
        """Return the limit in seconds that an actor has exceeded; None if it has not.

        Args:
            since: ``time.monotonic()`` when it was asked for what it has not returned.

        Raises:
            EngineError: Ray does not start it.
        """
        sign = self.liveness.last_sign(actor)
        now = time.monotonic()
        if sign is None:
            if self.on_this_machine and now - max(since, self._started[actor]) > _START_SECONDS:
                raise EngineError(
                    f"Ray has not started process {actor} within {_START_SECONDS:g} s; is there enough memory?"
                )
            return None
        current = self.liveness.current(actor)
        if current is not None and current.client_id >= 0:
            limit = self.retry_policy.client_timeout
            return limit if limit is not None and current.seconds > limit * current.num_clients else None
        if current is None:  # its result should be on its way: it was stopped, or lost its connection to Ray
            return _SILENT_SECONDS if now - max(since, sign[0]) > _SILENT_SECONDS else None
        limit = self.retry_policy.other_timeout
        return limit if limit is not None and now - max(since, sign[0]) > limit else None

    def _kill(self, actor: int) -> None:
        """End an actor, whatever it is executing."""
        sign = self.liveness.last_sign(actor)
        ray.kill(self.actors[actor])
        with suppress(OSError):
            if sign is not None:
                os.kill(sign[1], signal.SIGKILL)  # Ray asks the process, which may be unable to answer

    def _recover(
        self,
        message: _Message,
        running: dict[Any, _Message],
        items: list[list[WorkItem]],
        waiting: deque[WorkItem],
        reason: str,
        *,
        hung: bool = False,
    ) -> None:
        """Replace the actor that had ``message``, and queue again what it did not finish.

        Args:
            hung: a client did not end in time, and is not tried again.
        """
        actor = message.actor
        if self.actors[actor] is not message.handle:  # the second message of an actor that is replaced already
            waiting.extendleft(reversed(message.items))
            return
        server_round = message.items[0].chunk.server_round
        culprit = self._culprit(message)
        if culprit is None:
            self._spare_deaths -= 1
            if self._spare_deaths < 0:
                raise EngineError(f"round {server_round}: processes die before they begin a client: {reason}")
        else:
            self._deaths[culprit] += 1
        given_up = culprit is not None and (hung or self._deaths[culprit] > self.retry_policy.max_retries)
        logging.getLogger("sim").warning(
            "round %d: process %d %s%s; another one executes its clients again",
            server_round,
            actor,
            "hangs" if hung else "died",
            "" if culprit is None else f" with client {culprit}",
        )
        logging.getLogger("ray").warning("%s", reason)
        self.replace(actor)
        again: list[WorkItem] = []
        for item in message.items:
            whole = self.vectorized and item.chunk.phase == "fit"
            parts = [WorkItem(item.index, item.chunk, alone=True)] if whole else item.singles(alone=True)
            own = items[item.index]
            place = own.index(item)
            own[place : place + 1] = parts
            for part in parts:
                if given_up and any(task.client_id == culprit for task in part.chunk.tasks):
                    times = self._deaths[culprit or 0]
                    how = reason if reason == _OUT_OF_MEMORY else "crashed or was killed"
                    died = f"ProcessDied: its process {how}, {times} time{'s' * (times > 1)}"
                    part.result = _failed(part.chunk.tasks, reason if hung else died, actor)
                else:
                    again.append(part)
        waiting.extendleft(reversed(again))

    def _culprit(self, message: _Message) -> int | None:
        """Return the client that an actor executed when it died, as far as that is known."""
        clients = message.clients
        current = self.liveness.current(message.actor)
        if current is not None and current.client_id in clients:
            return current.client_id
        return clients[0] if len(message.items) == 1 and message.items[0].alone else None

    def replace(self, actor: int) -> None:
        """Put a new actor in the place of one that died."""
        self.check_ray()
        self.liveness.clear(actor)
        self.actors[actor] = self.start_actor(actor)
        self._started[actor] = time.monotonic()
        self._held[actor] = None

    def test(self, weights: NDArrays, slices: Sequence[TestSlice]) -> list[TestSums]:
        """Test ``weights`` on each slice, spread over the actors.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
            EngineError: processes die again and again.
        """
        answers: dict[int, TestSums] = {}
        for _ in range(self.retry_policy.max_retries + 1):
            missing = [number for number in range(len(slices)) if number not in answers]
            if not missing:
                break
            shares = [missing[actor :: len(self.actors)] for actor in range(min(len(self.actors), len(missing)))]
            asked = [
                self.actors[actor].run_tests.remote([slices[number] for number in share], self._packed(weights))
                for actor, share in enumerate(shares)
            ]
            since = time.monotonic()
            for actor, (share, reference) in enumerate(zip(shares, asked, strict=True)):
                answer = self._tested(actor, reference, since)
                if isinstance(answer, str):
                    raise RunError(answer)
                answers |= zip(share, answer or [], strict=False)
        if len(answers) < len(slices):
            raise EngineError(f"the central test: processes died or hung {self.retry_policy.max_retries + 1} times")
        return [answers[number] for number in range(len(slices))]

    def _tested(self, actor: int, reference: Any, since: float) -> list[TestSums] | str | None:
        """Wait for an actor's part of the central test; None if the actor died or hung, and was replaced."""
        while True:
            ready, _ = ray.wait([reference], timeout=self._look_seconds)
            try:
                if ready:
                    answer: list[TestSums] | str = ray.get(reference)
                    return answer
            except _DIED as error:
                what = f"died ({_why(error)})"
                break
            except RayError as error:
                raise EngineError(f"the central test: {last_line(error)}") from error
            self.check_ray()
            limit = self._exceeded(actor, since)
            if limit is not None:
                what = f"hangs (no end after {limit:g} s)"
                self._kill(actor)
                break
        logging.getLogger("sim").warning("the central test: process %d %s; another one executes it", actor, what)
        self.replace(actor)
        return None


def _failed(tasks: Sequence[Task], error: str, actor: int) -> ChunkResult:
    return ChunkResult([ClientResult(task.client_id, error=error, actor=actor) for task in tasks], WeightedSum())


_OUT_OF_MEMORY = "was ended because the memory of this machine ran out"


def _why(error: RayError) -> str:
    return _OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else last_line(error)


_NO_MEMORY = "Ray's shared memory is full; fewer clients per round or more memory would avoid it"
_NO_DISK = (
    "Ray's shared memory is full, and so is the disk of its temporary folder, where it would write the rest; fewer "
    "clients per round, more memory or a TMPDIR with free space would avoid it"
)


def last_line(error: Exception) -> str:
    """Return the last line of an error's text, which names the reason in Ray's errors."""
    if isinstance(error, OutOfDiskError):
        return _NO_DISK
    if isinstance(error, ObjectStoreFullError):
        return _NO_MEMORY
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
