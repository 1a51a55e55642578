"""The engine on Ray: Flower's ``start_simulation`` around our round loop, with actors that take chunks.

The only file that touches ``start_simulation`` (deprecated in Flower 1.13, working in 1.41 and 1.42).
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from flwr.common import NDArrays
from flwr.server import Server, ServerConfig
from flwr.server.client_manager import ClientManager
from flwr.simulation import start_simulation
from flwr.simulation.ray_transport.ray_actor import VirtualClientEngineActor
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import RayError

from sim.client import ClientFn, Program
from sim.engine.board import Board, board_file
from sim.engine.contract import Chunk, ChunkResult, OpenDispatcher, TestSlice
from sim.engine.dispatch import INLINE_BYTES, Patience, RayDispatcher, last_line
from sim.engine.shipping import Parcel, pack, runtime_env, unpack
from sim.engine.worker import Worker
from sim.errors import EngineError, RunError
from sim.training import TestSums

# Small results come back in the answer itself, without a detour over shared memory.
_SYSTEM_CONFIG = {"max_direct_call_object_size": INLINE_BYTES}


@ray.remote
class ChunkActor(VirtualClientEngineActor):
    """A process that executes chunks; model, data and buffers stay in it from round to round."""

    def __init__(self, program: Program, num_clients: int, seed: int, log: Path, board: Path) -> None:
        # Whatever a client prints belongs to the run, not to Ray's session folder.
        if log.parent.is_dir():  # it is not on another machine
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
        # On another machine there is no such file, and the driver knows by messages only what goes on.
        self.worker = Worker(program, num_clients, seed, board=Board(board) if board.is_file() else None)
        self.weights: NDArrays = []

    def receive(self, parcel: Parcel, from_node: str) -> None:
        """Take the data of the run, if this is another node than the one that sends them."""
        if ray.get_runtime_context().get_node_id() != from_node:
            self.worker.program = unpack(self.worker.program, parcel)

    def run_chunks(self, chunks: list[Chunk], weights: NDArrays | None, actor: int) -> list[ChunkResult]:
        """Execute chunks that travelled without their weights.

        Args:
            weights: of all of them, read-only; None for those that the last call had.
        """
        self.worker.actor = actor
        if weights is not None:
            self.weights = weights
        results = [self.worker.run(replace(chunk, weights=self.weights)) for chunk in chunks]
        for result in results:
            for outcome in result.outcomes:
                outcome.cause = None  # an exception object of the user's may not travel
        return results

    def run_tests(self, parts: list[TestSlice], weights: NDArrays) -> list[TestSums] | str:
        """Execute parts of the central test; return what is wrong with the user's ``test``, if it is."""
        try:
            return [self.worker.test(weights, part) for part in parts]
        except RunError as error:
            return str(error)


@dataclass(frozen=True)
class _Opening:
    """What the dispatcher is made of once Ray runs and Flower has made its pool of actors."""

    board: Path
    patience: Patience
    together: bool
    parcel: Parcel | None

    @contextmanager
    def __call__(self, client_manager: ClientManager) -> Iterator[RayDispatcher]:
        """Take the actors out of Flower's pool, and send them the data."""
        proxy: Any = next(iter(client_manager.all().values()))
        pool = proxy.actor_pool
        actors = [pool.pop_idle() for _ in range(pool.num_actors)]
        hire = pool.create_actor_fn
        if self.parcel is not None:
            sent, node = ray.put(self.parcel), ray.get_runtime_context().get_node_id()
            try:
                ray.get([actor.receive.remote(sent, node) for actor in actors])
            except RayError as error:
                raise EngineError(f"the data did not reach every node: {last_line(error)}") from error

            def hire() -> Any:
                actor = pool.create_actor_fn()
                actor.receive.remote(sent, node)  # before all that it is asked later
                return actor

        yield RayDispatcher(actors, hire, Board(self.board), self.patience, together=self.together)


def run(
    make_server: Callable[[OpenDispatcher], Server],
    program: Program,
    num_clients: int,
    num_rounds: int,
    seed: int,
    *,
    client_resources: dict[str, float],
    ray_init_args: dict[str, Any],
    patience: Patience,
    log: Path,
) -> None:
    """Run the server's round loop inside Flower's ``start_simulation``, on as many actors as fit.

    Args:
        client_resources: ``num_cpus`` and ``num_gpus`` of one actor.
        ray_init_args: for ``ray.init``; they win over ours. With an ``address``, the run joins that cluster, and code
            and data are sent to its nodes.
        patience: with clients whose process dies or hangs.
        log: where the actors' output goes.

    Raises:
        EngineError: Ray could not start, or a process died.
    """
    joins = "address" in ray_init_args
    # "local": Ray would otherwise join whatever cluster runs on this machine.
    own: dict[str, Any] = {"runtime_env": runtime_env(program)}
    if not joins:
        own = {"address": "local", "include_dashboard": False, "_system_config": _SYSTEM_CONFIG}
    arguments = {"log_to_driver": False, "configure_logging": False, **own, **ray_init_args}
    with nullcontext() if joins else _private_ray(), board_file() as board:
        opening = _Opening(board, patience, program.together > 1, pack(program) if joins else None)
        try:
            start_simulation(
                client_fn=ClientFn(program),
                num_clients=num_clients,
                client_resources=client_resources,
                server=make_server(opening),
                config=ServerConfig(num_rounds=num_rounds),
                ray_init_args=arguments,
                actor_type=ChunkActor,
                actor_kwargs={"program": program, "num_clients": num_clients, "seed": seed, "log": log, "board": board},
            )
        except Exception as error:
            # start_simulation wraps what the round loop raises; anything else comes from Ray's start.
            if str(error) == "Simulation crashed." and error.__cause__ is not None:
                raise error.__cause__  # noqa: B904 - it has a cause of its own
            raise EngineError(f"Ray could not start: {last_line(error)}") from error
        finally:
            _end_timers()
            ray.shutdown()


@contextmanager
def _private_ray() -> Iterator[None]:
    """Give this run's Ray, whose sockets listen on all interfaces, a random token that only its processes know."""
    names: dict[str, str | None] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in names}
    _set_environment(names)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray's core read both when it was imported; these make it read them again.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _end_timers() -> None:
    """End start_simulation's 10 s timer, which would keep the program from ending."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread.function.__name__ == "update_resources":
            thread.cancel()
