"""The private names of Ray, Flower, gRPC and PyTorch that this package uses, in this file and nowhere else.

Each function says what its private name buys, in which version the name was seen, and what happens where the name is
missing: the run works without it. ``HIDDEN`` in the environment (``SIM_HIDE_PRIVATE_NAMES=1``) hides all of them, so
that a test can show that.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, partialmethod
from operator import attrgetter
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

HIDDEN = "SIM_HIDE_PRIVATE_NAMES"
_COMPILER = "torch._dynamo"
_OPERATIONS = "all", "matmul", "conv", "rnn"  # of which PyTorch sets the precision of float32


def _find(module: str, *names: str) -> list[Any] | None:
    """Return private objects of a library; None where one of them is missing."""
    if os.environ.get(HIDDEN):
        return None
    try:
        found = importlib.import_module(module)
        return [getattr(found, name) for name in names]
    except (ImportError, AttributeError):
        return None


@contextmanager
def _replaced(module: str, name: str, value: Any) -> Iterator[None]:
    """Put ``value`` in the place of a private name, if it is there."""
    old = _find(module, name)
    if old is None:
        yield
        return
    place = importlib.import_module(module)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, old[0])


@contextmanager
def fewer_ray_processes(*, dashboard: bool) -> Iterator[None]:
    """Start Ray without the processes that scale clusters, forward logs and count usage.

    Gain: 1.6 CPU seconds and 1 s of waiting at each start. Seen in Ray 2.55 to 2.60: ``ray.init`` does not pass on the
    first two parameters, and the third process is what is left of the dashboard's server when there is no dashboard.
    Without the names these processes start.
    """
    with ExitStack() as stack:
        parameters = _find("ray._private.parameter", "RayParams")
        if parameters is not None:
            lean = partial(parameters[0], no_monitor=True, include_log_monitor=False)
            stack.enter_context(_replaced("ray._private.parameter", "RayParams", lean))
        if not dashboard:
            nothing = lambda *_, **__: (None, None)  # noqa: E731 - in the place of a function
            stack.enter_context(_replaced("ray._private.services", "start_api_server", nothing))
        yield


def ray_job_config() -> dict[str, Any]:
    """Return an argument of ``ray.init`` with which the current folder is not the first on its processes' ``sys.path``.

    Gain: a file ``random.py`` or ``torch.py`` of the user's is not taken for the library. Seen in Ray 2.55 to 2.60: Ray
    asks whether the folder was uploaded, and adds it if not. Without the name it adds it.
    """
    found = _find("ray.job_config", "JobConfig")
    if found is None or Path(__file__).resolve().parents[1] == Path.cwd():  # not installed: sim itself is found there
        return {}
    without_folder = type("JobConfig", (found[0],), {"_runtime_env_has_working_dir": lambda _: True})
    return {"job_config": without_folder()}


@contextmanager
def ray_errors_in_the_log() -> Iterator[None]:
    """Send the errors of Ray's processes to the run's log instead of the screen.

    Gain: a clean screen. Seen in Ray 2.55 to 2.60. Without the name they are printed on stderr.
    """

    def to_the_log(data: dict[str, Any], ignore_prefix: bool) -> None:
        for line in data.get("lines", []):
            logging.getLogger("ray").warning("%s: %s", data.get("pid"), line)

    with _replaced("ray._private.worker", "print_to_stdstream", to_the_log):
        yield


def reread_ray_authentication() -> bool:
    """Let Ray read ``RAY_AUTH_MODE`` and ``RAY_AUTH_TOKEN`` again, which it has read when it was imported.

    Gain: a run in a process that imported Ray before, or in which another run has ended, has a token of its own. Seen
    in Ray 2.55 to 2.60. Without the names the result is False, and such a run has to do with what Ray read.
    """
    found = _find("ray._raylet", "Config", "AuthenticationTokenLoader")
    if found is None:
        return False
    config, loader = found
    config.initialize("")
    loader.instance().reset_cache()
    return True


def is_closed_connection(error: BaseException) -> bool:
    """Whether Flower raised ``error`` because a client closed its connection.

    Gain: strangers who connect and leave are not reported as warnings. Seen in Flower 1.41 and 1.42. Without the name
    they are.
    """
    found = _find("flwr.server.superlink.fleet.grpc_bidi.grpc_bridge", "GrpcBridgeClosed")
    return found is not None and isinstance(error, found[0])


def is_watch_of_closed_channel(error: BaseException) -> bool:
    """Whether gRPC's thread that watches a channel raised ``error`` because the channel was closed meanwhile.

    Gain: a client that has ended shows no traceback of that thread. Seen in gRPC 1.85. Without the name it may do so.
    """
    if os.environ.get(HIDDEN) or not (isinstance(error, ValueError) and str(error).endswith("Channel closed!")):
        return False
    return any(frame.f_code.co_name == "_poll_connectivity" for frame, _ in walk_tb(error.__traceback__))


def close_connection(proxy: Any) -> None:
    """Close the stream behind one of Flower's client proxies.

    Gain: a stream that stays open takes one of the server's thousand threads. Seen in Flower 1.41 and 1.42. Without
    the name the stream ends when its client ends it.
    """
    bridge = None if os.environ.get(HIDDEN) else getattr(proxy, "bridge", None)
    if bridge is not None:
        bridge.close()


def record_from_protobuf(content: bytes) -> Any:
    """Read a ``RecordDict`` from Flower's protobuf message.

    Gain: runs of sim 0.1.0, whose checkpoints hold clients' states so, can be resumed. Seen in Flower 1.41 and 1.42.

    Raises:
        ValueError: the content is no such message, or the names are missing.
    """
    serde = _find("flwr.common.serde", "recorddict_from_proto")
    message = _find("flwr.proto.recorddict_pb2", "RecordDict")
    if serde is None or message is None:
        raise ValueError("this version of Flower cannot read the state of a client that an earlier sim wrote")
    from google.protobuf.message import DecodeError

    try:
        return serde[0](message[0].FromString(content))
    except (DecodeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def global_hooks() -> list[dict[Any, Any]]:
    """Return PyTorch's tables of hooks that apply to every module and every optimizer.

    Gain: a hook that one client registers for all modules does not reach the clients after it. Seen in PyTorch 2.6 to
    2.14. Without the names such hooks stay in the process.
    """
    tables = []
    for module, names in (
        (
            "torch.nn.modules.module",
            (
                "_global_forward_hooks",
                "_global_forward_pre_hooks",
                "_global_backward_hooks",
                "_global_backward_pre_hooks",
                "_global_module_registration_hooks",
                "_global_parameter_registration_hooks",
                "_global_buffer_registration_hooks",
            ),
        ),
        ("torch.optim.optimizer", ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")),
    ):
        for name in names:
            tables += _find(module, name) or []
    return tables


def ask_for_entropy_of_numpy(answer: Callable[[Callable[[int], int], int], int]) -> None:
    """Let ``answer``, of numpy's own function and a number of bits, say from what a generator without a seed begins.

    Gain: ``np.random.default_rng()`` in a program is the same in each process and run. Seen in numpy 1.26 to 2.4.
    Without the name such generators differ.
    """
    found = _find("numpy.random.bit_generator", "randbits")
    if found is not None:
        place: Any = importlib.import_module("numpy.random.bit_generator")
        place.randbits = partial(answer, found[0])


def function_modes() -> tuple[Callable[[], int], Callable[[], Any]]:
    """Return what counts the ``TorchFunctionMode`` that this thread has entered, and what leaves the last of them.

    Gain: a mode that one client enters does not reach the clients after it. Seen in PyTorch 2.6 to 2.14. Without the
    names such modes stay.
    """
    found = _find("torch._C", "_len_torch_function_stack", "_pop_torch_function_stack")
    return (found[0], found[1]) if found is not None else (lambda: 1, lambda: None)


def float32_precisions() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Return how each of PyTorch's switches ``fp32_precision`` is read and set, those of whole libraries first.

    Gain: what one client sets there does not reach the clients after it; the public attributes take 0.7 µs each instead
    of 0.1, and that of mkldnn sets the one of all libraries. Seen in PyTorch 2.9 to 2.14. Without the names, such
    settings stay in the process, but for those that older switches put back.
    """
    found = _find("torch._C", "_get_fp32_precision_getter", "_set_fp32_precision_setter")
    switches: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []
    if found is not None:
        get, put = found
        for library, operations in {"generic": ["all"], "cuda": _OPERATIONS, "mkldnn": _OPERATIONS}.items():
            for operation in operations:
                with suppress(RuntimeError):  # this version has no such switch
                    get(library, operation)
                    switches.append((partial(get, library, operation), partial(put, library, operation)))
    return switches


def environment_table() -> MutableMapping[bytes, bytes]:
    """Return what holds the variables of the environment.

    Gain: a copy of it takes 1 µs instead of 50, which counts where clients return at once. Seen in Python 3.11 to 3.13;
    without the name, ``os.environb`` is read, which converts each name.
    """
    table = getattr(os.environ, "_data", None)
    return os.environb if os.environ.get(HIDDEN) or not isinstance(table, dict) else table


def count_of_writes() -> Callable[[Any], int]:
    """Return a function of a tensor: how often PyTorch has written to it.

    Gain: a note where ``train`` puts the weights of an earlier step back. Seen in PyTorch 2.6 to 2.14. Without the name
    the count is always 0, and there is no note.
    """
    found = _find("torch", "Tensor")
    return attrgetter("_version") if found is not None and hasattr(found[0], "_version") else lambda _: 0


class _CompilerToBe(ModuleType):
    """Stands for PyTorch's compiler until somebody asks for more than the two functions that each optimizer calls."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.__spec__ = importlib.util.find_spec(_COMPILER)
        self.__file__ = self.__spec__.origin if self.__spec__ is not None else None
        self._functions: list[Any] = []

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Do nothing, as the compiler's own function does where nothing is compiled."""

    def disable(self, function: Any = None, recursive: bool = True, **settings: Any) -> Any:
        """Return the function itself to PyTorch's own methods, which keep it until the compiler is imported."""
        if settings != {"wrapping": False} or not callable(function):
            return self.__getattr__("disable")(function, recursive, **settings)
        self._functions.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked by those who look at each module, such as inspect
            raise AttributeError(f"module {_COMPILER!r} has no attribute {name!r}")
        if sys.modules.get(_COMPILER) is self:
            parent, _, attribute = _COMPILER.rpartition(".")
            del sys.modules[_COMPILER]
            sys.modules[parent].__dict__.pop(attribute, None)
            for function in self._functions:
                vars(function).pop("__dynamo_disable", None)
        return getattr(importlib.import_module(_COMPILER), name)


def import_compiler_when_used() -> None:
    """Let optimizers be made without PyTorch's compiler, which is imported as soon as something is compiled.

    Gain: 2.6 s and 150 MiB in each process that makes an optimizer (AMD EPYC, PyTorch 2.14.1): its first call imports
    ``torch._dynamo`` to say that it is not to be compiled. Seen in PyTorch 2.14; in versions whose optimizers call
    ``disable`` otherwise, and without the names, the compiler is imported then.
    """
    if _COMPILER not in sys.modules and _find("torch._compile", "_disable_dynamo") is not None:
        stand_in = _CompilerToBe()
        sys.modules[_COMPILER] = stand_in
        importlib.import_module("torch")._dynamo = stand_in  # type: ignore[attr-defined]


def set_task_identity(node_id: int) -> None:
    """Say who makes the messages of this process, which ``Message(...)`` reads.

    Gain: Flower apps run outside of Flower's own processes. Seen in Flower 1.41 and 1.42; without the name a Flower
    app cannot run.
    """
    found = _find("flwr.supercore.task_identity", "TaskIdentity")
    if found is not None:
        found[0].task_id, found[0].run_id, found[0].node_id = 1, 1, node_id


def set_message_id(message: Any, message_id: str) -> None:
    """Give a message its id, as Flower does when it sends it.

    Gain: an app can tell by ``reply_to_message_id`` which message a reply belongs to. Seen in Flower 1.41 and 1.42.
    Without the name the id is empty.
    """
    if not os.environ.get(HIDDEN):
        message.metadata.__dict__["_message_id"] = message_id


def empty_run() -> Any:
    """Return a ``Run`` of Flower, which ``Grid.run`` gives; None where Flower has another constructor."""
    found = _find("flwr.supercore.run", "Run")
    try:
        return None if found is None else found[0].create_empty(run_id=1)
    except (AttributeError, TypeError):
        return None


def awaited_nodes() -> int:
    """Return for how many nodes the caller of ``Grid.get_node_ids`` waits if it is one of Flower's strategies, else 0.

    Gain: a strategy that waits for more nodes than there will ever be is an error. Seen in Flower 1.41 and 1.42.
    Without the names it waits for ever.
    """
    found = _find("flwr.serverapp.strategy.strategy_utils", "sample_nodes")
    frame = sys._getframe(1)
    while found is not None and frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is found[0].__code__:
            return int(frame.f_locals.get("min_available_nodes", 0))
    return 0


def check_metrics_of_replies(contents: list[Any], weighted_by: str) -> None:
    """Have Flower check that replies can be averaged: one record of metrics each, with the same keys.

    Gain: where the actors make sums, an app gets the errors that Flower raises. Seen in Flower 1.41 and 1.42. Without
    the name only the first reply is checked.

    Raises:
        InconsistentMessageReplies: they cannot.
    """
    found = _find("flwr.serverapp.strategy.strategy_utils", "validate_message_reply_consistency")
    if found is not None:
        found[0](contents, weighted_by, check_arrayrecord=False)


@contextmanager
def server_app_calls(*, start: Any, start_grid: Any, fit: Any) -> Iterator[None]:
    """Call our own round loop where a ServerApp calls Flower's.

    Gain: rounds are recorded and can be resumed, and results come in one order. ``Strategy.start`` is public; a class
    of the user's with a ``start`` of its own keeps it; so is ``Server.fit``. Seen in Flower 1.41 and 1.42:
    ``ServerApp`` calls the function ``start_grid`` for a strategy of the older form. Without the names Flower's own
    loops send their messages through our grid, and such a run cannot be resumed.

    Args:
        start: (Flower's own, strategy, grid, …) → result, in the place of ``Strategy.start``.
        start_grid: (Flower's own, grid=…, …) → history, in the place of the function of that name.
        fit: (Flower's own, server, num_rounds, timeout) → history and seconds, in the place of ``Server.fit``.
    """
    with ExitStack() as stack:
        for module, name, method, ours in (
            ("flwr.serverapp.strategy", "Strategy", "start", start),
            ("flwr.server", "Server", "fit", fit),
        ):
            found = _find(module, name)
            if found is not None:
                own = getattr(found[0], method)
                setattr(found[0], method, partialmethod(_with_own, ours, own))
                stack.callback(setattr, found[0], method, own)
        of_grid = _find("flwr.serverapp.server_app", "start_grid")
        if of_grid is not None:
            stack.enter_context(_replaced("flwr.serverapp.server_app", "start_grid", partial(start_grid, of_grid[0])))
        yield


def gradient_hooks(tensor: Any) -> tuple[list[Any], list[Any]]:
    """Return the hooks on a tensor's gradient: of ``register_hook``, and of ``register_post_accumulate_grad_hook``.

    Gain: a copy of a net has them as well, which ``copy.deepcopy`` leaves out. Seen in PyTorch 2.14. Empty lists
    without the names, so that copies have none.
    """
    if _find("torch", "Tensor") is None:
        return [], []
    names = "_backward_hooks", "_post_accumulate_grad_hooks"
    before, after = ([*(getattr(tensor, name, None) or {}).values()] for name in names)
    return before, after


def _with_own(instance: Any, ours: Any, own: Any, *arguments: Any, **named: Any) -> Any:
    return ours(own, instance, *arguments, **named)


def has_own_rounds(server: Any) -> bool:
    """Return whether the class of a ``flwr.server.Server`` changes what a round does.

    Gain: the rounds of any other class are recorded and can be resumed. Seen in Flower 1.41 and 1.42. Without the names
    nobody asks, because ``server_app_calls`` then replaces nothing.
    """
    found = _find("flwr.server", "Server")
    steps = ("fit_round", "evaluate_round", "_get_initial_parameters")
    return found is not None and any(getattr(type(server), s, None) is not getattr(found[0], s, None) for s in steps)


def client_proxy(client_id: int, node_id: int, grid: Any) -> Any:
    """Return a ``ClientProxy`` whose calls are messages of a grid.

    Gain: a strategy may call the clients that it samples, as for their properties. Seen in Flower 1.41 and 1.42. None
    without the name; such a call then raises.
    """
    found = _find("flwr.server.compat.grid_client_proxy", "GridClientProxy")
    if found is None:
        return None
    proxy = found[0](node_id, grid, 1)
    proxy.cid = str(client_id)
    return proxy


def legacy_messages() -> Any:
    """Return the module that converts FitIns and EvaluateIns to the content of messages, and replies back.

    Gain: a ClientApp answers a strategy of the older form. Seen in Flower 1.42 (``flwr.compat.common``) and 1.41
    (``flwr.common``). None without it; such an app then cannot run.
    """
    for place in ("flwr.compat.common.recorddict_compat", "flwr.common.recorddict_compat"):
        if _find(place, "fitins_to_recorddict") is not None:
            return importlib.import_module(place)
    return None
