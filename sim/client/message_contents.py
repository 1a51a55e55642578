"""The content of messages on the way between processes: arrays travel as bytes that nobody copies or decodes.

A ``RecordDict`` is taken apart into its arrays and the rest. Arrays that many messages share are sent once, and each
message has only numbers that say which of them it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.common import Array, ArrayRecord, ConfigRecord, MetricRecord, NDArrays, RecordDict
from numpy.typing import NDArray

from sim.metrics import flattened

Bytes = NDArray[np.uint8]
# (name, kind, entries) of each record; an entry of arrays is (key, dtype, shape, stype, number of the array).
Records = list[tuple[str, str, list[tuple[Any, ...]]]]

_HEAD_BYTES = 128  # numpy.save pads the head of an array of numbers to a multiple of 64 bytes

_KINDS = {"metrics": MetricRecord, "config": ConfigRecord}


class Packer:
    """Takes contents apart. Arrays whose bytes are one object are kept once."""

    def __init__(self) -> None:
        self.arrays: list[Bytes] = []
        self._numbers: dict[int, int] = {}
        self._sources: list[Any] = []  # so that no other object gets the id of one of them

    def pack(self, content: RecordDict) -> Records:
        """Return the records of ``content``; its arrays are added to ``arrays``."""
        return _records(content, self._number_of)

    def _number_of(self, array: Array) -> int:
        source = source_of(array)
        number = self._numbers.get(id(source))
        if number is None:
            number = self._numbers[id(source)] = len(self.arrays)
            self.arrays.append(np.frombuffer(source, np.uint8))
            self._sources.append(source)
        return number


def _records(content: RecordDict, number_of: Callable[[Array], int]) -> Records:
    records: Records = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            entries = [
                (key, array.dtype, tuple(array.shape), array.stype, number_of(array)) for key, array in record.items()
            ]
            records.append((name, "arrays", entries))
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "config"
            records.append((name, kind, [(key, _copied(value)) for key, value in record.items()]))
    return records


def without_arrays(content: RecordDict) -> Records:
    """Return the records of a content whose arrays travel elsewhere, as part of a sum."""
    return _records(content, lambda _: -1)


def source_of(array: Array) -> bytes | Bytes:
    """Return the object that holds the bytes of an array; arrays that share it are equal."""
    return array.content if isinstance(array, ReceivedArray) else array.data


def unpack(records: Records, arrays: Sequence[Any]) -> RecordDict:
    """Return the content that was packed.

    Args:
        arrays: the bytes of each array, as ``bytes`` or as an array.
    """
    content = RecordDict()
    for name, kind, entries in records:
        if kind == "arrays":
            record = ArrayRecord()
            for key, dtype, shape, stype, number in entries:
                record[key] = _array(dtype, shape, stype, arrays[number])
            content[name] = record
        else:
            content[name] = _KINDS[kind]({key: _copied(value) for key, value in entries})
    return content


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes | Bytes) -> Array:
    if isinstance(data, bytes):
        return Array(dtype=dtype, shape=shape, stype=stype, data=data)
    return ReceivedArray(dtype, shape, stype, data)


class ReceivedArray(Array):
    """An array of Flower whose content stays in the memory where it arrived, which processes may share.

    ``numpy`` copies the numbers once; ``data`` copies the bytes when somebody asks for them.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, content: Bytes) -> None:
        self.dtype, self.shape, self.stype = dtype, shape, stype
        self.content = content

    @property
    def data(self) -> bytes:
        """The content as ``numpy.save`` writes it."""
        return self.content.tobytes()

    @data.setter
    def data(self, value: bytes) -> None:
        self.content = np.frombuffer(value, np.uint8)

    def numpy(self) -> NDArray[Any]:
        """Return a copy of the array."""
        return _numbers_in(self).copy("K")


def _numbers_in(array: Array) -> NDArray[Any]:
    """Return the numbers of an array: over its own bytes, read-only, if these are as ``numpy.save`` writes them."""
    content = source_of(array)
    head = _head(bytes(content[:_HEAD_BYTES])) if array.stype == "numpy.ndarray" else None
    if head is None:
        return Array(array.dtype, array.shape, array.stype, array.data).numpy()
    shape, is_fortran, dtype, start = head
    numbers = np.frombuffer(content, dtype, math.prod(shape), start)
    return numbers.reshape(shape, order="F" if is_fortran else "C")


@lru_cache(maxsize=4096)  # numpy parses it as Python, which takes longer than to add the numbers of a small array
def _head(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int] | None:
    """Return shape, order, dtype and first byte of an array; None if ``numpy.save`` writes such an array otherwise."""
    file = BytesIO(content)
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            return None if dtype.hasobject else (shape, is_fortran, dtype, file.tell())
    except ValueError:  # a longer head
        pass
    return None


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def as_bytes(arrays: Iterable[Bytes]) -> list[bytes]:
    """Return arrays as ``bytes``, which user code may expect; without a copy where they were made from such."""
    return [array.base if isinstance(array.base, bytes) else array.tobytes() for array in arrays]


def keys_of(records: Records) -> list[tuple[str, str]]:
    """Return (record, key) of each array, in order."""
    return [(name, entry[0]) for name, kind, entries in records if kind == "arrays" for entry in entries]


def numbers_of(content: RecordDict) -> dict[str, Any]:
    """Return the numbers in the metric records of a content; a key that two records have is that of the last."""
    return flattened({key: value for record in content.metric_records.values() for key, value in record.items()})


def weights_of(content: RecordDict) -> NDArrays:
    """Return all arrays of a content, decoded and read-only; most of them share their memory with it."""
    return [_numbers_in(array) for record in content.array_records.values() for array in record.values()]
