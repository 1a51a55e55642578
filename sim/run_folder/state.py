"""What a strategy and its clients keep from round to round ↔ JSON and arrays; nothing is ever unpickled."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.common import NDArray, Parameters, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictMessage
from flwr.server.strategy import Strategy
from google.protobuf.message import DecodeError

from sim.errors import StateError

Arrays = dict[str, NDArray]
Tree = dict[str, Any]  # what JSON can hold; one key says what kind of value it is

_KINDS = "bifu"  # of the numbers that safetensors holds
_SIZES = (1, 2, 4, 8)


def encode(value: Any, name: str, arrays: Arrays) -> Tree:  # noqa: PLR0911 - a return a kind
    """Return ``value`` for JSON; its arrays go to ``arrays``, copied, under names that begin with ``name``.

    Numbers, texts, arrays, lists, tuples, dicts, Parameters and strategies are kept. A function is not: the config
    that made the strategy makes it again.

    Raises:
        StateError: something else; the message names it.
    """
    match value:
        case None | bool() | str():
            return {"value": value}
        case int() if type(value) is int:
            return {"value": value}
        case float() if type(value) is float:
            return {"float": value.hex()}  # to the bit
        case np.ndarray() | np.generic():
            array = np.array(value, order="C")
            if array.dtype.kind not in _KINDS or array.dtype.itemsize not in _SIZES or not array.dtype.isnative:
                raise StateError(f"{name} ({array.dtype.name} array)")
            arrays[name] = array
            return {"array" if isinstance(value, np.ndarray) else "number": name}
        case list() | tuple():
            parts = [encode(part, f"{name}.{number}", arrays) for number, part in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": parts}
        case dict() if all(type(key) in (str, int) for key in value):
            pairs = [[key, encode(part, f"{name}.{key}", arrays)] for key, part in value.items()]
            return {"dict": pairs}
        case Parameters():
            for number, tensor in enumerate(value.tensors):
                arrays[f"{name}.{number}"] = np.frombuffer(tensor, np.uint8)
            return {"parameters": value.tensor_type, "count": len(value.tensors)}
        case Strategy():
            state = {key: encode(part, f"{name}.{key}", arrays) for key, part in vars(value).items()}
            return {"strategy": type(value).__qualname__, "state": state}
    if callable(value):
        return {"function": getattr(value, "__qualname__", type(value).__qualname__)}
    raise StateError(f"{name} ({type(value).__name__})")


def decode(tree: Tree, name: str, arrays: Arrays, old: Any = None) -> Any:  # noqa: PLR0911 - a return a kind
    """Return what ``encode`` was given.

    Args:
        old: the value in the strategy as the config has made it; what was not kept stays as it is there.

    Raises:
        StateError: the tree is none of ``encode``'s, or does not belong to ``old``.
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
        case {"tuple": list(parts)}:
            return tuple(decode(part, f"{name}.{number}", arrays) for number, part in enumerate(parts))
        case {"dict": list(pairs)}:
            return {key: decode(part, f"{name}.{key}", arrays) for key, part in pairs}
        case {"parameters": str(kind), "count": int(count)}:
            return Parameters([arrays[f"{name}.{number}"].tobytes() for number in range(count)], kind)
        case {"function": str(_)} if callable(old):
            return old
        case {"strategy": str(kind), "state": dict(state)} if isinstance(old, Strategy):
            restore(old, kind, state, name, arrays)
            return old
    raise StateError(name)


def restore(strategy: Strategy, kind: str, state: dict[str, Tree], name: str, arrays: Arrays) -> None:
    """Put a strategy into the state that ``encode`` kept.

    Raises:
        StateError: it is of another class, or its state cannot be read.
    """
    if type(strategy).__qualname__ != kind:
        raise StateError(f"{name}: of a {kind}, not of a {type(strategy).__qualname__}")
    values = {key: decode(tree, f"{name}.{key}", arrays, getattr(strategy, key, None)) for key, tree in state.items()}
    vars(strategy).update(values)


def pack_record(state: RecordDict) -> NDArray:
    """A client's ``Context.state`` as Flower sends it, uint8 [bytes]."""
    return np.frombuffer(recorddict_to_proto(state).SerializeToString(), np.uint8)


def unpack_record(content: NDArray) -> RecordDict:
    """Return what ``pack_record`` was given.

    Raises:
        StateError: it is none.
    """
    try:
        return recorddict_from_proto(RecordDictMessage.FromString(content.tobytes()))
    except (DecodeError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"a client's state: {error}") from error
