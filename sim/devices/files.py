"""Files of devices and of availability: FedScale's two JSON files, and tables of the user's as CSV or JSON.

FedScale (Lai et al. 2022, "FedScale: Benchmarking Model and System Performance of Federated Learning at Scale", ICML)
describes a client by an entry of a capacity file and one of an availability file:

    {"1": {"computation": 24.0, "communication": 15330.0}, …}
    {"1": {"active": [12788, 100044], "inactive": [65881, 133574], "finish_time": 518400, "duration": …, "model": …}, …}

What the numbers mean is said by github.com/SymbioticLab/FedScale at 7ec441c:

- ``fedscale/cloud/internal/client_metadata.py``, ``get_completion_time``: "computation" is the milliseconds of one
  inference of one example; a training step takes 3 times as long, because the backward pass takes twice the time of the
  forward pass. The same "communication" is the bandwidth of both directions.
- ``fedscale/cloud/aggregation/aggregator.py``, ``run``: the size of a model is its bytes ÷ 1024 × 8, which the code
  calls kbits, so that a "communication" of 1 is 128 bytes per second.
- ``is_active`` of the first file: times are in seconds modulo "finish_time", and a client is online from active[i] to
  inactive[i].

FedScale's own files are pickles, which execute code when they are read; they are refused with the command that
converts them.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.config.fields import parse_number, shown
from sim.devices.device import BYTES_OF_MBIT, MBPS, STEP_SECONDS, DeviceTable
from sim.disk import check_is_file
from sim.errors import ConfigError, one_line

PASSES_OF_A_STEP = 3.0  # forward, and backward as twice the forward pass
BYTES_OF_KBIT = 128.0  # FedScale's kbit is 1,024 bits

_MOST_SECONDS = 1e12  # of virtual time, as --deadline
_KBITS = MBPS[0] * BYTES_OF_MBIT / BYTES_OF_KBIT, MBPS[1] * BYTES_OF_MBIT / BYTES_OF_KBIT
_BOUNDS = {
    "seconds_per_step": STEP_SECONDS,
    "download_mbps": MBPS,
    "upload_mbps": MBPS,
    "computation": (STEP_SECONDS[0] * 1000, STEP_SECONDS[1] * 1000),
    "communication": _KBITS,
    "finish_time": (1e-3, _MOST_SECONDS),
}
_NUMBERS = ("seconds_per_step", "download_mbps", "upload_mbps")
_COLUMNS = (*_NUMBERS, "client_id", "kind")


@dataclass(frozen=True)
class Periods:
    """When an entry of an availability file is online: these intervals, repeated after each period.

    Attributes:
        starts: seconds from the beginning of a period, ascending; the intervals do not touch each other.
        ends: of the same intervals, at most the period.
        period: seconds.
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    period: float


def read_capacity(path: Path, place: str, examples_per_step: int) -> DeviceTable:
    """Read a capacity file of FedScale.

    Args:
        place: the flag with its value, for the error messages.

    Raises:
        ConfigError: the message names the line or the entry.
    """
    content = _read_json(path, place)
    milliseconds, kbits = [], []
    for where, entry in _entries(content, f"{place}: {path}"):
        milliseconds.append(_number(entry, "computation", where))
        kbits.append(_number(entry, "communication", where))
    bytes_per_second = np.array(kbits) * BYTES_OF_KBIT
    seconds = np.array(milliseconds) * (PASSES_OF_A_STEP * examples_per_step / 1000)
    return DeviceTable(seconds, bytes_per_second, bytes_per_second, np.zeros(len(kbits), np.int64))


def read_availability(path: Path, place: str) -> tuple[Periods, ...]:
    """Read an availability file of FedScale.

    Intervals that overlap or touch are one, and what is after "finish_time" is never reached, as in FedScale.

    Raises:
        ConfigError: the message names the line or the entry.
    """
    content = _read_json(path, place)
    return tuple(_periods(entry, where) for where, entry in _entries(content, f"{place}: {path}"))


def _periods(entry: Mapping[str, Any], where: str) -> Periods:
    period = _number(entry, "finish_time", where)
    active, inactive = (_numbers(entry, name, where) for name in ("active", "inactive"))
    if len(active) != len(inactive):
        raise ConfigError(
            f'{where}: "active" has {len(active)} times and "inactive" {len(inactive)}; each interval has one of both'
        )
    merged: list[list[float]] = []
    for number, (start, end) in enumerate(zip(active, inactive, strict=True)):
        if end < start:
            raise ConfigError(
                f"{where}: interval {number + 1} begins at active = {start:g} and ends before that, at inactive = "
                f"{end:g}"
            )
    for start, end in sorted(zip(active, inactive, strict=True)):
        if start >= min(end, period):
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], min(end, period))
        else:
            merged.append([start, min(end, period)])
    return Periods(tuple(start for start, _ in merged), tuple(end for _, end in merged), period)


def _entries(content: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where}: must be a JSON object with one entry for each client, as in FedScale")
    for name, entry in content.items():
        place = f"{where}: entry {json.dumps(one_line(name, 60), ensure_ascii=False)}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{place}: must be an object, as in FedScale")
        yield place, entry


def read_table(path: Path, place: str, num_clients: int) -> tuple[DeviceTable, NDArray[np.int64] | None]:
    """Read a table of devices, one a row of FILE.csv or an object of the list in FILE.json.

    Its columns are seconds_per_step, download_mbps and upload_mbps (Mbit/s; inf takes no time), and may be client_id
    and kind.

    Returns:
        The devices, and the row of each client, int64 [num_clients], if the table has client_id.

    Raises:
        ConfigError: the message names the line of a CSV file, or the entry of a JSON file.
    """
    rows = _csv_rows(path, place) if path.suffix.lower() == ".csv" else _json_rows(path, place)
    columns: dict[str, list[float]] = {name: [] for name in _NUMBERS}
    kinds: dict[str, int] = {}
    kind_of: list[int] = []
    row_of: dict[int, tuple[int, str]] = {}
    has_ids = False
    for number, (where, row) in enumerate(rows):
        for name in _NUMBERS:
            may_be_infinite = name != "seconds_per_step"
            columns[name].append(_number(row, name, where, may_be_infinite=may_be_infinite))
        kind = row.get("kind", "")
        if not isinstance(kind, str):
            raise ConfigError(f"{where}: kind = {shown(kind)}: must be text")
        kind_of.append(kinds.setdefault(one_line(kind, 60), len(kinds)))
        if number and has_ids != ("client_id" in row):
            raise ConfigError(f"{where}: either every row has a client_id or none")
        has_ids = "client_id" in row
        if has_ids:
            client_id = _client_id(row["client_id"], where)
            if client_id in row_of:
                raise ConfigError(f"{where}: client_id {client_id} stands in {row_of[client_id][1]}, too")
            row_of[client_id] = number, where.rpartition(": ")[2]
    if not kind_of:
        raise ConfigError(f"{place}: {path}: has no devices")
    table = DeviceTable(
        np.array(columns["seconds_per_step"]),
        np.array(columns["download_mbps"]) * BYTES_OF_MBIT,
        np.array(columns["upload_mbps"]) * BYTES_OF_MBIT,
        np.array(kind_of, np.int64),
        tuple(kinds),
    )
    if not has_ids:
        return table, None
    missing = next((client_id for client_id in range(num_clients) if client_id not in row_of), None)
    if missing is not None:
        raise ConfigError(
            f"{place}: {path}: has a client_id column without client {missing}; it must have clients 0 to "
            f"{num_clients - 1}"
        )
    return table, np.array([row_of[client_id][0] for client_id in range(num_clients)], np.int64)


def _csv_rows(path: Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    line = 1
    try:
        check_is_file(path, read_again=True)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_names(header, f"{place}: {path}: line 1", "column")
            for fields in reader:
                line = reader.line_num
                if not fields:
                    continue  # an empty line, as many files have at their end
                where = f"{place}: {path}: line {line}"
                if len(fields) != len(header):
                    raise ConfigError(f"{where}: has {len(fields)} fields, but the header has {len(header)}")
                yield where, dict(zip(header, (field.strip() for field in fields), strict=True))
    except OSError as error:
        raise ConfigError(f"{place}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: {path}: is not UTF-8") from None
    except csv.Error as error:
        raise ConfigError(f"{place}: {path}: line {line + 1}: {error}") from None


def _json_rows(path: Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    content = _read_json(path, place)
    if not isinstance(content, list):
        raise ConfigError(f"{place}: {path}: must be a list of objects with the keys {', '.join(_NUMBERS)}")
    for number, row in enumerate(content):
        where = f"{place}: {path}: entry {number + 1}"
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: must be an object")
        _check_names(list(row), where, "key")
        yield where, row


def _check_names(names: Sequence[str], where: str, word: str) -> None:
    missing = [name for name in _NUMBERS if name not in names]
    if missing:
        raise ConfigError(f"{where}: there is no {word} {missing[0]}; {', '.join(_NUMBERS)} are needed")
    for number, name in enumerate(names):
        if name not in _COLUMNS:
            known = ", ".join(_COLUMNS)
            raise ConfigError(f"{where}: unknown {word} {one_line(name, 60)}; the valid ones are {known}")
        if name in names[:number]:
            raise ConfigError(f"{where}: the {word} {name} stands there twice")


class _TwiceError(ValueError):
    """A key of a JSON object stands there twice."""


def _read_json(path: Path, place: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        ConfigError: it cannot be read, is a pickle, or is not valid JSON; the message names the line.
    """
    try:
        check_is_file(path, read_again=True)
        content = path.read_bytes()
        if _is_pickle(content):
            source, target = repr(str(path)), repr(f"{path}.json")
            code = (
                f"import json, pickle; json.dump(pickle.load(open({source}, 'rb')), open({target}, 'w'), default=float)"
            )
            raise ConfigError(
                f"{place}: {path}: is a pickle, which may execute any code when it is read; if you trust it, convert "
                f"it to JSON: python -c {shlex.quote(code)}"
            )
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise ConfigError(f"{place}: {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: {path}: line {error.lineno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: {path}: is not UTF-8") from None
    except _TwiceError as error:
        raise ConfigError(f"{place}: {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, nested too deeply
        raise ConfigError(f"{place}: {path}: not valid JSON: {one_line(str(error))}") from None


def _is_pickle(content: bytes) -> bool:
    return content[:1] == b"\x80" or content[:3] in (b"(dp", b"(lp")  # protocols from 2 on, and 0


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise _TwiceError(f"the key {json.dumps(one_line(twice, 60), ensure_ascii=False)} stands in an object twice")
    return made


def _number(row: Mapping[str, Any], name: str, where: str, *, may_be_infinite: bool = False) -> float:
    if name not in row:
        raise ConfigError(f"{where}: there is no {name}")
    value = _as_float(row[name])
    low, high = _BOUNDS[name]
    if value is None or not value > 0 or (math.isinf(value) and not may_be_infinite):
        raise ConfigError(f"{where}: {name} = {_short(row[name])}: must be a number above 0")
    if not low <= value <= high and not math.isinf(value):
        or_infinite = ", or inf" if may_be_infinite else ""
        raise ConfigError(
            f"{where}: {name} = {_short(row[name])}: must be at least {low:g} and at most {high:g}{or_infinite}"
        )
    return value


def _numbers(entry: Mapping[str, Any], name: str, where: str) -> list[float]:
    values = entry.get(name)
    if not isinstance(values, list):
        raise ConfigError(f'{where}: "{name}" must be a list of times in seconds')
    numbers = [_as_float(value) for value in values]
    for position, number in enumerate(numbers):
        if number is None or not 0 <= number <= _MOST_SECONDS:
            raise ConfigError(
                f'{where}: time {position + 1} of "{name}" = {_short(values[position])}: must be a number of seconds, '
                f"at least 0 and at most {_MOST_SECONDS:g}"
            )
    return [number for number in numbers if number is not None]


def _as_float(value: Any) -> float | None:
    """Return a number of a file as float; None if it is none, or NaN."""
    if isinstance(value, str):  # a field of a CSV file
        number = math.inf if value.lower() == "inf" else parse_number(float, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of 400 digits
            return None
    else:
        return None
    return None if number is None or math.isnan(number) else number


def _client_id(value: Any, where: str) -> int:
    number = _as_float(value)
    if number is None or number < 0 or not number.is_integer():
        raise ConfigError(f"{where}: client_id = {_short(value)}: must be a whole number, at least 0")
    return int(number)


def _short(value: Any) -> str:
    return one_line(shown(value), 60)
