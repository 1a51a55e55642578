"""The way in through Flower: its ``start_simulation`` (deprecated, present in 1.42) around the actors of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import cycle
from typing import Any, Self

import flwr.simulation
from flwr.server import History, Server, ServerConfig, SimpleClientManager

from sim.client.runtime import ClientFn
from sim.run_folder.log import LOG_FORMAT

# Flower makes and registers an object for each client, which takes it 12 s and 1 GiB for a million; nobody asks them,
# because the round loop has its own clients.
_MOST_REGISTERED = 10_000
_INIT_ARGS = {"ignore_reinit_error": True, "log_to_driver": False, "logging_format": LOG_FORMAT}


class _WaitingServer(Server):
    """Its ``fit`` lasts as long as the simulation; the rounds run in the thread that opened it."""

    def __init__(self, opened: Future[None], closed: threading.Event) -> None:
        super().__init__(client_manager=SimpleClientManager())
        self._opened, self._closed = opened, closed

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        start = time.perf_counter()
        self._opened.set_result(None)
        self._closed.wait()
        return History(), time.perf_counter() - start

    def disconnect_all_clients(self, timeout: float | None) -> None:
        pass  # virtual clients have no connection; Flower would start a thread for each of them


class _StartedActors:
    """The ``actor_type``: Flower calls ``options(…).remote(…)`` and gets the actors that started before its import."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = cycle(actors)

    def options(self, **options: Any) -> Self:
        return self

    def remote(self, **arguments: Any) -> Any:
        return next(self._actors)


@contextmanager
def flower_simulation(
    actors: Sequence[Any], client_fn: ClientFn, num_clients: int, client_resources: dict[str, float], num_rounds: int
) -> Iterator[None]:
    """Keep ``start_simulation`` open around what is inside; do nothing where Flower has no such function."""
    if not hasattr(flwr.simulation, "start_simulation"):
        yield
        return
    opened, closed, actor_type = Future[None](), threading.Event(), _StartedActors(actors)
    server = _WaitingServer(opened, closed)
    flower = {"server": server, "config": ServerConfig(num_rounds), "ray_init_args": _INIT_ARGS}
    num_registered = min(num_clients, _MOST_REGISTERED)
    clients = {"client_fn": client_fn, "num_clients": num_registered, "client_resources": dict(client_resources)}

    def simulate() -> None:
        try:
            flwr.simulation.start_simulation(**flower, **clients, actor_type=actor_type, keep_initialised=True)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            if not opened.done():
                opened.set_exception(error)

    # A daemon thread, and so are the timers that Flower starts in it: none of them delays the end of the program.
    thread = threading.Thread(target=simulate, daemon=True)
    thread.start()
    try:
        opened.result()
        yield
    finally:
        closed.set()
        thread.join()
