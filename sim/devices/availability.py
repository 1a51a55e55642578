"""When clients are online: the names of ``--availability``.

    always     nobody is ever offline
    bernoulli  time is cut into slots; in each, a client is online with a probability, independently of all else
    on-off     each client is online and offline in turn, for exponential times (a Markov chain in continuous time)
    diurnal    each client is online for some hours around its local night
    trace      each client repeats the intervals of an entry of a file, see ``sim.devices.files``

Virtual time begins with second 0; in ``diurnal`` that is midnight at longitude 0. A client is online from the beginning
of an interval to just before its end. Everything is a function of (seed, client_id, time), see ``sim.devices.philox``:
nothing depends on the order of the questions.

Sources: Bonawitz et al. 2019, "Towards Federated Learning at Scale: System Design" (MLSys), where phones take part when
they are idle, charging and on an unmetered network, which is mostly at night; Lai et al. 2022 (FedScale) for traces.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import setting
from sim.devices.files import Periods
from sim.devices.philox import uniforms, uniforms_of_one
from sim.errors import ConfigError

_MOST_SECONDS = 1e9
_MOST_REMEMBERED = 65_536  # clients of on-off that were asked for alone
_MANY_PHASES = 16  # from which on several at once are faster
_MOST_LENGTHS = 65_536  # of phases in one computation
HOUR_SECONDS = 3600.0
_DAY_HOURS = 24.0


class Availability(Protocol):
    """When clients are online; times are virtual seconds, at least 0."""

    is_always: bool  # nobody is ever offline

    def online_until(self, client_id: int, at_seconds: float) -> float:
        """Return when a client that is online goes offline: ``at_seconds`` itself if it is offline then.

        It is infinite if the client never goes offline again.
        """

    def online_from(self, client_id: int, at_seconds: float) -> float:
        """Return when a client is online next: ``at_seconds`` itself if it is online then, infinite for never."""

    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """Return which of all clients are online, bool [num_clients]."""


@dataclass(frozen=True)
class Always:
    """Nobody is ever offline."""

    num_clients: int
    is_always = True

    def online_until(self, client_id: int, at_seconds: float) -> float:
        """See ``Availability``."""
        return math.inf

    def online_from(self, client_id: int, at_seconds: float) -> float:
        """See ``Availability``."""
        return at_seconds

    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """See ``Availability``."""
        return np.ones(self.num_clients, np.bool_)


class _Intervals(ABC):
    """An availability that knows the intervals of each client, one after another."""

    is_always = False

    @abstractmethod
    def interval(self, client_id: int, at_seconds: float) -> tuple[float, float]:
        """Return begin and end of the first interval online that ends after ``at_seconds``; infinite for none."""

    @abstractmethod
    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """See ``Availability``; it agrees with ``interval`` to the last bit of a time."""

    def online_until(self, client_id: int, at_seconds: float) -> float:
        """See ``Availability``."""
        start, end = self.interval(client_id, at_seconds)
        return end if start <= at_seconds else at_seconds

    def online_from(self, client_id: int, at_seconds: float) -> float:
        """See ``Availability``."""
        return max(at_seconds, self.interval(client_id, at_seconds)[0])


@dataclass(frozen=True)
class BernoulliArguments:
    """The arguments of ``bernoulli``."""

    probability: float = setting(
        0.8, "share of the slots in which a client is online", "bernoulli", low=1e-6, high=0.999999
    )
    slot_seconds: float = setting(600.0, "length of a slot", "bernoulli", unit="seconds", low=1, high=_MOST_SECONDS)


class Bernoulli(_Intervals):
    """A client is online in a slot if its number of that slot is below the probability."""

    def __init__(self, arguments: BernoulliArguments, key: tuple[int, int], num_clients: int) -> None:
        self._arguments, self._key = arguments, key
        self._clients = np.arange(num_clients)

    def interval(self, client_id: int, at_seconds: float) -> tuple[float, float]:
        """See ``_Intervals``."""
        slot = _cell(at_seconds, self._arguments.slot_seconds)
        first = self._next(client_id, slot, online=True)
        # Slots before the present one belong to the same interval, but nobody asks when it began.
        return first * self._arguments.slot_seconds, self._next(
            client_id, first + 1, online=False
        ) * self._arguments.slot_seconds

    def _next(self, client_id: int, slot: int, *, online: bool) -> int:
        """Return the first slot from ``slot`` on in which a client is online, or offline."""
        count = 1
        while True:
            if count == 1:
                found = (uniforms_of_one(self._key, client_id, slot)[0] < self._arguments.probability) == online
                position = 0
            else:
                slots = np.arange(slot, slot + count)
                u, _ = uniforms(self._key, np.full(count, client_id), slots)
                are = (u < self._arguments.probability) == online
                position = int(are.argmax())
                found = bool(are[position])
            if found:
                return slot + position
            slot += count
            count = min(2 * count, 8192)

    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """See ``Availability``."""
        slot = _cell(at_seconds, self._arguments.slot_seconds)
        online: NDArray[np.bool_] = uniforms(self._key, self._clients, slot)[0] < self._arguments.probability
        return online


@dataclass(frozen=True)
class OnOffArguments:
    """The arguments of ``on-off``."""

    mean_on_seconds: float = setting(3600.0, "mean time online", "on-off", unit="seconds", low=1, high=_MOST_SECONDS)
    mean_off_seconds: float = setting(600.0, "mean time offline", "on-off", unit="seconds", low=1, high=_MOST_SECONDS)


@dataclass
class _Phases:
    """Where some clients are in their sequences of phases.

    Attributes:
        clients: their ids, int64 [n].
        begins_online: whether phase 0 is online, bool [n].
        number: of the present phase, int64 [n].
        start: of the present phase, float64 [n].
        end: of the present phase, float64 [n].
    """

    clients: NDArray[np.int64]
    begins_online: NDArray[np.bool_]
    number: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]


class OnOff(_Intervals):
    """Phases online and offline in turn, whose lengths are exponential.

    A client is online at first with the share of its time online, mean_on / (mean_on + mean_off), and what is left of
    that phase is exponential, too, because the distribution has no memory: the chain begins in its stationary state.
    Phase n of a client has the length −mean · ln(1 − u), where u is the first number at index n; the second number at
    index 0 is that of the first phase.

    The phases are found one after another. Those of all clients at the time of the last question are kept, and the last
    phase of each client that was asked for alone, so that a question costs the phases since the one before.
    """

    def __init__(self, arguments: OnOffArguments, key: tuple[int, int], num_clients: int) -> None:
        self._means = np.array([arguments.mean_off_seconds, arguments.mean_on_seconds])
        self._key, self._num_clients = key, num_clients
        self._all: _Phases | None = None
        self._alone: dict[int, tuple[int, float, float]] = {}  # client_id → number, begin and end of a phase

    def interval(self, client_id: int, at_seconds: float) -> tuple[float, float]:
        """See ``_Intervals``."""
        _, v = uniforms_of_one(self._key, client_id, 0)
        begins_online = v < self._means[1] / self._means.sum()
        number, start, end = 0, 0.0, self._length(client_id, 0, online=begins_online)
        for known in (self._alone.get(client_id), self._in_all(client_id)):
            if known is not None and start <= known[1] <= at_seconds:
                number, start, end = known
        if (at_seconds - end) / self._means.mean() > _MANY_PHASES:
            phases = _Phases(*map(np.array, ([client_id], [begins_online], [number], [start], [end])))
            self._advance(phases, at_seconds)
            number, start, end = phases.number.item(), phases.start.item(), phases.end.item()
        present = None
        # Until it is online; at a late time, a short phase may have no length left.
        while end <= max(start, at_seconds) or begins_online != (number % 2 == 0):
            if start <= at_seconds < end:
                present = number, start, end
            number += 1
            start, end = end, end + self._length(client_id, number, online=begins_online == (number % 2 == 0))
        if len(self._alone) >= _MOST_REMEMBERED:
            self._alone.clear()
        self._alone[client_id] = present or (number, start, end)
        return start, end

    def _length(self, client_id: int, number: int, *, online: bool) -> float:
        u, _ = uniforms_of_one(self._key, client_id, number)
        return float(self._means[int(online)] * -np.log1p(-u))  # of numpy: math.log1p may differ in its last bit

    def _in_all(self, client_id: int) -> tuple[int, float, float] | None:
        """Return the phase of a client at the time when all clients were asked for last."""
        if self._all is None:
            return None
        phases = self._all
        return phases.number[client_id].item(), phases.start[client_id].item(), phases.end[client_id].item()

    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """See ``Availability``."""
        if self._all is None or (self._all.start > at_seconds).any():
            clients = np.arange(self._num_clients)
            u, v = uniforms(self._key, clients, 0)
            begins_online = v < self._means[1] / self._means.sum()
            ends = self._means[begins_online.astype(np.int64)] * -np.log1p(-u)
            self._all = _Phases(clients, begins_online, np.zeros_like(clients), np.zeros(len(clients)), ends)
        self._advance(self._all, at_seconds)
        online: NDArray[np.bool_] = self._all.begins_online == (self._all.number % 2 == 0)
        return online

    def _advance(self, phases: _Phases, at_seconds: float) -> None:
        """Go to the phases of a time, each of which ends after it; several phases of a client are one computation."""
        while (over := np.flatnonzero(phases.end <= at_seconds)).size:
            rest = (at_seconds - phases.end[over].min()) / self._means.mean()
            count = max(1, min(int(1.1 * rest) + 2, _MOST_LENGTHS // over.size))
            numbers = phases.number[over, None] + np.arange(1, count + 1)
            u, _ = uniforms(self._key, np.repeat(phases.clients[over], count), numbers.ravel())
            online = phases.begins_online[over, None] == (numbers % 2 == 0)
            lengths = self._means[online.astype(np.int64)] * -np.log1p(-u).reshape(numbers.shape)
            # Summed one after another, as for one client alone.
            ends = np.add.accumulate(np.concatenate([phases.end[over, None], lengths], axis=1), axis=1)
            passed = np.minimum((ends <= at_seconds).sum(axis=1), count)
            rows = np.arange(over.size)
            phases.number[over] += passed
            phases.start[over] = ends[rows, passed - 1]
            phases.end[over] = ends[rows, passed]


@dataclass(frozen=True)
class DiurnalArguments:
    """The arguments of ``diurnal``."""

    hours_online: float = setting(8.0, "length of the interval of a day", "diurnal", unit="hours", low=0.01, high=23.9)
    begin_hour: float = setting(22.0, "local time at which it begins", "diurnal", unit="hours", low=0, below=24)
    jitter_hours: float = setting(
        1.0,
        "by how much it begins earlier or later, at most; drawn for each client and day",
        "diurnal",
        unit="hours",
        low=0,
        high=11.9,
    )

    def __post_init__(self) -> None:
        if self.hours_online + 2 * self.jitter_hours > _DAY_HOURS - _LEAST_GAP_HOURS:
            raise ConfigError(
                f"--availability-args hours_online={self.hours_online:g} jitter_hours={self.jitter_hours:g}: "
                f"hours_online + 2 × jitter_hours must be at most {_DAY_HOURS - _LEAST_GAP_HOURS:g}, so that the "
                "intervals of two days do not meet"
            )


_LEAST_GAP_HOURS = 0.1


class Diurnal(_Intervals):
    """An interval each day of the client's local time.

    The time zone of a client is one of 24, UTC+0 to UTC+23, with equal shares: the second number at index 0. Day d of a
    client begins between two intervals; by how much its interval is shifted is the first number at index d + 2, because
    the days begin with −1, in which second 0 may be.
    """

    def __init__(self, arguments: DiurnalArguments, key: tuple[int, int], num_clients: int) -> None:
        self._arguments, self._key = arguments, key
        self._clients = np.arange(num_clients)
        self._zones: NDArray[np.float64] = np.floor(uniforms(key, self._clients, 0)[1] * _DAY_HOURS)
        gap = _DAY_HOURS - arguments.hours_online - 2 * arguments.jitter_hours
        # Local hours at which a day begins: in the middle of the time in which no interval can be.
        self._day_begins = arguments.begin_hour - arguments.jitter_hours - gap / 2

    def interval(self, client_id: int, at_seconds: float) -> tuple[float, float]:
        """See ``_Intervals``."""
        zone = float(self._zones[client_id])
        day = math.floor(self._day(at_seconds, zone))
        start = self._start(client_id, day, zone)
        if start + self._length <= at_seconds:
            start = self._start(client_id, day + 1, zone)
        return start, start + self._length

    @property
    def _length(self) -> float:
        return self._arguments.hours_online * HOUR_SECONDS

    def _start(self, client_id: int, day: int, zone: float) -> float:
        u = uniforms_of_one(self._key, client_id, day + 2)[0] if self._arguments.jitter_hours else 0.5
        return float(self._starts(day, zone, u))

    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """See ``Availability``."""
        days = np.floor(self._day(at_seconds, self._zones)).astype(np.int64)
        u = uniforms(self._key, self._clients, days + 2)[0] if self._arguments.jitter_hours else 0.5
        starts = self._starts(days, self._zones, u)
        online: NDArray[np.bool_] = (starts <= at_seconds) & (at_seconds < starts + self._length)
        return online

    # The next two do the same operations for one client and for all, so that both get the same bits.

    def _day(self, at_seconds: float, zone: Any) -> Any:
        """Return the days since day 0 of a client, with their fraction."""
        return (at_seconds / HOUR_SECONDS + zone - self._day_begins) / _DAY_HOURS

    def _starts(self, day: Any, zone: Any, u: Any) -> Any:
        """Return the beginning of the interval of a day."""
        jitter = self._arguments.jitter_hours * (2.0 * u - 1.0)
        return HOUR_SECONDS * (_DAY_HOURS * day + self._arguments.begin_hour + jitter - zone)


class Trace(_Intervals):
    """Each client repeats the intervals of one entry of a file for ever."""

    def __init__(self, entries: Sequence[Periods], entry_of: NDArray[np.int64]) -> None:
        """
        Args:
            entry_of: position of the entry of each client, int64 [num_clients].
        """
        self._entries, self._entry_of = entries, entry_of
        self._periods = np.array([entry.period for entry in entries])
        # Clients come and go at the edges. The end of a period is no edge: the next one begins with its own state.
        edges = [
            [edge for pair in zip(e.starts, e.ends, strict=True) for edge in pair if edge < e.period] for e in entries
        ]
        self._counts = np.array([len(each) for each in edges])
        self._edges = np.array([edge for each in edges for edge in each])

    def interval(self, client_id: int, at_seconds: float) -> tuple[float, float]:
        """See ``_Intervals``."""
        entry = self._entries[self._entry_of[client_id]]
        if not entry.starts:
            return math.inf, math.inf
        if (entry.starts[0], entry.ends[0]) == (0, entry.period):
            return 0.0, math.inf
        first = _cell(at_seconds, entry.period)
        for number in (first, first + 1):
            base, limit = number * entry.period, (number + 1) * entry.period
            for start, end in zip(entry.starts, entry.ends, strict=True):
                begins = base + start
                ends = limit if end == entry.period else min(base + end, limit)
                if end == entry.period and entry.starts[0] == 0:  # goes on in the next period
                    ends = limit + entry.ends[0]
                if ends > max(begins, at_seconds):
                    return begins, ends
        return math.inf, math.inf  # so late that rounding leaves intervals no length

    def are_online(self, at_seconds: float) -> NDArray[np.bool_]:
        """See ``Availability``."""
        numbers = np.floor(at_seconds / self._periods)
        numbers -= numbers * self._periods > at_seconds
        numbers += (numbers + 1) * self._periods <= at_seconds
        passed = np.repeat(numbers * self._periods, self._counts) + self._edges <= at_seconds
        sums = np.concatenate([[0], np.cumsum(passed)])
        last = np.cumsum(self._counts)
        are_on = (sums[last] - sums[last - self._counts]) % 2 == 1
        online: NDArray[np.bool_] = are_on[self._entry_of]
        return online


def _cell(at_seconds: float, width: float) -> int:
    """Return n with n · width ≤ at_seconds < (n + 1) · width, also where the quotient is rounded."""
    number = math.floor(at_seconds / width)
    if number * width > at_seconds:
        number -= 1
    elif (number + 1) * width <= at_seconds:
        number += 1
    return number
