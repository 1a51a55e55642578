"""The engine on Ray: Flower's ``start_simulation`` around our round loop, with actors that take chunks.

The only file that touches ``start_simulation`` (deprecated in Flower 1.13, working in 1.41 and 1.42).
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from flwr.common import NDArrays
from flwr.server import Server, ServerConfig
from flwr.server.client_manager import ClientManager
from flwr.simulation import start_simulation
from flwr.simulation.ray_transport.ray_actor import VirtualClientEngineActor
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import RayActorError, RayError

from sim.client import ClientFn, Program
from sim.engine.contract import Chunk, ChunkResult, OpenDispatcher, TestSlice
from sim.engine.shipping import Parcel, pack, runtime_env, unpack
from sim.engine.worker import Worker
from sim.errors import EngineError, RunError
from sim.training import TestSums


@ray.remote
class ChunkActor(VirtualClientEngineActor):
    """A process that executes chunks; model, data and buffers stay in it from round to round."""

    def __init__(self, program: Program, num_clients: int, seed: int, log: Path) -> None:
        # Whatever a client prints belongs to the run, not to Ray's session folder.
        if log.parent.is_dir():  # it is not on another machine
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
        self.worker = Worker(program, num_clients, seed)

    def receive(self, parcel: Parcel, from_node: str) -> None:
        """Take the data of the run, if this is another node than the one that sends them."""
        if ray.get_runtime_context().get_node_id() != from_node:
            self.worker.program = unpack(self.worker.program, parcel)

    def run_chunks(self, chunks: list[Chunk], weights: Any, actor: int) -> list[ChunkResult]:
        """Execute chunks that travelled without their weights; Ray maps those read-only from its store."""
        self.worker.actor = actor
        results = [self.worker.run(replace(chunk, weights=weights)) for chunk in chunks]
        for result in results:
            for outcome in result.outcomes:
                outcome.cause = None  # an exception object of the user's may not travel
        return results

    def run_test(self, part: TestSlice, weights: Any) -> TestSums | str:
        """Execute a part of the central test; return what is wrong with the user's ``test``, if it is."""
        try:
            return self.worker.test(weights, part)
        except RunError as error:
            return str(error)


class RayDispatcher:
    """Hands chunks to actors that are free, each actor one at a time."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def wait_until_ready(self) -> None:
        """Virtual clients are always there."""

    def execute(self, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        """Yield results in the order of ``chunks``; those that are early wait in Ray's object store.

        A message carries several chunks, fewer as the round goes on, so that few messages are sent and nobody is
        left with much work at the end. Which chunks travel together changes no sum.
        """
        sent: dict[int, Any] = {}
        # The longest first, so that nobody waits at the end for one that began late.
        waiting = deque(sorted(enumerate(chunks), key=lambda pair: -pair[1].num_examples))
        load = dict.fromkeys(range(len(self.actors)), 0)
        running: dict[Any, tuple[list[int], int]] = {}
        done: dict[int, Any] = {}  # where the result of a chunk is
        read: dict[int, ChunkResult] = {}
        for wanted in range(len(chunks)):
            while True:
                # One chunk waits at each actor, so that it does not idle until we answer; not at the end, where the
                # other actors could have it.
                while waiting and min(load.values()) < (2 if len(waiting) > len(load) else 1):
                    message = _next_message(waiting, len(load))
                    weights = message[0][1].weights
                    if id(weights) not in sent:
                        sent[id(weights)] = ray.put(weights)
                    actor = min(load, key=load.__getitem__)
                    load[actor] += 1
                    bare = [replace(chunk, weights=[]) for _, chunk in message]
                    reference = self.actors[actor].run_chunks.remote(bare, sent[id(weights)], actor)
                    running[reference] = [index for index, _ in message], actor
                # Even with a result at hand: whoever has finished meanwhile gets work before that is folded.
                timeout = 0 if wanted in done else None
                ready = ray.wait(list(running), num_returns=1, timeout=timeout)[0] if running else []
                for reference in ready:
                    indices, actor = running.pop(reference)
                    load[actor] -= 1
                    done |= dict.fromkeys(indices, (reference, indices))
                if wanted in done and not ready:
                    break
            reference, indices = done.pop(wanted)
            if wanted not in read:
                read |= zip(indices, _get(reference, [chunks[i] for i in indices]), strict=True)
            yield read.pop(wanted)

    def test(self, weights: NDArrays, slices: Sequence[TestSlice]) -> list[TestSums]:
        """Test ``weights`` on each slice, spread over the actors.

        Raises:
            RunError: the user's ``test`` raised or returned something else.
            EngineError: a process died.
        """
        sent = ray.put(weights)
        asked = [
            self.actors[number % len(self.actors)].run_test.remote(part, sent) for number, part in enumerate(slices)
        ]
        try:
            answers = ray.get(asked)
        except RayError as error:
            raise EngineError(f"the central test: a process died: {_last_line(error)}") from error
        for answer in answers:
            if isinstance(answer, str):
                raise RunError(answer)
        return answers


def _next_message(waiting: deque[tuple[int, Chunk]], num_actors: int) -> list[tuple[int, Chunk]]:
    """Take chunks for one message: a share of what is left, all from the same weights."""
    share = -(-sum(len(chunk.tasks) for _, chunk in waiting) // (3 * num_actors))
    message = [waiting.popleft()]
    tasks = len(message[0][1].tasks)
    while waiting and tasks < share and waiting[0][1].weights is message[0][1].weights:
        message.append(waiting.popleft())
        tasks += len(message[-1][1].tasks)
    return message


def _get(reference: Any, chunks: list[Chunk]) -> list[ChunkResult]:
    server_round = chunks[0].server_round
    try:
        results: list[ChunkResult] = ray.get(reference)
    except RayActorError as error:
        ids = ", ".join(str(task.client_id) for chunk in chunks for task in chunk.tasks)
        raise EngineError(
            f"round {server_round}: the process that executed client {ids} died: {_last_line(error)}"
        ) from error
    except RayError as error:
        raise EngineError(f"round {server_round}: Ray failed: {_last_line(error)}") from error
    return results


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _open_dispatcher(parcel: Parcel | None, client_manager: ClientManager) -> Iterator[RayDispatcher]:
    """Take the actors out of Flower's pool, which start_simulation has made by now, and send them the data."""
    proxy: Any = next(iter(client_manager.all().values()))
    pool = proxy.actor_pool
    actors = [pool.pop_idle() for _ in range(pool.num_actors)]
    if parcel is not None:
        sent, node = ray.put(parcel), ray.get_runtime_context().get_node_id()
        try:
            ray.get([actor.receive.remote(sent, node) for actor in actors])
        except RayError as error:
            raise EngineError(f"the data did not reach every node: {_last_line(error)}") from error
    yield RayDispatcher(actors)


def run(
    make_server: Callable[[OpenDispatcher], Server],
    program: Program,
    num_clients: int,
    num_rounds: int,
    seed: int,
    *,
    client_resources: dict[str, float],
    ray_init_args: dict[str, Any],
    log: Path,
) -> None:
    """Run the server's round loop inside Flower's ``start_simulation``, on as many actors as fit.

    Args:
        client_resources: ``num_cpus`` and ``num_gpus`` of one actor.
        ray_init_args: for ``ray.init``; they win over ours. With an ``address``, the run joins that cluster, and code
            and data are sent to its nodes.
        log: where the actors' output goes.

    Raises:
        EngineError: Ray could not start, or a process died.
    """
    joins = "address" in ray_init_args
    # "local": Ray would otherwise join whatever cluster runs on this machine.
    own = {"runtime_env": runtime_env(program)} if joins else {"address": "local", "include_dashboard": False}
    arguments = {"log_to_driver": False, "configure_logging": False, **own, **ray_init_args}
    with nullcontext() if joins else _private_ray():
        try:
            start_simulation(
                client_fn=ClientFn(program),
                num_clients=num_clients,
                client_resources=client_resources,
                server=make_server(partial(_open_dispatcher, pack(program) if joins else None)),
                config=ServerConfig(num_rounds=num_rounds),
                ray_init_args=arguments,
                actor_type=ChunkActor,
                actor_kwargs={"program": program, "num_clients": num_clients, "seed": seed, "log": log},
            )
        except Exception as error:
            # start_simulation wraps what the round loop raises; anything else comes from Ray's start.
            if str(error) == "Simulation crashed." and error.__cause__ is not None:
                raise error.__cause__  # noqa: B904 - it has a cause of its own
            raise EngineError(f"Ray could not start: {_last_line(error)}") from error
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
