"""The engine on Ray: Flower's ``start_simulation`` around our round loop, with actors that take chunks.

The only file that touches ``start_simulation`` (deprecated in Flower 1.13, working in 1.41 and 1.42).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray
from flwr.server import Server, ServerConfig
from flwr.server.client_manager import ClientManager
from flwr.simulation import start_simulation
from ray.exceptions import RayError

from sim.client.runtime import ClientFn, ClientSpec
from sim.engine.contract import OpenDispatcher
from sim.engine.liveness import Liveness, liveness_file
from sim.engine.ray.actor import start_actor
from sim.engine.ray.dispatcher import RayDispatcher, RetryPolicy, last_line
from sim.engine.ray.session import QUIET, OwnRay
from sim.engine.ray.shipping import Parcel, pack, runtime_env
from sim.errors import EngineError


@dataclass(frozen=True)
class _Opening:
    """What the dispatcher is made of once Ray runs and Flower has made its pool of actors."""

    board: Path
    retry_policy: RetryPolicy
    together: bool
    parcel: Parcel | None
    spills: Callable[[], bool]
    on_sigterm: Any  # the handler before ray.init put its own there; None if it is not Python's

    @contextmanager
    def __call__(self, client_manager: ClientManager) -> Iterator[RayDispatcher]:
        """Take the actors out of Flower's pool, and send them the data."""
        if self.on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.on_sigterm)
        proxy: Any = next(iter(client_manager.all().values()))
        pool = proxy.actor_pool
        actors = [pool.pop_idle() for _ in range(pool.num_actors)]
        start_actor = pool.create_actor_fn
        if self.parcel is not None:
            sent, node = ray.put(self.parcel), ray.get_runtime_context().get_node_id()
            try:
                ray.get([actor.receive.remote(sent, node) for actor in actors])
            except RayError as error:
                raise EngineError(f"the data did not reach every node: {last_line(error)}") from error

            def start_actor() -> Any:
                actor = pool.create_actor_fn()
                actor.receive.remote(sent, node)  # before all that it is asked later
                return actor

        for actor in actors:
            actor.set_up.remote()  # all at the same time; nobody waits for it
        yield RayDispatcher(
            actors, start_actor, Liveness(self.board), self.retry_policy, self.spills, together=self.together
        )


@dataclass
class _Crew:
    """What Flower takes for the class of our actors: gives it those that wait first, then new ones."""

    waiting: list[Any]
    _options: dict[str, Any] = field(default_factory=dict)

    def options(self, **options: Any) -> Self:
        self._options = options
        return self

    def remote(self, **what: Any) -> Any:
        actor = self.waiting.pop(0) if self.waiting else start_actor(**self._options)
        actor.begin.remote(**what)  # before all that it is asked later
        return actor


def run(
    make_server: Callable[[OpenDispatcher], Server],
    program: ClientSpec,
    num_clients: int,
    num_rounds: int,
    seed: int,
    *,
    own_ray: OwnRay | None,
    client_resources: dict[str, float],
    ray_init_args: dict[str, Any],
    retry_policy: RetryPolicy,
    log: Path,
) -> None:
    """Run the server's round loop inside Flower's ``start_simulation``, on as many actors as fit.

    Args:
        own_ray: started for this run; None to join the cluster at ``address`` in ``ray_init_args``, to whose nodes
            code and data are sent.
        client_resources: ``num_cpus`` and ``num_gpus`` of one actor.
        retry_policy: with clients whose process dies or hangs.
        log: where the actors' output goes.

    Raises:
        EngineError: Ray could not start, or processes die again and again.
    """
    arguments = {**QUIET, "ignore_reinit_error": True, **ray_init_args}
    if own_ray is None:
        arguments["runtime_env"] = runtime_env(program)
    with liveness_file(None if own_ray is None else own_ray.folder) as board:
        parcel, spills = (pack(program), lambda: False) if own_ray is None else (None, own_ray.spills)
        opening = _Opening(board, retry_policy, program.together > 1, parcel, spills, signal.getsignal(signal.SIGTERM))
        try:
            if own_ray is not None:
                own_ray.wait()
            start_simulation(
                client_fn=ClientFn(program),
                num_clients=num_clients,
                client_resources=client_resources,
                server=make_server(opening),
                config=ServerConfig(num_rounds=num_rounds),
                ray_init_args=arguments,
                keep_initialised=own_ray is not None,
                actor_type=_Crew(own_ray.actors if own_ray is not None else []),
                actor_kwargs={
                    "program": program,
                    "num_clients": num_clients,
                    "seed": seed,
                    "log": log,
                    "board": board,
                    "client_timeout": retry_policy.client_timeout,
                },
            )
        except Exception as error:
            # start_simulation wraps what the round loop raises; anything else comes from Ray's start.
            if str(error) == "Simulation crashed." and error.__cause__ is not None:
                raise error.__cause__  # noqa: B904 - it has a cause of its own
            raise EngineError(f"Ray could not start: {last_line(error)}") from error
        finally:
            _end_timers()
            ray.shutdown()


def _end_timers() -> None:
    """End start_simulation's 10 s timer, which would keep the program from ending."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread.function.__name__ == "update_resources":
            thread.cancel()
