"""Converts the state of a strategy and its clients to JSON and arrays, and back; nothing is ever unpickled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.common import Array, ArrayRecord, ConfigRecord, MetricRecord, NDArray, Parameters, RecordDict
from flwr.server.strategy import Strategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim import own_generators, private_names
from sim.errors import StateError

Arrays = dict[str, NDArray]
Tree = dict[str, Any]  # a JSON object; one of its keys names the kind of the value

# The dtypes of numbers that safetensors can store.
_DTYPE_KINDS = "bifu"
_DTYPE_BYTES = (1, 2, 4, 8)
_RECORD_MAGIC = b"sim record 1\n"  # protobuf messages of earlier versions begin with another byte


def encode(value: Any, name: str, arrays: Arrays) -> Tree:  # noqa: PLR0911, PLR0912 - one return per kind
    """Convert ``value`` to a JSON object; copies of its arrays are added to ``arrays``, named after ``name``.

    Numbers, texts, arrays, lists, tuples, sets, dicts, Parameters, random generators and strategies are stored. Of a
    function, only the name is stored, because the config that made the strategy makes the function again.

    Raises:
        StateError: the value has another type; the message names it.
    """
    match value:
        case None | bool() | str():
            return {"value": value}
        case int() if type(value) is int:
            return {"value": value}
        case float() if type(value) is float:
            return {"float": value.hex()}  # exact to the last bit
        case np.ndarray() | np.generic():
            array = np.array(value, order="C")
            if (
                array.dtype.kind not in _DTYPE_KINDS
                or array.dtype.itemsize not in _DTYPE_BYTES
                or not array.dtype.isnative
            ):
                raise StateError(f"{name} ({array.dtype.name} array)")
            arrays[name] = array
            return {"array" if isinstance(value, np.ndarray) else "number": name}
        case bytes():
            return {"bytes": value.hex()}
        case list() | tuple() | set():
            parts = [encode(part, f"{name}.{number}", arrays) for number, part in enumerate(value)]
            return {type(value).__name__ if type(value) in (list, set) else "tuple": parts}
        case dict() if all(type(key) in (str, int) for key in value):
            pairs = [[key, encode(part, f"{name}.{key}", arrays)] for key, part in value.items()]
            return {"dict": pairs}
        case Parameters():
            for number, tensor in enumerate(value.tensors):
                arrays[f"{name}.{number}"] = np.frombuffer(tensor, np.uint8)
            return {"parameters": value.tensor_type, "count": len(value.tensors)}
        case ArrayRecord() | MetricRecord() | ConfigRecord():
            arrays[name] = pack_record(RecordDict({"record": value}))
            return {"record": name}
        case Strategy() | MessageStrategy():
            state = {key: encode(part, f"{name}.{key}", arrays) for key, part in vars(value).items()}
            return {"strategy": type(value).__qualname__, "state": state}
    if kind := own_generators.kind_of(value):
        return {"generator": kind, "state": encode(own_generators.state_of(value), name, arrays)}
    if is_flowers(value) and hasattr(value, "load_state_dict"):  # the accountant of differential privacy
        return {"flower": json.dumps(value.state_dict())}
    if callable(value):
        return {"function": getattr(value, "__qualname__", type(value).__qualname__)}
    raise StateError(f"{name} ({type(value).__name__})")


def decode(tree: Tree, name: str, arrays: Arrays, old: Any = None) -> Any:  # noqa: PLR0911, PLR0912 - one return per kind
    """Return the value that ``encode`` converted to ``tree``.

    Args:
        old: the same value in the strategy that was newly made from the config; strategies in it are
            updated in place, and functions are taken from it.

    Raises:
        StateError: ``tree`` was not made by ``encode``, or it does not belong to ``old``.
    """
    match tree:
        case {"value": (None | bool() | str() | int()) as value}:
            return value
        case {"float": str(text)}:
            return float.fromhex(text)
        case {"array": str(key)} if key == name:
            return arrays[key]
        case {"number": str(key)} if key == name:
            return arrays[key][()]
        case {"list": list(parts)}:
            return [decode(part, f"{name}.{number}", arrays) for number, part in enumerate(parts)]
        case {"bytes": str(text)}:
            return bytes.fromhex(text)
        case {"set": list(parts)}:
            return {decode(part, f"{name}.{number}", arrays) for number, part in enumerate(parts)}
        case {"generator": str(kind), "state": dict(tree)}:
            state = decode(tree, name, arrays)
            if own_generators.kind_of(old) != kind:
                return own_generators.with_state(kind, state)
            own_generators.put_state(old, state)
            return old
        case {"tuple": list(parts)}:
            return tuple(decode(part, f"{name}.{number}", arrays) for number, part in enumerate(parts))
        case {"dict": list(pairs)}:
            olds = old if isinstance(old, dict) else {}
            return {key: decode(part, f"{name}.{key}", arrays, olds.get(key)) for key, part in pairs}
        case {"record": str(key)} if key == name:
            return unpack_record(arrays[key])["record"]
        case {"parameters": str(kind), "count": int(count)}:
            return Parameters([arrays[f"{name}.{number}"].tobytes() for number in range(count)], kind)
        case {"flower": str(text)} if hasattr(old, "load_state_dict"):
            old.load_state_dict(json.loads(text))
            return old
        case {"function": str(_)} if callable(old):
            return old
        case {"strategy": str(kind), "state": dict(state)} if isinstance(old, Strategy | MessageStrategy):
            restore(old, kind, state, name, arrays)
            return old
    raise StateError(name)


def restore(strategy: Strategy | MessageStrategy, kind: str, state: dict[str, Tree], name: str, arrays: Arrays) -> None:
    """Set a strategy to the state that ``encode`` converted.

    Args:
        kind: name of the class of the strategy whose state it is.

    Raises:
        StateError: the strategy has another class or other attributes, or the state cannot be read.
    """
    made_as = vars(strategy)
    if type(strategy).__qualname__ != kind:
        raise StateError(f"{name}: the state is of the class {kind}, not {type(strategy).__qualname__}")
    if missing := made_as.keys() - state.keys():
        raise StateError(f"{name}: the state has no {', '.join(sorted(missing))}")
    if methods := [key for key in state.keys() - made_as.keys() if callable(getattr(strategy, key, None))]:
        raise StateError(f"{name}: the state has a value for the method {methods[0]}")
    values = {key: decode(tree, f"{name}.{key}", arrays, made_as.get(key)) for key, tree in state.items()}
    for key, value in values.items():
        if is_flowers(strategy) and not _same_kind(value, made_as.get(key)):
            raise StateError(f"{name}.{key}: is of the type {type(value).__name__}")
    made_as.update(values)


def is_flowers(strategy: Any) -> bool:
    """Whether a strategy's class is one of Flower's, whose attributes keep their types."""
    return type(strategy).__module__.startswith("flwr.")


def _same_kind(value: Any, made_as: Any) -> bool:
    if value is None or made_as is None or (callable(value) and callable(made_as)):
        return True
    kinds = (bool, int | float | np.number, str, list, tuple, dict, Parameters, Strategy, MessageStrategy, ArrayRecord)
    return any(isinstance(value, kind) and isinstance(made_as, kind) for kind in kinds)


def pack_record(state: RecordDict) -> NDArray:
    """Return a client's ``Context.state`` as bytes, uint8 [N]: a line of JSON, then the content of its arrays."""
    records: list[list[Any]] = []
    contents: list[bytes] = []
    for name, record in state.items():
        if isinstance(record, ArrayRecord):
            arrays = [
                [key, array.dtype, list(array.shape), array.stype, len(array.data)] for key, array in record.items()
            ]
            contents += [array.data for array in record.values()]
            records.append([name, "arrays", arrays])
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "config"
            records.append([name, kind, [[key, _without_bytes(value)] for key, value in record.items()]])
    header = json.dumps(records).encode()
    return np.frombuffer(b"".join([_RECORD_MAGIC, header, b"\n", *contents]), np.uint8)


def unpack_record(content: NDArray) -> RecordDict:
    """Return the record that ``pack_record`` converted to ``content``.

    Raises:
        StateError: ``content`` is not such a record.
    """
    data = content.tobytes()
    try:
        if not data.startswith(_RECORD_MAGIC):
            found: RecordDict = private_names.record_from_protobuf(data)
            return found
        header, _, rest = data.removeprefix(_RECORD_MAGIC).partition(b"\n")
        state = RecordDict()
        for name, kind, entries in json.loads(header):
            if kind == "arrays":
                record = ArrayRecord()
                for key, dtype, shape, stype, size in entries:
                    record[key] = Array(dtype=dtype, shape=tuple(shape), stype=stype, data=rest[:size])
                    rest = rest[size:]
                state[name] = record
            else:
                values = {key: _with_bytes(value) for key, value in entries}
                state[name] = MetricRecord(values) if kind == "metrics" else ConfigRecord(values)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"a client's state: {error}") from error
    return state


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return [_without_bytes(item) for item in value] if isinstance(value, list) else value


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"])
    return [_with_bytes(item) for item in value] if isinstance(value, list) else value
