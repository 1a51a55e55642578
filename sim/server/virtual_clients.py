"""Virtual clients as strategies of ``flwr.server.strategy`` see them: proxies that they sample, and may call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

from flwr.common import (
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    ReconnectIns,
)
from flwr.server import SimpleClientManager
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy

from sim.errors import RunError

Call = FitIns | EvaluateIns | GetParametersIns | GetPropertiesIns
# Has a client answer a call at once: (client_id, FitIns) → FitRes, and so on.
Answer = Callable[[int, Call], Any]


class VirtualClientProxy(ClientProxy):
    """A virtual client as strategies see it; its ``cid`` is the client id in every engine.

    A strategy returns instructions, and the round loop has the clients execute them. What it asks of a client by
    itself, as for its properties before it chooses, is answered at once.
    """

    def __init__(self, client_id: int, answer: Answer | None = None) -> None:
        """
        Args:
            answer: has the client answer; None where clients cannot be called.
        """
        super().__init__(cid=str(client_id))
        self._answer = answer

    def __reduce__(self) -> tuple[type[VirtualClientProxy], tuple[int]]:
        """A strategy may keep proxies in its state; what calls the clients belongs to the run."""
        return VirtualClientProxy, (int(self.cid),)

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """Return the properties of the client."""
        found: GetPropertiesRes = self._answered(ins)
        return found

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """Return the parameters of the client."""
        found: GetParametersRes = self._answered(ins)
        return found

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Have the client train."""
        found: FitRes = self._answered(ins)
        return found

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Have the client evaluate."""
        found: EvaluateRes = self._answered(ins)
        return found

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """There is no connection."""
        return DisconnectRes(reason="")

    def _answered(self, ins: Call) -> Any:
        if self._answer is None:
            raise RuntimeError(
                f"client {self.cid} cannot be called here: not before the first round, with devices, an algorithm "
                "or error feedback, nor by a proxy that a checkpoint has kept; the strategy has to return instructions"
            )
        return self._answer(int(self.cid), ins)


def virtual_clients(
    num_clients: int, manager: ClientManager | None = None, proxy_of: Callable[[int], ClientProxy] = VirtualClientProxy
) -> ClientManager:
    """Return a client manager with clients 0 … ``num_clients`` − 1.

    Args:
        manager: the user's own, to which they are added.
        proxy_of: makes the proxy of a client.
    """
    manager = SimpleClientManager() if manager is None else manager  # an empty one counts as false
    if isinstance(manager, SimpleClientManager) and type(manager).wait_for is SimpleClientManager.wait_for:
        manager.wait_for = partial(_wait_for, manager)  # type: ignore[method-assign]
    if isinstance(manager, SimpleClientManager) and not (manager.clients or _has_own_register(manager)):
        # A million at once would take seconds.
        manager.clients = MadeWhenAsked(num_clients, proxy_of)  # type: ignore[assignment]
        return manager
    for client_id in range(num_clients):
        manager.register(proxy_of(client_id))
    return manager


def _wait_for(manager: SimpleClientManager, num_clients: int, timeout: int = 0) -> bool:
    check_there(len(manager.clients), num_clients)
    return True


def check_there(num_there: int, num_awaited: int) -> None:
    """Check that there are as many clients as a strategy waits for, because virtual clients are there from the start.

    Raises:
        RunError: there are fewer.
    """
    if num_there < num_awaited:
        verb = "is" if num_there == 1 else "are"
        raise RunError(f"the strategy waits for {num_awaited} clients, and there {verb} {num_there} (num_clients)")


def _has_own_register(manager: SimpleClientManager) -> bool:
    return type(manager).register is not SimpleClientManager.register


class MadeWhenAsked(MutableMapping[str, ClientProxy]):
    """The proxies of the clients 0 … ``num_clients`` − 1 by their names, each made when it is first asked for.

    They can be removed and added, in the order of a dict.
    """

    def __init__(self, num_clients: int, proxy_of: Callable[[int], ClientProxy]) -> None:
        self._ids = range(num_clients)
        self._proxy_of = proxy_of
        self._made: dict[str, ClientProxy] = {}
        self._removed: set[str] = set()
        self._added: dict[str, ClientProxy] = {}

    def _is_first(self, name: object) -> bool:
        """Whether a name is that of one of the clients 0 … n − 1 that was not removed."""
        if name in self._made:
            return True
        if not (isinstance(name, str) and name.isascii() and name.isdecimal()) or name in self._removed:
            return False
        if len(name) > len(str(len(self._ids))):  # int() refuses thousands of digits
            return False
        return int(name) in self._ids and str(int(name)) == name

    def __getitem__(self, name: str) -> ClientProxy:
        if name in self._added:
            return self._added[name]
        if not self._is_first(name):
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._proxy_of(int(name))
        return self._made[name]

    def __setitem__(self, name: str, proxy: ClientProxy) -> None:
        (self._made if self._is_first(name) else self._added)[name] = proxy

    def __delitem__(self, name: str) -> None:
        if name in self._added:
            del self._added[name]
        elif self._is_first(name):
            self._removed.add(name)
            self._made.pop(name, None)
        else:
            raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self._added or self._is_first(name)

    def __iter__(self) -> Iterator[str]:
        names = map(str, self._ids)
        yield from (name for name in names if name not in self._removed) if self._removed else names
        yield from self._added

    def __len__(self) -> int:
        return len(self._ids) - len(self._removed) + len(self._added)
