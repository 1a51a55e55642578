"""The devices and the availability of a config, by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config.choices import AVAILABILITIES
from sim.config.fields import arguments_of, setting
from sim.config.run_config import RunConfig
from sim.devices.availability import (
    Always,
    Availability,
    Bernoulli,
    BernoulliArguments,
    Diurnal,
    DiurnalArguments,
    OnOff,
    OnOffArguments,
    Trace,
)
from sim.devices.device import Device, DeviceModel, DeviceTable
from sim.devices.distributions import Flash, Lognormal, Uniform
from sim.devices.files import read_availability, read_capacity, read_table
from sim.devices.philox import key_of, uniforms
from sim.errors import ConfigError, one_line
from sim.seeds import Purpose

_BLOCK = 4096  # clients whose devices are drawn together
_MOST_BLOCKS = 512  # that are kept; 64 MB
_EXAMPLES_PER_STEP = 32
_FEDSCALE = "fedscale"
_TABLES = (".csv", ".json")

_DRAWN: dict[str, type[Any]] = {"uniform": Uniform, "lognormal": Lognormal, "flash": Flash}
_AVAILABILITIES: dict[str, tuple[type[Any], Callable[..., Availability]]] = {
    "bernoulli": (BernoulliArguments, Bernoulli),
    "on-off": (OnOffArguments, OnOff),
    "diurnal": (DiurnalArguments, Diurnal),
}


@dataclass(frozen=True)
class FedscaleArguments:
    """The arguments of ``fedscale:FILE``."""

    examples_per_step: int | None = setting(
        None,
        f"examples of a training step; --batch-size, or {_EXAMPLES_PER_STEP}, if not given",
        "fedscale",
        unit="examples",
        low=1,
        high=1_000_000,
    )


@dataclass(frozen=True)
class TableArguments:
    """``FILE.csv`` and ``FILE.json`` take no arguments."""


@dataclass(frozen=True)
class AlwaysArguments:
    """``always`` takes no arguments."""


@dataclass(frozen=True)
class TraceArguments:
    """The arguments of ``trace``."""

    file: str = setting("", "availability file of FedScale", "trace")


@dataclass(frozen=True)
class _Listed:
    """Devices of a file: each client has a row of its own, or draws one.

    Attributes:
        row_of: of each client, int64 [num_clients]; None if clients draw.
    """

    table: DeviceTable
    row_of: NDArray[np.int64] | None

    def draw(self, key: tuple[int, int], client_ids: NDArray[np.int64]) -> DeviceTable:
        """See ``DeviceModel``."""
        if self.row_of is None:
            return self.table.rows(drawn_rows(key, client_ids, len(self.table)))
        # A block may reach beyond the last client.
        return self.table.rows(self.row_of[np.minimum(client_ids, len(self.row_of) - 1)])


def drawn_rows(key: tuple[int, int], client_ids: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Return a row of a file for each client, drawn with equal probabilities, int64 [n]."""
    return (uniforms(key, client_ids, 0)[0] * num_rows).astype(np.int64)


def _own_rows(num_rows: int, num_clients: int) -> NDArray[np.int64] | None:
    """Return row i for client i; None if the file has too few."""
    return np.arange(num_clients) if num_rows >= num_clients else None


class Devices:
    """The device of each client, drawn when it is asked for, and when clients are online.

    Attributes:
        num_clients: clients have the ids from 0 to num_clients − 1.
        availability: when they are online.
    """

    def __init__(self, model: DeviceModel, availability: Availability, key: tuple[int, int], num_clients: int) -> None:
        self.num_clients = num_clients
        self.availability = availability
        self._model, self._key = model, key
        self._blocks: dict[int, DeviceTable] = {}

    def device(self, client_id: int) -> Device:
        """Return the device of a client; it depends on the config, the seed and the client_id alone."""
        number, position = divmod(client_id, _BLOCK)
        return self._block(number).row(position)

    def table(self) -> DeviceTable:
        """Return the devices of all clients."""
        blocks = [self._block(number) for number in range(-(-self.num_clients // _BLOCK))]

        def whole(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(block, name) for block in blocks])[: self.num_clients]

        return DeviceTable(
            whole("seconds_per_step"),
            whole("download_bytes_per_second"),
            whole("upload_bytes_per_second"),
            whole("kind"),
            blocks[0].kinds,
        )

    def _block(self, number: int) -> DeviceTable:
        """Return the devices of a whole block, whose arrays always have the same length.

        A last bit of what numpy computes may depend on where in an array a number stands.
        """
        if number not in self._blocks:
            if len(self._blocks) >= _MOST_BLOCKS:
                self._blocks.pop(next(iter(self._blocks)))  # the oldest
            self._blocks[number] = self._model.draw(self._key, np.arange(number * _BLOCK, (number + 1) * _BLOCK))
        return self._blocks[number]


def devices_of(config: RunConfig, num_clients: int | None = None) -> Devices:
    """Return the devices of a config.

    Args:
        num_clients: instead of that of the config.

    Raises:
        ConfigError: a name, an argument or a file is not valid.
    """
    count = config.num_clients if num_clients is None else num_clients
    model, availability_file = _device_model(config, count)
    return Devices(
        model,
        _availability(config, availability_file, count),
        key_of(config.seed, Purpose.DEVICE),
        count,
    )


def files_of(config: RunConfig) -> list[str]:
    """Return the files from which the devices of a config are made."""
    name, files = config.devices or "", []
    if name.partition(":")[0] == _FEDSCALE:
        files = name.split(":")[1:]
    elif Path(name).suffix.lower() in _TABLES:
        files = [name]
    if config.availability is None:
        return files
    # Another availability than that of the second file of FedScale.
    return [*files[:1], *([str(config.availability_args["file"])] if config.availability == "trace" else [])]


def _device_model(config: RunConfig, num_clients: int) -> tuple[DeviceModel, Path | None]:
    """Return what draws devices, and the availability file that ``--devices`` names."""
    given, name = config.device_args, config.devices
    if name in _DRAWN:
        return arguments_of(_DRAWN[name], given, "--devices", name, args_flag="--device-args"), None
    place = f"--devices {one_line(str(name))}"
    if name is not None and name.partition(":")[0] == _FEDSCALE:
        files = name.split(":")[1:]
        if not 1 <= len(files) <= 2 or not all(files):
            raise ConfigError(f"{place}: must be fedscale:CAPACITY.json or fedscale:CAPACITY.json:AVAILABILITY.json")
        arguments = arguments_of(FedscaleArguments, given, "--devices", name, args_flag="--device-args")
        examples = arguments.examples_per_step or config.batch_size or _EXAMPLES_PER_STEP
        table = read_capacity(Path(files[0]), place, examples)
        return _Listed(table, _own_rows(len(table), num_clients)), Path(files[1]) if len(files) == 2 else None
    if name is not None and Path(name).suffix.lower() in _TABLES:
        arguments_of(TableArguments, given, "--devices", name, args_flag="--device-args")
        table, row_of = read_table(Path(name), place, num_clients)
        return _Listed(table, _own_rows(len(table), num_clients) if row_of is None else row_of), None
    choices = f"one of {', '.join(_DRAWN)}, fedscale:FILE.json, FILE.csv, FILE.json"
    raise ConfigError(f"--devices: must be given, as {choices}" if name is None else f"{place}: must be {choices}")


def _availability(config: RunConfig, file: Path | None, num_clients: int) -> Availability:
    name, given = config.availability, config.availability_args
    key = key_of(config.seed, Purpose.AVAILABILITY)
    if name in _AVAILABILITIES:
        arguments, make = _AVAILABILITIES[name]
        return make(arguments_of(arguments, given, "--availability", name), key, num_clients)
    if name == "trace":
        path = arguments_of(TraceArguments, given, "--availability", name).file
        if not path:
            raise ConfigError("--availability trace: needs --availability-args file=FILE.json")
        return _trace(Path(path), f"--availability-args file={one_line(path)}", key, num_clients)
    if name is None and file is not None:
        return _trace(file, f"--devices {one_line(str(config.devices))}", key, num_clients)
    assert name in (None, "always"), AVAILABILITIES
    arguments_of(AlwaysArguments, given, "--availability", "always")
    return Always(num_clients)


def _trace(path: Path, place: str, key: tuple[int, int], num_clients: int) -> Trace:
    entries = read_availability(path, place)
    own = _own_rows(len(entries), num_clients)
    return Trace(entries, drawn_rows(key, np.arange(num_clients), len(entries)) if own is None else own)
