"""Virtual seconds of clients: bytes ÷ bandwidth, steps × seconds per step, never a clock.

A client of a round downloads the weights, takes its training steps, and uploads its update, one after another:

    end = start + bytes_down ÷ download bandwidth + steps × seconds per step + bytes_up ÷ upload bandwidth
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.algorithms.algorithm import Algorithm
from sim.config.run_config import RunConfig
from sim.data.partition import num_training_examples
from sim.devices.by_name import Devices
from sim.devices.device import Device

Status = Literal["ok", "late", "offline", "dropped"]


@dataclass(frozen=True)
class Participation:
    """One client at work, from the start of its download to the end of its upload.

    Attributes:
        start: virtual seconds since the start of the run.
        steps: training steps that it takes.
        status: ok if its update arrives and is used.
        bytes_down, bytes_up: what it would download and upload as a whole.
        left_at: when it left, or its round ended without it, before its upload was complete.
    """

    client_id: int
    start: float
    steps: int
    download_seconds: float
    compute_seconds: float
    upload_seconds: float
    bytes_down: int = 0
    bytes_up: int = 0
    status: Status = "ok"
    left_at: float | None = None

    @property
    def due(self) -> float:
        """When the upload would be complete."""
        return self.start + (self.download_seconds + self.compute_seconds + self.upload_seconds)

    @property
    def drops_at(self) -> float:
        """When a client leaves that has trained and sends nothing back."""
        return self.start + (self.download_seconds + self.compute_seconds)

    @property
    def end(self) -> float:
        """When the client stopped working for the round."""
        return self.due if self.left_at is None else self.left_at

    @property
    def bytes_sent(self) -> tuple[int, int]:
        """What was downloaded and uploaded until ``end``, rounded down."""
        if self.left_at is None or self.left_at >= self.due:
            return self.bytes_down, self.bytes_up
        worked = self.left_at - self.start
        uploading = worked - self.download_seconds - self.compute_seconds
        return _part(self.bytes_down, worked, self.download_seconds), _part(
            self.bytes_up, uploading, self.upload_seconds
        )

    def ended(self, status: Status, at_seconds: float) -> Participation:
        """Return the same of a client whose update does not arrive."""
        return replace(self, status=status, left_at=min(at_seconds, self.due))


class VirtualTime:
    """How long clients work.

    Attributes:
        bytes_down, bytes_up: what each client downloads and uploads in the round that was begun.
        told_steps: client_id → training steps that the client of a Flower program said it took the last time.
    """

    def __init__(
        self,
        config: RunConfig,
        devices: Devices,
        sizes: Sequence[int] | NDArray[np.int64],
        num_bytes: Callable[[int], tuple[int, int]],
        algorithm: Algorithm | None = None,
        *,
        eval_share: float = 0.0,
        drops_last: bool = False,
    ) -> None:
        """
        Args:
            sizes: examples of each client; empty where nobody knows.
            num_bytes: server_round → what each client downloads and uploads.
            algorithm: of the clients, which may pass over their examples more than once per local epoch.
            eval_share: fraction of their examples that clients keep for their own evaluation.
            drops_last: clients leave out a last batch that is not full.
        """
        self.devices, self.availability = devices, devices.availability
        self.told_steps: dict[int, int] = {}
        self._config, self._sizes, self._algorithm = config, sizes, algorithm
        self._eval_share, self._drops_last = eval_share, drops_last
        self._num_bytes = num_bytes
        self.begin_round(1)

    def begin_round(self, server_round: int) -> None:
        """Let clients work for this round from now on; an algorithm with a warm start has rounds that differ."""
        self.server_round = server_round
        self.bytes_down, self.bytes_up = self._num_bytes(server_round)

    def steps(self, client_id: int, settings: Mapping[str, Any]) -> int:
        """Return how many training steps a client takes with the settings of its ``FitIns.config``."""
        config = self._config
        if config.client_steps is not None or not len(self._sizes):
            return self.told_steps.get(client_id, config.client_steps or 1)
        num_examples = num_training_examples(int(self._sizes[client_id]), self._eval_share)
        batch_size = int(settings.get("batch_size") or config.batch_size or 1)
        epochs = int(settings.get("local_epochs") or config.local_epochs)
        batches = num_examples // batch_size if self._drops_last else math.ceil(num_examples / batch_size)
        longest = int(settings.get("max_steps", config.max_local_steps) or 0)
        if self._algorithm is None:
            return min(batches * epochs, longest) if longest else batches * epochs
        return self._algorithm.num_steps(batches, epochs, longest, self.server_round)

    def participation(self, client_id: int, start: float, steps: int) -> Participation:
        """Return a client at work."""
        device = self.devices.device(client_id)
        return Participation(
            client_id,
            start,
            steps,
            self.bytes_down / device.download_bytes_per_second,
            steps * device.seconds_per_step,
            self.bytes_up / device.upload_bytes_per_second,
            self.bytes_down,
            self.bytes_up,
        )

    def shortened(self, participation: Participation, limit: float) -> Participation | None:
        """Return the same client with as many steps as fit before ``limit``; None if not even one does."""
        device: Device = self.devices.device(participation.client_id)
        traffic = participation.download_seconds + participation.upload_seconds
        steps = min(participation.steps, math.floor((limit - participation.start - traffic) / device.seconds_per_step))
        while steps > 0:
            shorter = self.participation(participation.client_id, participation.start, steps)
            if shorter.due <= limit:
                return shorter
            steps -= 1  # the quotient was rounded up
        return None

    def online(self, at_seconds: float) -> NDArray[np.int64]:
        """Return the ids of the clients that are online."""
        if self.availability.is_always:
            return np.arange(self._config.num_clients)
        return np.flatnonzero(self.availability.are_online(at_seconds))

    def when_online(self, count: int, at_seconds: float) -> float:
        """Return when at least ``count`` clients are online together; infinite if that is not found.

        Args:
            at_seconds: the earliest time.
        """
        now = at_seconds
        for _ in range(_MOST_LOOKS):
            missing = count - len(self.online(now))
            if missing <= 0:
                return now
            coming = sorted(
                time
                for time in (self.availability.online_from(c, now) for c in range(self._config.num_clients))
                if now < time < math.inf
            )
            if len(coming) < missing:
                return math.inf
            now = coming[0]
        return math.inf


def _part(num_bytes: int, seconds: float, whole_seconds: float) -> int:
    if seconds >= whole_seconds:
        return num_bytes
    return int(num_bytes * seconds / whole_seconds) if seconds > 0 else 0  # a transfer may take no time at all


_MOST_LOOKS = 10_000  # at clients that come, while others go
