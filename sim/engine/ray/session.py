"""A run's own Ray: starts while the driver still loads PyTorch and data, and ends with the run."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import IO, Any, Self

import ray
from ray._private import parameter, services
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from sim.engine.ray import reaper
from sim.engine.ray.actor import start_actor
from sim.run_folder.log import LOG_FORMAT

logging.getLogger("ray").handlers = [logging.NullHandler()]  # until the run's own log is open
# What Ray will do with GPUs one day is not for this run's screen; set here, since filters belong to all threads.
warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)

# Ray's logger keeps the handlers that it has; with configure_logging=False it would lose them, and print.
QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_format": LOG_FORMAT}
_PREFIX = "sim-ray-"
_LONGEST_ROOT = 30
INLINE_BYTES = 4 * 2**20  # what travels in a message itself; more goes through Ray's shared memory


class OwnRay:
    """Ray for this run alone; its sockets, which listen on all interfaces, ask for a token that only it knows."""

    def __init__(self, ray_init_args: dict[str, Any], num_actors: int, client_resources: dict[str, float]) -> None:
        """
        Args:
            ray_init_args: for ``ray.init``; they win over ours.
            num_actors: how many start with it, since they import PyTorch as long as the driver does.
            client_resources: ``num_cpus`` and ``num_gpus`` of one actor.
        """
        # "local": Ray would otherwise join whatever cluster runs on this machine.
        self.folder = _session_folder()
        self.init_args = {
            "address": "local",
            "_temp_dir": str(self.folder),
            "include_dashboard": False,
            **QUIET,
            "_system_config": {"max_direct_call_object_size": INLINE_BYTES},
            **ray_init_args,
        }
        self.actors: list[Any] = []  # that have not begun anything
        self._num_actors = num_actors
        self._client_resources = client_resources
        self._before: dict[str, str | None] = {}
        self._started: Future[None] = Future()
        self._ended = Event()

    def __enter__(self) -> Self:
        self._reaper = subprocess.Popen(
            [sys.executable, "-S", str(Path(reaper.__file__)), str(self.folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        lock = _locked(self.folder)
        assert lock is not None, "a folder that was just made is nobody else's"
        self._lock = lock
        _sweep(self.folder.parent)
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
        self._lock.close()
        self._reaper.communicate()

    def _start(self) -> None:
        try:
            with _only_what_runs_clients(self.init_args):
                ray.init(**self.init_args)
            self.actors = [start_actor(**self._client_resources) for _ in range(self._num_actors)]
            node: Any = ray_worker.global_worker.node
            self._session = Path(node.get_session_dir_path())
            self._made_at_start = self._session.stat().st_mtime_ns
        except BaseException as error:  # noqa: BLE001 - for whoever waits
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            self._ended.wait()  # Linux ends Ray's processes with the thread that started them, so that none is left

    def wait(self) -> None:
        """Return when Ray is there; raise what kept it from starting."""
        self._started.result()

    def spills(self) -> bool:
        """Whether Ray has put on the disk what its shared memory had no room for.

        It makes a folder for that in its session's, or a file that it removes at once while it uses it; nothing else
        is made there after the start.
        """
        with suppress(OSError):
            return self._session.stat().st_mtime_ns != self._made_at_start
        return False

    def end(self) -> None:
        """End Ray and its processes; nothing if they have ended."""
        self._started.exception()  # it must have started to end
        ray.shutdown()
        self._ended.set()


@contextmanager
def _only_what_runs_clients(init_args: dict[str, Any]) -> Iterator[None]:
    """Start Ray without the processes that scale clusters, forward logs and count usage: 1.6 CPU seconds (Ray 2.55).

    The first two are parameters that ``ray.init`` does not pass on; the third is all that is left of the dashboard's
    server when there is no dashboard.
    """
    lean: Any = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)  # type: ignore[arg-type]
    made = {(parameter, "RayParams"): lean}
    if not init_args["include_dashboard"]:
        made[services, "start_api_server"] = lambda *_, **__: (None, None)
    before = {place: getattr(*place) for place in made}
    for place, value in made.items():
        setattr(*place, value)
    try:
        yield
    finally:
        for place, value in before.items():
            setattr(*place, value)


def _session_folder() -> Path:
    """Make a folder for Ray's sockets, logs and spilled objects; its path must be short for a socket's name."""
    root = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root if len(str(root)) <= _LONGEST_ROOT else "/tmp"))


def _locked(folder: Path) -> IO[bytes] | None:
    """Lock a session's folder; None if its run is still there."""
    try:
        lock = (folder / "lock").open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _sweep(root: Path) -> None:
    """Remove the session folders of runs that were killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        # One that was made in this moment has no lock yet.
        if (folder / "lock").exists() and (lock := _locked(folder)) is not None:
            lock.close()
            shutil.rmtree(folder, ignore_errors=True)


def _to_the_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    """In the place of Ray's function that prints the errors of its processes on the screen."""
    for line in data.get("lines", []):
        logging.getLogger("ray").warning("%s: %s", data.get("pid"), line)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray's core read both when it was imported; these make it read them again.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


ray_worker.print_to_stdstream = _to_the_log
