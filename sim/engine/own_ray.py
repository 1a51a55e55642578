"""A run's own Ray: starts while the driver still loads PyTorch and data, and ends with the run."""

from __future__ import annotations

import os
import secrets
import warnings
from concurrent.futures import Future
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

# What Ray will do with GPUs one day is not for this run's screen; set here, since filters belong to all threads.
warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)

INLINE_BYTES = 4 * 2**20  # what travels in a message itself; more goes through Ray's shared memory


class OwnRay:
    """Ray for this run alone; its sockets, which listen on all interfaces, ask for a token that only it knows."""

    def __init__(self, ray_init_args: dict[str, Any]) -> None:
        """
        Args:
            ray_init_args: for ``ray.init``; they win over ours.
        """
        # "local": Ray would otherwise join whatever cluster runs on this machine.
        self.init_args = {
            "address": "local",
            "include_dashboard": False,
            "log_to_driver": False,
            "configure_logging": False,
            "_system_config": {"max_direct_call_object_size": INLINE_BYTES},
            **ray_init_args,
        }
        self._before: dict[str, str | None] = {}
        self._started: Future[None] = Future()
        self._ended = Event()

    def __enter__(self) -> Self:
        names: dict[str, str | None] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._before = {name: os.environ.get(name) for name in names}
        _set_environment(names)
        Thread(target=self._start, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        _set_environment(self._before)

    def _start(self) -> None:
        try:
            ray.init(**self.init_args)
        except BaseException as error:  # noqa: BLE001 - for whoever waits
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            self._ended.wait()  # Linux ends Ray's processes with the thread that started them, so that none is left

    def wait(self) -> None:
        """Return when Ray is there; raise what kept it from starting."""
        self._started.result()

    def end(self) -> None:
        """End Ray and its processes; nothing if they have ended."""
        self._started.exception()  # it must have started to end
        ray.shutdown()
        self._ended.set()


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray's core read both when it was imported; these make it read them again.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
