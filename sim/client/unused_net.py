"""A net that no client has used, from which each client of user code gets a copy.

``copy.deepcopy`` looks for the way to copy at each object anew, which takes 1 ms for a small net and longer than some
clients train. Here that is done once: the net is pickled without its tensors, classes and functions, and each copy is
the pickle read again.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from sim.private_names import gradient_hooks
from sim.training.models import copy_hooks_and_attributes

# copy.deepcopy returns these as they are. A pickle would name them, and read the name at each copy.
_SHARED = (type, FunctionType, BuiltinFunctionType)


class UnusedNet:
    """Gives copies of a net: they share nothing with it, nor with each other."""

    def __init__(self, net: nn.Module, build: Callable[[], nn.Module]) -> None:
        """
        Args:
            net: it may be changed later; the copies are of what it is now.
            build: makes such a net anew, where one cannot be copied.
        """
        self._build = build
        self._net: nn.Module | None = None
        self._pickle = b""
        self._left_out: list[Any] = []
        self._common: set[int] = set()  # ids of those in it that share their memory
        if any(any(gradient_hooks(parameter)) for parameter in net.parameters()):
            return  # hooks may refer to the net that they were made for
        try:
            copied: dict[int, Any] = {}
            common = _with_common_memory([*net.parameters(), *net.buffers()])
            for tensor in [*common, *(parameter for parameter in net.parameters() if vars(parameter))]:
                _copy(tensor, copied, keeps_memory=any(tensor is each for each in common))
            self._net = copy.deepcopy(net, copied)
            content = io.BytesIO()
            _Pickler(content, self._left_out).dump(self._net)
            self._pickle = content.getvalue()
            tensors = [thing for thing in self._left_out if isinstance(thing, Tensor)]
            self._common = {id(tensor) for tensor in _with_common_memory(tensors)}
            self.copy()
        except Exception:  # noqa: BLE001 - a net may hold what cannot be pickled, or not even be copied
            self._pickle = b""

    def copy(self) -> nn.Module:
        """Return a net of which nothing has been used."""
        if self._pickle:
            net: nn.Module = _Unpickler(io.BytesIO(self._pickle), self._left_out, self._common).load()
            return net
        with suppress(Exception):
            if self._net is not None:
                found = copy.deepcopy(self._net)
                if all(parameter.is_leaf for parameter in found.parameters()):  # not so if it is a ScriptModule
                    return found
        return self._build()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, left_out: list[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._left_out = left_out

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, (*_SHARED, Tensor)):
            return None
        self._left_out.append(thing)
        return len(self._left_out) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, left_out: list[Any], common: set[int]) -> None:
        super().__init__(file)
        self._left_out, self._common = left_out, common
        self._copied: dict[int, Any] = {}  # as copy.deepcopy has it, so that tied weights stay tied

    def persistent_load(self, number: Any) -> Any:
        thing = self._left_out[number]
        if not isinstance(thing, Tensor):
            return thing
        return _copy(thing, self._copied, keeps_memory=id(thing) in self._common)


def _with_common_memory(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return those that share their memory with another one, such as a parameter with its transpose."""
    dense = {id(tensor): tensor for tensor in tensors if tensor.layout == torch.strided}
    places = Counter(tensor.untyped_storage().data_ptr() for tensor in dense.values())
    return [tensor for tensor in dense.values() if places[tensor.untyped_storage().data_ptr()] > 1]


def _copy(tensor: Tensor, copied: dict[int, Any], *, keeps_memory: bool) -> Any:
    """Return ``copy.deepcopy`` of a tensor.

    Args:
        keeps_memory: tensors that share memory are copied into memory that they share; that of a parameter would be
            copied for each.
    """
    if id(tensor) in copied or not isinstance(tensor, nn.Parameter):
        return copy.deepcopy(tensor, copied)
    if keeps_memory:
        copied[id(tensor)] = nn.Parameter(copy.deepcopy(tensor.data, copied), tensor.requires_grad)
    made = copy.deepcopy(tensor, copied)
    if vars(tensor):
        copy_hooks_and_attributes(tensor, made, copied)
    return made
