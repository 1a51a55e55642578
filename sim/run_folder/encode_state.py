"""Converts the state of a strategy and its clients to JSON and arrays, and back; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.common import Array, ArrayRecord, ConfigRecord, MetricRecord, NDArray, Parameters, RecordDict
from flwr.server.strategy import Strategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim import own_generators, private_names
from sim.errors import StateError
from sim.run_folder.plain_forms import class_named, is_made_by_name, of_plain_form, plain_form
from sim.run_folder.torch_states import Tree, array_of, has_state_dict, is_data_set, is_tensor, tensor_of
from sim.user_objects import MISSING, attributes_of, name_of

Arrays = dict[str, NDArray]

# The dtypes of numbers that safetensors can store.
_DTYPE_KINDS = "bifu"
_DTYPE_BYTES = (1, 2, 4, 8)
_DICTS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter, "defaultdict": defaultdict}
_FACTORIES: dict[str, Any] = {made.__name__: made for made in (bool, dict, float, int, list, set, str)}
_RECORD_MAGIC = b"sim record 1\n"  # protobuf messages of earlier versions begin with another byte


class Encoder:
    """Converts values to JSON objects; copies of their arrays are added to ``arrays``.

    Numbers, texts, arrays, tensors, containers, Parameters, random generators, strategies, plain forms and objects of
    the user's classes are stored. What is there twice is stored once.
    """

    def __init__(self, arrays: Arrays, *, is_made_again: bool = True, is_first_enough: bool = False) -> None:
        """
        Args:
            is_made_again: the program makes its functions, and other objects that are called, again, so that their
                names are stored. Else they cannot be.
            is_first_enough: an error names one thing that cannot be stored, instead of all.
        """
        self._arrays, self._is_made_again, self._is_first_enough = arrays, is_made_again, is_first_enough
        self._known: dict[int, tuple[Any, Tree]] = {}  # by id of an object, which is kept, so that no other gets it
        self._num_known = 0
        self._problems: list[str] = []

    def encode(self, value: Any, name: str) -> Tree:
        """Convert ``value``; its arrays are named after ``name``.

        Raises:
            StateError: something in it cannot be stored; the message names all of that.
        """
        self._problems = []
        tree = self._tree(value, name)
        if self._problems:
            names = (problem.removeprefix(f"{name}.").removeprefix("strategy.") for problem in self._problems)
            raise StateError(", ".join(names))
        return tree

    def _tree(self, value: Any, name: str) -> Tree:
        if value is None or type(value) in (bool, str, int):
            return {"value": value}
        if type(value) is float:
            return {"float": value.hex()}  # exact to the last bit
        if id(value) in self._known:
            tree = self._known[id(value)][1]
            if "id" not in tree:
                self._num_known += 1
                tree["id"] = self._num_known
            return {"same": tree["id"]}
        tree = {}
        if not isinstance(value, tuple | bytes | np.generic):
            self._known[id(value)] = value, tree  # before what it holds, which may be itself
        tree |= self._new_tree(value, name)
        return tree

    def _new_tree(self, value: Any, name: str) -> Tree:  # noqa: PLR0911, PLR0912 - one return per kind
        match value:
            case np.str_():
                return {"value": str(value)}
            case np.ndarray() | np.generic():
                return self._array(value, name, {}, "array" if isinstance(value, np.ndarray) else "number")
            case _ if is_tensor(value):
                return self._tensor(value, name)
            case bytes():
                return {"bytes": value.hex()}
            case tuple() if hasattr(value, "_fields") and class_named(name_of(type(value))) is type(value):
                return {"named tuple": name_of(type(value)), "parts": self._parts(value, name)}
            case tuple():
                return {"tuple": self._parts(value, name)}
            case set() | frozenset():
                return {type(value).__name__: sorted(self._parts(value, name), key=json.dumps)}
            case deque():
                return {"deque": self._parts(value, name), "most": value.maxlen}
            case list() if type(value) is list:
                return {"list": self._parts(value, name)}
            case dict() if type(value) in _DICTS.values():
                return self._dict(value, name)
            case Parameters():
                for number, tensor in enumerate(value.tensors):
                    self._arrays[f"{name}.{number}"] = np.frombuffer(tensor, np.uint8)
                return {"parameters": value.tensor_type, "count": len(value.tensors)}
            case ArrayRecord() | MetricRecord() | ConfigRecord():
                return self._array(pack_record(RecordDict({"record": value})), name, {}, "record")
            case RecordDict():
                return self._array(pack_record(value), name, {}, "records")
            case Strategy() | MessageStrategy():
                return {"strategy": type(value).__qualname__, "state": self._attributes(value, name)}
        if kind := own_generators.kind_of(value):
            return {"generator": kind, "state": self._tree(own_generators.state_of(value), name)}
        if is_flowers(value) and hasattr(value, "load_state_dict"):  # the accountant of differential privacy
            return {"flower": json.dumps(value.state_dict())}
        if (form := plain_form(value)) is not None:
            return form
        if self._is_made_again and (callable(value) or has_state_dict(value)):
            return {"function": getattr(value, "__qualname__", type(value).__qualname__)}
        if is_made_by_name(type(value)) and not has_state_dict(value) and not is_data_set(value):
            return {"object": name_of(type(value)), "state": self._attributes(value, name)}
        return self._none(value, name)

    def _none(self, value: Any, name: str, kind: str = "") -> Tree:
        self._problems.append(f"{name} ({kind or type(value).__name__})")
        if self._is_first_enough:
            raise StateError(self._problems[0])
        return {}

    def _parts(self, values: Iterable[Any], name: str) -> list[Tree]:
        return [self._tree(part, f"{name}.{number}") for number, part in enumerate(values)]

    def _attributes(self, value: Any, name: str) -> dict[str, Tree]:
        return {key: self._tree(part, f"{name}.{key}") for key, part in attributes_of(value).items()}

    def _dict(self, value: Any, name: str) -> Tree:
        kind = next(kind for kind, made in _DICTS.items() if type(value) is made)
        if all(type(key) in (str, int) for key in value):
            tree: Tree = {"dict": [[key, self._tree(part, f"{name}.{key}")] for key, part in value.items()]}
        elif all(is_key(key) for key in value):
            pairs = enumerate(value.items())
            tree = {"items": [[self._tree(key, ""), self._tree(part, f"{name}.{n}")] for n, (key, part) in pairs]}
        else:
            return self._none(value, name)
        if kind == "defaultdict":
            factory = value.default_factory
            if not self._is_made_again and factory is not None and factory not in _FACTORIES.values():
                return self._none(value, name)
            tree["factory"] = getattr(factory, "__name__", None)
        return tree if kind == "dict" else {**tree, "kind": kind}

    def _array(self, value: Any, name: str, more: Tree, kind: str) -> Tree:
        array = np.array(value, order="C")
        is_known = array.dtype.kind in _DTYPE_KINDS and array.dtype.itemsize in _DTYPE_BYTES and array.dtype.isnative
        if not is_known or type(value) not in (np.ndarray, type(array[()])):
            return self._none(value, name, f"{array.dtype.name} array")
        while name in self._arrays:  # as of the keys 0 and "0" of a dict
            name += "'"
        self._arrays[name] = array
        return {kind: name, **more}

    def _tensor(self, value: Any, name: str) -> Tree:
        try:
            array, more = array_of(value)
        except (TypeError, RuntimeError):  # sparse, or of a dtype that numpy lacks
            return self._none(value, name)
        return self._array(array, name, more, "tensor")


class Decoder:
    """Returns the values that an ``Encoder`` converted."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._made: dict[int, Any] = {}
        self._used: dict[int, Any] = {}
        self._places: set[int] = set()  # of arrays and tensors that were given their content

    def decode(self, tree: Tree, name: str, old: Any = None, into: Any = None) -> Any:  # noqa: PLR0911 - one per kind
        """Return a value.

        Args:
            old: the same value in the strategy that was newly made from the config; strategies and objects in it are
                updated in place, and functions are taken from it.
            into: is given the content, if it is of the same kind.

        Raises:
            StateError: ``tree`` was not made by an ``Encoder``, or it does not belong to ``old``.
        """
        match tree:
            case {"same": int(number)} if number in self._made:
                return self._made[number]
            case {"list": list()}:
                made = self._begun(tree, into if type(into) is list else [])
                made[:] = self._parts(tree["list"], name, old)
                return made
            case {"set": list(parts)}:
                kept = self._begun(tree, into if type(into) is set else set[Any]())
                elements = self._parts(parts, name, None)
                kept.clear()
                kept.update(elements)
                return kept
            case {"deque": list(parts), "most": int() | None as most}:
                is_same = type(into) is deque and into.maxlen == most
                last = self._begun(tree, into if is_same else deque[Any](maxlen=most))
                elements = self._parts(parts, name, old)
                last.clear()
                last.extend(elements)
                return last
            case {"dict": list()} | {"items": list()}:
                return self._dict(tree, name, old, into)
            case {"object": str(kind), "state": dict()}:
                return self._object(tree, kind, name, old)
            case {"strategy": str(kind), "state": dict(state)} if isinstance(old, Strategy | MessageStrategy):
                self._begun(tree, old)
                restore(old, kind, state, name, self)
                return old
        return self._begun(tree, self._whole(tree, name, old, into))

    def _begun(self, tree: Tree, made: Any) -> Any:
        if "id" in tree:
            self._made[tree["id"]] = made
        return made

    def _place(self, old: Any) -> Any:
        """Return an array or a tensor that may be given its content, because an optimizer, say, refers to it.

        Each memory is given one content; a second array in it is made anew.
        """
        if isinstance(old, np.ndarray):
            place = old.__array_interface__["data"][0] if old.flags.writeable and old.base is None else None
        else:
            place = old.data_ptr() if is_tensor(old) and old.is_leaf and old.device.type == "cpu" else None
        if not place or place in self._places:
            return None
        self._places.add(place)
        return old

    def _is_view_of_filled(self, old: Any) -> bool:
        base = old.base if isinstance(old, np.ndarray) else None
        return isinstance(base, np.ndarray) and base.__array_interface__["data"][0] in self._places

    def _parts(self, parts: list[Tree], name: str, old: Any) -> list[Any]:
        olds = list(old) if isinstance(old, list | tuple | deque) else []
        return [
            self.decode(part, f"{name}.{number}", olds[number] if number < len(olds) else None)
            for number, part in enumerate(parts)
        ]

    def _dict(self, tree: Tree, name: str, old: Any, into: Any) -> Any:
        kind, olds = _DICTS[tree.get("kind", "dict")], old if isinstance(old, dict) else {}
        made = kind()
        if isinstance(made, defaultdict):
            made.default_factory = _FACTORIES.get(tree["factory"], getattr(old, "default_factory", None))
        made = self._begun(tree, into if type(into) is kind else made)
        if "dict" in tree:
            values = {key: self.decode(part, f"{name}.{key}", olds.get(key)) for key, part in tree["dict"]}
        else:
            values = {}
            for number, (key_tree, part) in enumerate(tree["items"]):
                key = self.decode(key_tree, name)
                values[key] = self.decode(part, f"{name}.{number}", olds.get(key))
        made.clear()
        made.update(values)
        return made

    def _object(self, tree: Tree, kind: str, name: str, old: Any) -> Any:
        is_its_place = name_of(type(old)) == kind and id(old) not in self._used
        made_of: Any = type(old) if is_its_place else class_named(kind)
        if made_of is None or not is_made_by_name(made_of):
            raise StateError(name)
        made = self._begun(tree, old if is_its_place else made_of.__new__(made_of))
        self._used[id(made)] = made
        olds = attributes_of(made)
        for key, part in tree["state"].items():
            object.__setattr__(made, key, self.decode(part, f"{name}.{key}", olds.get(key)))  # it may be frozen
        for key in olds.keys() - tree["state"].keys():
            object.__delattr__(made, key)
        return made

    def _whole(self, tree: Tree, name: str, old: Any, into: Any) -> Any:  # noqa: PLR0911, PLR0912 - one return per kind
        arrays = self._arrays
        match tree:
            case {"value": (None | bool() | str() | int()) as value}:
                return value
            case {"float": str(text)}:
                return float.fromhex(text)
            case {"array": str(key)} if key in arrays:
                if self._is_view_of_filled(old) and old.tobytes() == arrays[key].tobytes():
                    return old
                into = self._place(old) if into is None else into
                if isinstance(into, np.ndarray) and (into.shape, into.dtype) == (arrays[key].shape, arrays[key].dtype):
                    into[...] = arrays[key]
                    return into
                return arrays[key]
            case {"number": str(key)} if key in arrays:
                return arrays[key][()]
            case {"tensor": str(key), "dtype": str(), "device": str(), "needs_grad": bool()} if key in arrays:
                return tensor_of(arrays[key], tree, self._place(old) if into is None else into)
            case {"bytes": str(text)}:
                return bytes.fromhex(text)
            case {"frozenset": list(parts)}:
                return frozenset(self._parts(parts, name, None))
            case {"tuple": list(parts)}:
                return tuple(self._parts(parts, name, old))
            case {"named tuple": str(kind), "parts": list(parts)} if issubclass(class_named(kind) or object, tuple):
                return class_named(kind)(*self._parts(parts, name, old))  # type: ignore[misc]
            case {"generator": str(kind), "state": dict(state_tree)}:
                state = self.decode(state_tree, name)
                if own_generators.kind_of(old) != kind:
                    return own_generators.with_state(kind, state)
                own_generators.put_state(old, state)
                return old
            case {"record": str(key)} if key in arrays:
                return unpack_record(arrays[key])["record"]
            case {"records": str(key)} if key in arrays:
                return unpack_record(arrays[key])
            case {"parameters": str(kind), "count": int(count)}:
                return Parameters([arrays[f"{name}.{number}"].tobytes() for number in range(count)], kind)
            case {"flower": str(text)} if hasattr(old, "load_state_dict"):
                old.load_state_dict(json.loads(text))
                return old
            case {"function": str(_)} if callable(old) or has_state_dict(old):
                return old
        found = of_plain_form(tree)
        if found is MISSING:
            raise StateError(name)
        return found


def encode(value: Any, name: str, arrays: Arrays) -> Tree:
    """Convert one value, see ``Encoder``."""
    return Encoder(arrays).encode(value, name)


def decode(tree: Tree, name: str, arrays: Arrays, old: Any = None) -> Any:
    """Return one value, see ``Decoder``."""
    return Decoder(arrays).decode(tree, name, old)


def is_key(key: Any) -> bool:
    """Whether a key of a dict can be stored: a number, a text, or a tuple of them."""
    if isinstance(key, tuple):
        return all(map(is_key, key))
    return key is None or type(key) in (bool, int, float, complex, str, bytes)


def restore(
    strategy: Strategy | MessageStrategy, kind: str, state: dict[str, Tree], name: str, decoder: Decoder
) -> None:
    """Set a strategy to the state that an ``Encoder`` converted.

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
    values = {key: decoder.decode(tree, f"{name}.{key}", made_as.get(key)) for key, tree in state.items()}
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
