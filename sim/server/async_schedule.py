"""Which client begins when, with which version, and when its update arrives: a function of the seed alone.

A number of clients work at the same time. Whenever one has finished or left, another one that is idle and online begins
with the newest version. The updates that arrive make versions. What happens at the same moment happens in this order:
updates arrive, in the order in which their clients began; versions are made; clients begin.

Nothing here depends on what clients compute, so that the schedule can be looked at ahead of the computation, and a
resumed run makes it anew.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from sim.config.run_config import RunConfig
from sim.errors import RunError
from sim.server.dropout import dropouts
from sim.server.run_sampler import RunSampler
from sim.server.virtual_time import Participation, VirtualTime

_MOST_QUIET = 1_000_000


@dataclass(frozen=True)
class Start:
    """A client at work.

    Attributes:
        number: of this start, from 0.
        version: with which the client began.
        repeat: how often the client had begun with this version before.
        staleness: versions that were made until its update arrived; None while it is at work.
    """

    number: int
    version: int
    repeat: int
    participation: Participation
    staleness: int | None = None

    @property
    def client_id(self) -> int:
        """The client."""
        return self.participation.client_id

    @property
    def is_used(self) -> bool:
        """Whether its update arrives and is not too old."""
        return self.participation.status == "ok"


class Version(NamedTuple):
    """One version of the model, apart from the first.

    Attributes:
        number: from 1.
        seconds: virtual seconds since the start of the run.
        ended: the clients that finished or left since the version before, in the order in which they did.
        at_work: starts whose updates had not arrived when this version was made, in the order of their numbers.
    """

    number: int
    seconds: float
    ended: tuple[Start, ...]
    at_work: tuple[Start, ...]


class AsyncSchedule:
    """The schedule of a run."""

    def __init__(self, config: RunConfig, time: VirtualTime, sampler: RunSampler, num_arrivals: int) -> None:
        """
        Args:
            num_arrivals: updates that make a version.
        """
        self._config, self._time, self._sampler, self._num_arrivals = config, time, sampler, num_arrivals
        self._now, self._version, self._num_starts = 0.0, 0, 0
        self._queue: list[tuple[float, int, Start]] = []  # by the time at which a client finishes or leaves
        self._waiting: list[float] = []  # when a place that found no idle client looks again
        self._is_idle = np.ones(config.num_clients, bool)
        self._begun_with_newest: dict[int, int] = {}  # client_id → how often

    def versions(self) -> Iterator[Version]:
        """Yield the versions, without end.

        Raises:
            RunError: no client is ever online again.
        """
        ended: list[Start] = []
        num_arrived = 0
        quiet = 0  # moments since the last version
        self._begin(self._config.num_concurrent)
        while True:
            made: list[Version] = []
            free = self._advance()
            while self._queue and self._queue[0][0] == self._now:
                start = heapq.heappop(self._queue)[2]
                self._is_idle[start.client_id] = True
                free += 1
                start = self._judged(start)
                ended.append(start)
                num_arrived += start.is_used
                if num_arrived == self._num_arrivals:
                    self._version += 1
                    self._begun_with_newest = {}
                    at_work = tuple(sorted((each for _, _, each in self._queue), key=lambda each: each.number))
                    made.append(Version(self._version, self._now, tuple(ended), at_work))
                    ended, num_arrived = [], 0
            yield from made
            self._begin(free)
            quiet = 0 if made else quiet + 1
            if quiet > _MOST_QUIET:
                raise RunError(
                    f"version {self._version + 1}: fewer than {self._num_arrivals} updates have arrived until "
                    f"{self._now:g} virtual seconds; clients go offline, or are older than --max-staleness"
                )

    def _advance(self) -> int:
        """Go to the next moment at which something happens; return how many places look for a client again."""
        times = [*(self._queue[0][:1] if self._queue else ()), *(self._waiting[:1])]
        if not times:
            raise RunError(f"from {self._now:g} virtual seconds on, no client is online")
        self._now = min(times)
        count = 0
        while self._waiting and self._waiting[0] == self._now:
            heapq.heappop(self._waiting)
            count += 1
        return count

    def _judged(self, start: Start) -> Start:
        """Return a start at its end, with its staleness and what becomes of it."""
        staleness, most = self._version - start.version, self._config.max_staleness
        if not start.is_used:
            return start
        if most is not None and staleness > most:
            late = start.participation.ended("late", start.participation.due)
            return replace(start, participation=late, staleness=staleness)
        return replace(start, staleness=staleness)

    def _begin(self, count: int) -> None:
        """Let up to ``count`` clients begin now with the newest version."""
        for _ in range(count):
            candidates = np.flatnonzero(self._is_idle)
            if not self._time.availability.is_always:
                online = self._time.availability.are_online(self._now)
                candidates = np.flatnonzero(self._is_idle & online)
            if not len(candidates):
                self._wait()
                continue
            self._start(self._sampler.sample(candidates, 1, self._version + 1, self._num_starts)[0])

    def _start(self, client_id: int) -> None:
        repeat = self._begun_with_newest.get(client_id, 0)
        self._begun_with_newest[client_id] = repeat + 1
        self._is_idle[client_id] = False
        time = self._time
        participation = time.participation(client_id, self._now, time.steps(client_id, {}))
        left = time.availability.online_until(client_id, self._now)
        if participation.drops_at <= left and dropouts(self._config, self._version + 1, [client_id], repeat):
            participation = participation.ended("dropped", participation.drops_at)
        elif left < participation.due:
            participation = participation.ended("offline", left)
        start = Start(self._num_starts, self._version, repeat, participation)
        heapq.heappush(self._queue, (participation.end, start.number, start))
        self._num_starts += 1

    def _wait(self) -> None:
        """Let a place look again when the first idle client comes online; it is lost if none ever does."""
        if self._time.availability.is_always:  # all clients are at work; a place is free as soon as one is idle
            raise AssertionError("there are at least as many clients as places")
        idle: Any = np.flatnonzero(self._is_idle)
        comes = min((self._time.availability.online_from(int(c), self._now) for c in idle), default=math.inf)
        if self._queue:
            comes = min(comes, self._queue[0][0])
        if self._now < comes < math.inf:
            heapq.heappush(self._waiting, comes)
