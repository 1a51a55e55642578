"""Which clients of a synchronous round finish in virtual time, and when the round ends.

All clients of a round begin at the same time. The first ``num_needed`` that finish before the deadline, and before they
go offline or drop out, are taken; the others are not executed. The round ends when the last of these has finished. If
fewer finish, it ends at the deadline; or, if nobody is left that could still finish, when the last one has finished or
left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sim.server.virtual_time import Participation, VirtualTime


@dataclass(frozen=True)
class RoundSchedule:
    """What becomes of the clients that were asked.

    Attributes:
        participations: one for each client, in the order in which they were given.
        end: virtual seconds since the start of the run.
    """

    participations: list[Participation]
    end: float

    @property
    def taken(self) -> list[Participation]:
        """Those whose updates are used."""
        return [each for each in self.participations if each.status == "ok"]


def scheduled(
    time: VirtualTime,
    asked: Sequence[Participation],
    num_needed: int,
    *,
    deadline_seconds: float | None = None,
    deadline_quantile: float | None = None,
    partial_work: bool = False,
    dropped: Collection[int] = (),
) -> RoundSchedule:
    """Return the schedule of a round.

    Args:
        asked: clients that begin at the same time, with all of their work.
        deadline_seconds: after the start.
        deadline_quantile: the deadline is the time by which this share of the asked clients would have finished.
        partial_work: clients that would be late take as many steps as fit.
        dropped: client_ids of those that leave after their last step, before they send anything.
    """
    start = asked[0].start
    limit = math.inf if deadline_seconds is None else start + deadline_seconds
    if deadline_quantile is not None:
        limit = float(np.quantile([each.due for each in asked], deadline_quantile, method="inverted_cdf"))
    offered = [_in_time(time, each, limit) if partial_work and each.due > limit else each for each in asked]
    leaves = [time.availability.online_until(each.client_id, start) for each in asked]
    drops = [each.drops_at <= left and each.client_id in dropped for each, left in zip(offered, leaves, strict=True)]
    leaves = [each.drops_at if drop else left for each, left, drop in zip(offered, leaves, drops, strict=True)]
    able = [
        (each.due, each.client_id, position)
        for position, each in enumerate(offered)
        if each.due <= min(limit, leaves[position]) and not drops[position]
    ]
    taken = {position for _, _, position in sorted(able)[:num_needed]}
    if len(taken) == num_needed:
        end = max(offered[position].due for position in taken)
    elif any(min(each.due, left) > limit for each, left in zip(offered, leaves, strict=True)):
        end = limit  # somebody is still at work
    else:
        ends = [min(each.due, left) for each, left in zip(offered, leaves, strict=True)]
        end = max(ends, default=start)
    found = []
    for position, (each, left) in enumerate(zip(offered, leaves, strict=True)):
        if position in taken:
            found.append(each)
        elif (left < each.due or drops[position]) and left <= end:
            found.append(each.ended("dropped" if drops[position] else "offline", left))
        else:
            found.append(each.ended("late", end))
    return RoundSchedule(found, end)


def _in_time(time: VirtualTime, participation: Participation, limit: float) -> Participation:
    return time.shortened(participation, limit) or participation
