"""The engine without Ray: every client in this process, one after another, with the user's own stack trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

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
    NDArrays,
    ReconnectIns,
)
from flwr.server import Server
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy

from sim.client.runtime import ClientSpec
from sim.engine.contract import Chunk, ChunkResult, Dispatcher, TestSlice
from sim.engine.worker import Worker
from sim.training.local import TestSums


class InlineDispatcher:
    """Executes chunks at once."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def wait_until_ready(self) -> None:
        """Virtual clients are always there."""

    def execute(self, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Yield the result of each chunk, in order."""
        return map(self.worker.run, chunks)

    def test(self, weights: NDArrays, slices: Sequence[TestSlice]) -> list[TestSums]:
        """Test ``weights`` on each slice, in order.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
        """
        return [self.worker.test(weights, part) for part in slices]


class VirtualClientProxy(ClientProxy):
    """A client as strategies see it: something to sample. Its work goes through the dispatcher."""

    def __init__(self, partition_id: int) -> None:
        super().__init__(cid=str(partition_id))
        self.partition_id = partition_id

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Not for strategies to call."""
        raise RuntimeError(_NO_CALL)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """There is no connection."""
        return DisconnectRes(reason="")


_NO_CALL = "a strategy returns instructions, the round loop calls the clients"


def run(
    make_server: Callable[[Callable[[ClientManager], AbstractContextManager[Dispatcher]]], Server],
    program: ClientSpec,
    num_clients: int,
    num_rounds: int,
    seed: int,
) -> None:
    """Run the server's round loop in this process."""
    server = make_server(lambda _: nullcontext(InlineDispatcher(Worker(program, num_clients, seed))))
    for client_id in range(num_clients):
        server.client_manager().register(VirtualClientProxy(client_id))
    server.fit(num_rounds, timeout=None)
