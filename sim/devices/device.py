"""The device of a client: its speed and its bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BYTES_OF_MBIT = 125_000.0  # 1 Mbit is 10⁶ bits
# The least and the most that an argument or a file may say, so that sums of virtual seconds stay finite.
STEP_SECONDS = 1e-9, 1e9
MBPS = 1e-9, 1e12


@dataclass(frozen=True)
class Device:
    """What a client trains on.

    Attributes:
        seconds_per_step: one training step on one batch.
        download_bytes_per_second: from the server to the client; infinite if it takes no time.
        upload_bytes_per_second: from the client to the server; infinite if it takes no time.
        kind: a word for tables, such as the class of phone; empty if there is none.
    """

    seconds_per_step: float
    download_bytes_per_second: float
    upload_bytes_per_second: float
    kind: str = ""

    def seconds(self, num_steps: float, download_bytes: float, upload_bytes: float) -> float:
        """Return the virtual seconds of a client that downloads, trains and uploads."""
        return (
            download_bytes / self.download_bytes_per_second
            + num_steps * self.seconds_per_step
            + upload_bytes / self.upload_bytes_per_second
        )


@dataclass(frozen=True)
class DeviceTable:
    """The devices of some clients.

    Attributes:
        seconds_per_step: float64 [n].
        download_bytes_per_second: float64 [n].
        upload_bytes_per_second: float64 [n].
        kind: position in ``kinds``, int64 [n].
        kinds: the words.
    """

    seconds_per_step: NDArray[np.float64]
    download_bytes_per_second: NDArray[np.float64]
    upload_bytes_per_second: NDArray[np.float64]
    kind: NDArray[np.int64]
    kinds: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.seconds_per_step)

    def row(self, position: int) -> Device:
        """Return one device."""
        return Device(
            float(self.seconds_per_step[position]),
            float(self.download_bytes_per_second[position]),
            float(self.upload_bytes_per_second[position]),
            self.kinds[self.kind[position]],
        )

    def rows(self, positions: NDArray[np.int64]) -> DeviceTable:
        """Return the devices at some positions, int64 [n]."""
        return DeviceTable(
            self.seconds_per_step[positions],
            self.download_bytes_per_second[positions],
            self.upload_bytes_per_second[positions],
            self.kind[positions],
            self.kinds,
        )

    def seconds(
        self, num_steps: NDArray[np.float64], download_bytes: float, upload_bytes: float
    ) -> NDArray[np.float64]:
        """Return the virtual seconds of each client, as ``Device.seconds``, float64 [n].

        Args:
            num_steps: of each client, float64 [n].
        """
        return (
            download_bytes / self.download_bytes_per_second
            + num_steps * self.seconds_per_step
            + upload_bytes / self.upload_bytes_per_second
        )


class DeviceModel(Protocol):
    """A name of ``--devices`` with its arguments."""

    def draw(self, key: tuple[int, int], client_ids: NDArray[np.int64]) -> DeviceTable:
        """Return the devices of some clients; each depends on the key and its own client_id alone.

        Args:
            key: of the random numbers, see ``sim.devices.philox``.
            client_ids: int64 [n].
        """


def alike(client_ids: NDArray[np.int64], value: float) -> NDArray[np.float64]:
    """Return the same value for each client, float64 [n]."""
    return np.full(len(client_ids), value)
