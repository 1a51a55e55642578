"""What one process needs to execute the clients of a Flower program, which bring their own data and model.

A ``FlowerSpec`` names the program and travels to other processes; a ``FlowerRuntime`` holds it in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, Message, RecordDict

from sim import private_names, user_code
from sim.client.own_files import new_files_noted
from sim.compression.by_name import Compression
from sim.errors import PluginError
from sim.run_folder.client_states import ClientStates, states_in
from sim.seeds import Purpose, seeded
from sim.training.device import compute_repeatably
from sim.user_variables import OF_THIS_PROCESS, isolated


@dataclass(frozen=True)
class FlowerSpec:
    """The names from which a process makes any client of a Flower program; where a name may stand, the object may.

    Attributes:
        client_fn: makes the client of a ``Context`` or of a ``cid``; None for an app.
        client_app: a ``flwr.clientapp.ClientApp``; None for a ``client_fn``.
        run_config: what ``Context.run_config`` holds.
        defaults: what ``Context.run_config[key]`` gives for a key that ``run_config`` does not hold.
        states_folder: where clients keep what they need again; None for in this process.
        compression: of what clients send.
    """

    import_folder: Path
    seed: int
    torch_threads: int
    client_fn: Any = None
    client_app: Any = None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    accuracy_in_percent: bool = False
    # A client of such a program is trained by itself.
    vectorized_clients: int = 1
    vectorized_only: bool = False
    states_folder: Path | None = None
    compression: Compression = field(default_factory=Compression)

    def open(self) -> FlowerRuntime:
        """Set the program up in this process."""
        return FlowerRuntime(self)

    @property
    def imported(self) -> list[Any]:
        """The parts that may be the user's own."""
        return [self.client_fn, self.client_app]

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep something from round to round, beside their contexts."""
        return self.compression.error_feedback


_SERVER_NODE = 1
_FIRST_NODE = 2


def node_of(client_id: int) -> int:
    """Return the node id of a client; 1 is that of the server."""
    return client_id + _FIRST_NODE


def client_of(node_id: int) -> int:
    """Return the client_id of a node."""
    return node_id - _FIRST_NODE


class RunConfigOf(dict[str, Any]):
    """``Context.run_config``: what the user gave, and the settings of the run for keys that the user did not give.

    ``run_config.get(key, default)`` gives the default of the program, as with a plain dict, so that no setting of the
    run replaces it.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(given)
        self._defaults = dict(defaults)

    def __missing__(self, key: str) -> Any:
        return self._defaults[key]


class FlowerRuntime:
    """A ``FlowerSpec`` set up in this process, in which its clients are executed one after another."""

    has_user_code = True
    weight_names: Sequence[str] = ()

    def __init__(self, spec: FlowerSpec) -> None:
        """Import what ``spec`` names.

        Raises:
            PluginError: it cannot be imported, or is of another type.
        """
        self.spec = spec
        self.states: ClientStates = states_in(spec.states_folder)
        with seeded(spec.seed, Purpose.INITIAL_WEIGHTS):
            self.client_app = self._app() if spec.client_app is not None else None
            self._client_fn = self._function() if spec.client_fn is not None else None
        OF_THIS_PROCESS.renew(self.client_app, self._client_fn)
        compute_repeatably(spec.torch_threads)

    def _app(self) -> ClientApp:
        app = user_code.load(self.spec.client_app, "clientapp", folder=self.spec.import_folder)
        if not isinstance(app, ClientApp):
            name = user_code.shown_name(self.spec.client_app)
            raise PluginError(f"clientapp {name}: is of type {type(app).__name__}, not a flwr.clientapp.ClientApp")
        return app

    def _function(self) -> Any:
        return user_code.load(self.spec.client_fn, "--client-fn")

    def isolated(self, stream: np.random.SeedSequence) -> AbstractContextManager[None]:
        """Let the block find the process as the first client would, see ``sim.user_variables``."""
        return self._isolated(stream)

    @contextmanager
    def _isolated(self, stream: np.random.SeedSequence) -> Iterator[None]:
        with new_files_noted(), isolated(stream):
            yield

    @cached_property
    def run_config(self) -> dict[str, Any]:
        """What each client gets a copy of as ``Context.run_config``."""
        return dict(self.spec.run_config)

    def own_run_config(self) -> dict[str, Any]:
        """Return a ``Context.run_config`` for one client."""
        return RunConfigOf(self.run_config, self.spec.defaults)

    def reply_to(
        self,
        message_type: str,
        message_id: str,
        group_id: str,
        ttl_seconds: float,
        content: RecordDict,
        context: Context,
    ) -> RecordDict:
        """Have the app answer a message.

        Raises:
            TypeError: it returned no message.
            RuntimeError: it answered with an error.
        """
        assert self.client_app is not None, "a client_fn gets no messages"
        private_names.set_task_identity(_SERVER_NODE)
        message = Message(content, context.node_id, message_type, ttl=ttl_seconds, group_id=group_id)
        private_names.set_message_id(message, message_id)
        reply = self.client_app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}; a Message is expected")
        if reply.has_error():
            raise RuntimeError(f"the ClientApp answered with error {reply.error.code}: {reply.error.reason}")
        return reply.content

    def client(self, context: Context) -> Client:
        """Make the client of ``partition-id`` by the program's own ``client_fn``.

        Raises:
            TypeError: it made something else.
        """
        assert self._client_fn is not None, "an app has no client_fn"
        made = self._client_fn(_cid_or_context(self._client_fn, context))
        if isinstance(made, NumPyClient):
            return made.to_client()
        if not isinstance(made, Client):
            raise TypeError(f"client_fn returned {type(made).__name__}; a flwr Client or NumPyClient is expected")
        return made


def _cid_or_context(client_fn: Any, context: Context) -> Any:
    """Return the argument that a ``client_fn`` takes: the id as a text in programs of before 2024."""
    parameters = list(user_code.parameters_of(client_fn).values())
    first = parameters[0] if parameters else None
    takes_id = first is not None and (first.name == "cid" or first.annotation in (str, "str"))
    return str(context.node_config["partition-id"]) if takes_id else context


def is_client_fn(thing: Any) -> bool:
    """Return whether an object is a ``client_fn``: a function of a ``Context`` or a ``cid`` alone, and no class."""
    if isinstance(thing, type) or not callable(thing):
        return False
    required = [p for p in user_code.parameters_of(thing).values() if p.default is p.empty]
    if len(required) != 1 or required[0].kind in (required[0].VAR_POSITIONAL, required[0].VAR_KEYWORD):
        return False
    annotation = required[0].annotation
    return required[0].name in ("context", "cid") or annotation in (Context, str, "Context", "str")
