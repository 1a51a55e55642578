"""Ray for one run: started in the background, opened for the round loop, ended with the run."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import psutil

from sim import private_names, reaper
from sim.errors import ConfigError, EngineError
from sim.run_folder.log import LOG_FORMAT

if TYPE_CHECKING:  # at run time Ray is imported when it is started
    from sim.client.flower_program import FlowerSpec
    from sim.client.runtime import ClientSpec
    from sim.engine.interface import RetryPolicy
    from sim.engine.ray.dispatcher import RayDispatcher

_PREFIX = "sim-ray-"
# Letters of the folder for temporary files: 107 for the path of a socket, less 81 for what Ray and this file append.
_LONGEST_ROOT = 26
_LEAST_FREE_BYTES = 8 * 2**20  # a short run takes less than 1 MiB there, a long one more for Ray's logs
_SWITCH_SECONDS = 0.0002
_TOKEN = secrets.token_hex(32)
# Ray's logger keeps the handlers that it has; with configure_logging=False it would lose them, and print.
_QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_format": LOG_FORMAT}


class RaySession:
    """Ray and its actors for one run: a Ray of its own, or the cluster at ``address`` in ``init_args``.

    The sockets of a Ray of its own listen on all interfaces, and ask for a token that only this process knows.
    """

    def __init__(
        self, init_args: dict[str, Any], num_actors: int, client_resources: dict[str, float], niceness: int = 0
    ) -> None:
        """Start nothing yet.

        Args:
            init_args: for ``ray.init``; they replace those of this class.
            num_actors: how many to start; on a cluster at most as many, where fewer may fit.
            client_resources: ``num_cpus`` and ``num_gpus`` of one actor.
            niceness: of the actors of a Ray of its own; Ray's default is 15, with which they get next to no time
                beside other programs.
        """
        self._niceness = niceness
        self._init_args = init_args
        self._name = secrets.token_hex(8)
        self._is_own = init_args.get("address", "local") == "local"
        self._num_actors = num_actors
        self._client_resources = client_resources
        self._actors: list[Any] = []
        self._folder: Path | None = None
        self._servers: list[psutil.Process] = []
        self._started: Future[None] = Future()
        self._thread: Thread | None = None
        self._ended = Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Prepare for a start.

        Raises:
            ConfigError: there is no place for temporary files, or this process has a Ray session already.
        """
        _check_no_other()
        if self._is_own:
            _temporary_root()  # before the run folder is made
        logger = logging.getLogger("ray")
        self._stack.callback(setattr, logger, "handlers", logger.handlers)
        logger.handlers = [logging.NullHandler()]  # until the run's own log is open
        self._stack.callback(random.setstate, random.getstate())  # from which Ray draws
        self._stack.enter_context(warnings.catch_warnings())
        # A change that Ray announces for the future does not concern the user of a run.
        warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        finally:
            self._stack.close()

    def start(self, **more_init_args: Any) -> None:
        """Start Ray and its actors in the background, unless that was done."""
        if self._thread is not None:
            return
        arguments = {**_QUIET, **more_init_args, **self._init_args}
        if "runtime_env" in more_init_args:
            ours, own = more_init_args["runtime_env"], self._init_args.get("runtime_env", {})
            variables = {**ours.get("env_vars", {}), **own.get("env_vars", {})}
            arguments["runtime_env"] = {**ours, **own, "env_vars": variables}
        if self._is_own:
            _check_loopback()
            self._folder = self._stack.enter_context(_session_folder(self._name))
            # "local", because Ray would otherwise join a cluster that runs on this machine.
            arguments = {
                "address": "local",
                "_temp_dir": str(self._folder),
                "include_dashboard": False,
                **arguments,
            }
            self._stack.enter_context(_token_required())
        _import_ray()  # before the driver is busy with other imports
        # Ray's start waits often and briefly; with Python's 5 ms each wait would last until imports let it continue.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._started.add_done_callback(lambda _: sys.setswitchinterval(interval))
        self._thread = Thread(target=self._keep_ray, args=(arguments,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until Ray is up, if it was started; ``open`` reports it where that failed."""
        if self._thread is not None:
            wait([self._started])
            _handle_sigterm_again()

    def _keep_ray(self, arguments: dict[str, Any]) -> None:
        """Start Ray, and end it when it is time to. Linux ends Ray's processes with the thread that started them."""
        try:
            import ray

            from sim.engine.ray.actor import INLINE_BYTES, start_actor

            arguments = {**private_names.ray_job_config(), **arguments}
            with private_names.ray_errors_in_the_log():
                if self._is_own:
                    system = {"max_direct_call_object_size": INLINE_BYTES, "worker_niceness": self._niceness}
                    arguments["_system_config"] = system | arguments.get("_system_config", {})
                    with private_names.fewer_ray_processes(dashboard=arguments["include_dashboard"]):
                        ray.init(**arguments)
                    assert self._folder is not None
                    self._folder.chmod(0o700)  # Ray opens it for all users
                    self._servers = _servers_of_ray()
                    self._session_link = Path(arguments["_temp_dir"]) / "session_latest"
                    self._modified_at_start = self._session_modified()
                else:
                    if ray.is_initialized():
                        ray.shutdown()
                    ray.init(**arguments)
                    fit = _actors_that_fit(ray.nodes(), self._client_resources)
                    self._num_actors = min(fit, self._num_actors)
                _handle_sigterm_again()  # the main thread may be busy with imports for seconds
                self._actors = [start_actor(**self._client_resources) for _ in range(self._num_actors)]
                self._started.set_result(None)
                self._ended.wait()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            ray.shutdown()

    def end(self) -> None:
        """End Ray and its processes; nothing if they have ended or were never started."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def open(
        self,
        spec: ClientSpec | FlowerSpec,
        num_clients: int,
        num_rounds: int,
        retry_policy: RetryPolicy,
        log_path: Path,
    ) -> Iterator[RayDispatcher]:
        """Assign the clients of a run to the actors; Ray ends with it.

        Args:
            log_path: where the output of the actors goes.

        Raises:
            EngineError: Ray could not start, or the data did not reach every node.
        """
        from sim.engine.ray.shipping import pack, runtime_env

        self.start(**({} if self._is_own else {"runtime_env": runtime_env(spec)}))
        # Only now, because these imports take seconds, during which Ray starts.
        import ray

        from sim.client.runtime import ClientFn
        from sim.engine.liveness import Liveness, liveness_file
        from sim.engine.ray.actor import ActorAssignment, start_actor
        from sim.engine.ray.dispatcher import RayDispatcher, last_line
        from sim.engine.ray.driver_state import DriverState
        from sim.engine.ray.output import wait_until_copied

        with liveness_file(self._folder) as liveness_path:
            try:
                self._started.result()
            except Exception as error:
                raise EngineError(f"Ray could not start: {last_line(error)}") from error
            _handle_sigterm_again()
            files = None if self._is_own else ray.put(pack(spec))
            driver = DriverState.of_this_process()
            node = ray.get_runtime_context().get_node_id()
            assignment = ActorAssignment(
                ray.cloudpickle.dumps(spec),
                num_clients,
                log_path,
                liveness_path,
                retry_policy.client_timeout,
                from_node=node,
                session=self._name if self._is_own else "",
            )

            def start_another(number: int) -> Any:
                actor = start_actor(**self._client_resources)
                actor.resemble.remote(driver)
                actor.begin.remote(assignment, files, number)  # before all that it is asked later
                actor.set_up.remote()
                return actor

            for actor in self._actors:
                actor.resemble.remote(driver)
            begun = [actor.begin.remote(assignment, files, number) for number, actor in enumerate(self._actors)]
            try:
                if not self._is_own:
                    ray.get(begun)
            except ray.exceptions.RayError as error:
                raise EngineError(f"the data did not reach every node: {last_line(error)}") from error
            for actor in self._actors:
                actor.set_up.remote()  # all at the same time; nobody waits for the result
            dispatcher = RayDispatcher(
                self._actors,
                start_another,
                Liveness(liveness_path),
                retry_policy,
                self._spills,
                self._check_servers,
                vectorized=spec.vectorized_clients > 1,
                on_this_machine=self._is_own,
            )
            with ExitStack() as stack:
                stack.callback(wait_until_copied, log_path)
                stack.callback(self.end)
                if getattr(spec, "client_app", None) is None:  # an app has messages, which start_simulation has not
                    from sim.engine.ray.start_simulation import flower_simulation

                    simulation = flower_simulation(
                        self._actors, ClientFn(spec), num_clients, self._client_resources, num_rounds
                    )
                    try:
                        stack.enter_context(simulation)
                    except Exception as error:
                        raise EngineError(f"Flower's start_simulation failed: {last_line(error)}") from error
                try:
                    yield dispatcher
                except EngineError:
                    _check_begun(begun)
                    raise

    def _spills(self) -> bool:
        """Whether Ray has written to the disk what its shared memory had no room for.

        It makes a folder for that in its session's, or a file that it removes at once while it uses it; nothing else
        is made there after the start.
        """
        with suppress(OSError):
            return self._is_own and self._session_modified() != self._modified_at_start
        return False

    def _check_servers(self) -> None:
        """Check that the programs of a Ray of its own are running.

        Raises:
            EngineError: one has ended; Ray itself would wait for it.
        """
        for server in self._servers:
            if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
                raise EngineError(f"Ray's {server.name()} was killed or has crashed; --resume continues the run")

    def _session_modified(self) -> int:
        return self._session_link.stat().st_mtime_ns


def _servers_of_ray() -> list[psutil.Process]:
    """Return Ray's own programs (gcs_server, raylet), which this process has started."""
    names = ("gcs_server", "raylet")
    return [process for process in psutil.Process().children() if process.name() in names]


def _check_no_other() -> None:
    """Check that this process has no Ray session, which a process can have one of; ending it is the user's to decide.

    Raises:
        ConfigError: it has one.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise ConfigError(
            "--engine ray: this process has called ray.init, and a run starts a Ray session of its own; call "
            "ray.shutdown() before it, or choose --engine inline"
        )


def _handle_sigterm_again() -> None:
    """Put Python's handler back into the place where Ray's core has put its own, which prints a stack trace."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        return
    # Another thread cannot ask Python for it, only C; all handlers in Python are one function in C.
    set_handler, handler_of = ctypes.pythonapi.PyOS_setsig, ctypes.pythonapi.PyOS_getsig
    set_handler.argtypes, handler_of.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    if isinstance(handler, signal.Handlers):  # the default, or to ignore it
        set_handler(signal.SIGTERM, handler.value)
    elif callable(handler) and callable(signal.getsignal(signal.SIGINT)):
        set_handler(signal.SIGTERM, handler_of(signal.SIGINT))


def _check_begun(begun: Sequence[Any]) -> None:
    """Check that the actors could take what they are to execute; whatever failed after it follows from that.

    Raises:
        EngineError: one could not, perhaps because it does not find a module of the user's.
    """
    import ray

    from sim.engine.ray.dispatcher import last_line

    for each in begun:
        try:
            ray.get(each, timeout=0)
        except ray.exceptions.RayTaskError as error:
            raise EngineError(f"a process cannot take the clients: {last_line(error)}") from error
        except ray.exceptions.RayError:  # it has not answered, or it has ended
            continue


def _check_loopback() -> None:
    """Check that the processes of this machine can connect to each other; without that Ray waits for minutes.

    Raises:
        EngineError: they cannot.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        reason = f"no connection to 127.0.0.1 ({error.strerror or error})"
        raise EngineError(f"Ray could not start: {reason}; --engine inline needs none") from None


def _import_ray() -> None:
    # Started by ``uv run``, Ray would pack the current folder, whatever its size, and send it to its own processes.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logger = logging.getLogger("ray")
    handlers = logger.handlers[:]
    import_module("ray")
    logger.handlers = handlers  # without the one that Ray's import adds, which prints


def _actors_that_fit(nodes: Sequence[dict[str, Any]], client_resources: dict[str, float]) -> int:
    """Return how many actors fit on the nodes of a cluster.

    Raises:
        EngineError: not even one.
    """
    kinds = {"CPU": client_resources["num_cpus"], "GPU": client_resources.get("num_gpus", 0.0)}
    count = sum(
        min(int(node["Resources"].get(kind, 0) / share) for kind, share in kinds.items() if share)
        for node in nodes
        if node["Alive"]
    )
    if not count:
        shares = " and ".join(f"--num-{kind.lower()}s {share:g}" for kind, share in kinds.items() if share)
        raise EngineError(f"no node of the cluster has room for one client with {shares}")
    return count


@contextmanager
def _session_folder(session: str) -> Iterator[Path]:
    """Make a folder for Ray's sockets, logs and spilled objects; a process beside this one removes it at the end.

    Raises:
        ConfigError: there is no place for it.
    """
    root = _temporary_root()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    spec = find_spec("ray")
    ray_folder = Path(str(spec.origin)).resolve().parent if spec is not None else folder
    with reaper.reaped(session, str(folder.resolve()), str(ray_folder)):
        lock = _locked(folder)
        assert lock is not None, "a folder that was just made belongs to no other run"
        _remove_left_folders(root)
        try:
            yield folder
        finally:
            lock.close()


def _temporary_root() -> Path:
    """Return the folder for temporary files, whose path is short enough for Ray's sockets.

    Raises:
        ConfigError: there is none that can be written, or it is full.
    """
    advice = f"set it to a writable folder with a path of at most {_LONGEST_ROOT} letters"
    given = f"TMPDIR={os.environ.get('TMPDIR', '')}"
    try:
        root = Path(tempfile.gettempdir())
        root = root if len(str(root)) <= _LONGEST_ROOT else Path("/tmp")
        free_bytes = shutil.disk_usage(root).free
    except OSError as error:
        raise ConfigError(f"{given}: no folder for temporary files can be made ({error.strerror}); {advice}") from None
    if free_bytes < _LEAST_FREE_BYTES:
        room = f"{free_bytes / 2**20:.1f} MiB are free in {root}, but Ray needs {_LEAST_FREE_BYTES // 2**20} MiB"
        raise ConfigError(f"{given}: {room} for temporary files; {advice}")
    return root


def _locked(folder: Path) -> IO[bytes] | None:
    """Lock a session's folder; None if its run is still there."""
    try:
        # Another user of the machine may have put a pipe or a link there; neither may stop or mislead this run.
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        return None
    lock = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _remove_left_folders(root: Path) -> None:
    """Remove the session folders of runs that were killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            # A folder that was made in this moment has no lock yet.
            is_ours = folder.lstat().st_uid == os.getuid() and stat.S_ISREG((folder / "lock").lstat().st_mode)
            if is_ours and (lock := _locked(folder)) is not None:
                lock.close()
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _token_required() -> Iterator[None]:
    """Let Ray ask for a token, by two variables of the environment that it reads when it is imported.

    One token serves all runs of a process. Where Ray was imported before, and cannot read them again, what it read
    then stays, because a driver without the token could not speak to a Ray that asks for it.
    """
    names = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    before = {name: os.environ.get(name) for name in names}
    imported = "ray" in sys.modules
    os.environ.update(names)
    if imported and not private_names.reread_ray_authentication() and not _imported_with_token:
        logging.getLogger("sim").warning("note: Ray was imported before; other users of this machine can reach it")
        _restore(before)
        yield
        return
    _imported_with_token.append(True)
    try:
        yield
    finally:
        _restore(before)
        private_names.reread_ray_authentication()


_imported_with_token: list[bool] = []  # not empty once a run of this process has made Ray read the token


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
