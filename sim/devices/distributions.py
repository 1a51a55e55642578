"""Devices that are drawn from distributions: uniform, lognormal, and the phones and links of FLASH.

    uniform    all clients have the same device
    lognormal  seconds per step ~ LogNormal(ln seconds_per_step, sigma²); both bandwidths of a client are the medians
               times one factor ~ LogNormal(0, bandwidth_sigma²)
    flash      a class of phone and a network link for each client, both measured (see ``FLASH_PHONES``)

Sources:

- lognormal: FedScale draws the speed of a device from a lognormal distribution with sigma 0.6
  (github.com/SymbioticLab/FedScale at 7ec441c, ``fedscale/cloud/internal/client_metadata.py``,
  ``get_completion_time_lognormal``, which names PAPAYA, Huba et al. 2022, as the reason). For bandwidth, 0.6 is between
  the standard deviations of the logarithm of the 19 links of FLASH, 0.48 down and 0.70 up.
- flash: Yang et al. 2021, "Characterizing Impacts of Heterogeneity in Federated Learning upon Large-Scale Smartphone
  Data" (WWW), with the figures of the authors' code, github.com/PKU-Chengxu/FLASH at 55cbede.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import setting
from sim.devices.device import BYTES_OF_MBIT, MBPS, STEP_SECONDS, DeviceTable, alike
from sim.devices.philox import normals, uniforms

_STEP = "one training step on one batch"


@dataclass(frozen=True)
class Uniform:
    """The same device for each client."""

    seconds_per_step: float = setting(0.1, _STEP, "uniform", unit="seconds", low=STEP_SECONDS[0], high=STEP_SECONDS[1])
    download_mbps: float = setting(20.0, "from the server", "uniform", unit="Mbit/s", low=MBPS[0], high=MBPS[1])
    upload_mbps: float = setting(5.0, "to the server", "uniform", unit="Mbit/s", low=MBPS[0], high=MBPS[1])

    def draw(self, key: tuple[int, int], client_ids: NDArray[np.int64]) -> DeviceTable:
        """See ``DeviceModel``."""
        return DeviceTable(
            alike(client_ids, self.seconds_per_step),
            alike(client_ids, self.download_mbps * BYTES_OF_MBIT),
            alike(client_ids, self.upload_mbps * BYTES_OF_MBIT),
            np.zeros(len(client_ids), np.int64),
        )


@dataclass(frozen=True)
class Lognormal(Uniform):
    """Speed and bandwidth are lognormal and independent of each other; the arguments of ``Uniform`` are the medians."""

    sigma: float = setting(0.6, "standard deviation of ln seconds_per_step", "lognormal", low=0, high=10)
    bandwidth_sigma: float = setting(0.6, "standard deviation of ln bandwidth", "lognormal", low=0, high=10)

    def draw(self, key: tuple[int, int], client_ids: NDArray[np.int64]) -> DeviceTable:
        """See ``DeviceModel``."""
        speed, bandwidth = normals(key, client_ids, 0)
        factor = np.exp(self.bandwidth_sigma * bandwidth)
        return DeviceTable(
            self.seconds_per_step * np.exp(self.sigma * speed),
            self.download_mbps * BYTES_OF_MBIT * factor,
            self.upload_mbps * BYTES_OF_MBIT * factor,
            np.zeros(len(client_ids), np.int64),
        )


# models/utils/device_util/device_util.py of FLASH: how many phones of the authors' trace are nearest to each of three
# phones that were measured (``unknown``), and mean and standard deviation of the milliseconds of a batch on each
# (``get_train_time``). In supported_devices.json beside it, the three are Google Nexus S, Xiaomi Redmi Note 7 Pro and
# Google Pixel 4, in this order.
FLASH_PHONES = {"low-end": 18820, "mid-range": 16428, "high-end": 159}
FLASH_MILLISECONDS = {
    "femnist": ((1642, 99.5), (588, 23.9), (179, 2.3)),
    "celeba": ((5392, 982.5), (1355, 54.6), (561, 20.3)),
    "reddit": ((2596, 335.5), (916, 20.6), (527.7, 49.0)),
    "shakespeare": ((28621, 1720.7), (13579, 104.6), (10681, 125.6)),
}
# models/speed_distri.json of FLASH, rounded to 0.1: mean and standard deviation of the download speed, and those of the
# upload speed, of 19 links in kilobytes per second. models/device.py divides a model's bytes by 1,024 for the download
# and by 1,000 for the upload before it divides by them; here a kilobyte is 1,000 bytes.
FLASH_LINKS = (
    (7491.4, 3369.3, 4935.2, 2767.3),
    (4054.8, 1819.5, 3006.2, 890.1),
    (2370.2, 1388.2, 2774.2, 1096.9),
    (9913.0, 1551.0, 6635.4, 1459.5),
    (4208.7, 1481.6, 2974.5, 833.2),
    (3778.5, 2843.4, 2631.6, 1576.4),
    (3472.7, 1276.7, 5140.6, 2277.4),
    (4668.4, 612.6, 3205.5, 419.4),
    (3297.7, 771.3, 2336.6, 1609.9),
    (4283.6, 1561.0, 3641.6, 1495.0),
    (3658.1, 1315.9, 2546.9, 1089.0),
    (7214.1, 3363.2, 4039.7, 2189.0),
    (8885.5, 1999.1, 6278.6, 489.1),
    (5125.0, 2087.6, 3729.8, 461.5),
    (7271.3, 1914.0, 5742.5, 1964.1),
    (4317.6, 1265.0, 3285.7, 1018.3),
    (6708.1, 6738.5, 664.6, 312.0),
    (17332.7, 11181.6, 5641.5, 2549.8),
    (3176.8, 1838.0, 431.0, 157.7),
)
_LEAST_SHARE = 0.1  # of the mean; the normal distribution of a speed would reach below zero


@dataclass(frozen=True)
class Flash:
    """A class of phone by its share of the trace, and one of the links at random; both independent of each other.

    The time of a step and the two speeds of the link are drawn from their normal distributions, once for each client.
    FLASH draws them again in each round, and again if a speed is negative. Here a draw below a tenth of its mean is
    repeated, because a client keeps it.
    """

    task: str = setting("femnist", "what the phones trained", "flash", choices=tuple(FLASH_MILLISECONDS))

    def draw(self, key: tuple[int, int], client_ids: NDArray[np.int64]) -> DeviceTable:
        """See ``DeviceModel``."""
        u, v = uniforms(key, client_ids, 0)
        shares = np.cumsum(list(FLASH_PHONES.values())) / sum(FLASH_PHONES.values())
        phone = np.searchsorted(shares, u, side="right")
        link = np.array(FLASH_LINKS)[(v * len(FLASH_LINKS)).astype(np.int64)]
        step = np.array(FLASH_MILLISECONDS[self.task])[phone]
        milliseconds, download, upload = (
            _bounded(key, client_ids, number, mean_and_sd)
            for number, mean_and_sd in enumerate((step, link[:, :2], link[:, 2:]))
        )
        return DeviceTable(milliseconds / 1000, download * 1000, upload * 1000, phone, tuple(FLASH_PHONES))


def _bounded(
    key: tuple[int, int], client_ids: NDArray[np.int64], number: int, mean_and_sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draw from normal distributions until no draw is below the least share of its mean.

    Args:
        number: which of the three quantities of a client, 0 to 2.
        mean_and_sd: float64 [n, 2].
    """
    mean, sd = mean_and_sd.T
    drawn = np.zeros(len(client_ids))
    index = 1 + number
    while (low := drawn < _LEAST_SHARE * mean).any():
        drawn = np.where(low, mean + sd * normals(key, client_ids, index)[0], drawn)
        index += 3
    return drawn
