"""The same run as a Flower app: ``flwr run .`` simulates it, a SuperLink and SuperNodes deploy it.

Its run config has the settings of ``RunConfig`` under their own names, an empty text for those that are not given,
and arguments as on the command line: ``strategy_args = "proximal_mu=0.1"``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flwr.client import Client, ClientApp
from flwr.common import Context
from flwr.server import History, ServerApp, ServerAppComponents, ServerConfig

from sim.config.fields import check, parse_flag, type_of
from sim.config.run_config import RunConfig
from sim.errors import ConfigError
from sim.network.client import LastWorker, RemoteClient
from sim.network.identity import ClientProgram, prepare_client
from sim.network.options import ServerOptions, networked
from sim.network.server import NetworkServer
from sim.run_folder.progress import RoundProgress
from sim.setup.prepare import check_device, prepare


class _ClientFn:
    """The app's ``client_fn``; it keeps data and model for the next call, as one process executes many clients."""

    def __init__(self) -> None:
        self._programs: dict[str, ClientProgram] = {}
        self._last_worker = LastWorker()

    def __call__(self, context: Context) -> Client:
        """Make the client of a node.

        Raises:
            ConfigError: the node's config lacks its partition, or the run config is wrong.
        """
        sys.argv = sys.argv[:1]  # the words of Flower's command are not for the parsers of user code
        node = context.node_config
        if not {"partition-id", "num-partitions"} <= set(node):
            raise ConfigError('--node-config: needs "partition-id=0 num-partitions=2"')
        given = {**_given(RunConfig, context.run_config), "num_clients": int(node["num-partitions"])}
        config = RunConfig(**networked(given))
        key = config.to_toml()
        if key not in self._programs:
            self._programs = {key: prepare_client(config)}
        program = self._programs[key]
        return RemoteClient(program.spec, program.identity(int(node["partition-id"])), context, self._last_worker)


def _server_fn(context: Context) -> ServerAppComponents:
    sys.argv = sys.argv[:1]
    given = _given(RunConfig, context.run_config)
    options = _given(ServerOptions, context.run_config)
    counted = "num_clients" in given
    min_clients = options.get("min_clients")
    config = RunConfig(**networked({"num_clients": min_clients or 1, **given}))
    check_device(config)
    progress = RoundProgress(config.num_rounds)
    round_timeout = options.get("round_timeout", ServerOptions.round_timeout)
    host = _AppServer(
        prepare(config, alone=True),
        counted=counted,
        min_clients=min_clients,
        first_wait=round_timeout,
        round_timeout=round_timeout,
        introduction_seconds=round_timeout,  # a SuperNode starts a process, which loads the data, to answer
        on_record=progress.update,
    )
    return ServerAppComponents(server=host, config=ServerConfig(num_rounds=config.num_rounds))


class _AppServer(NetworkServer):
    """A host that says where the results are, since the runtime chose the working folder."""

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Run the rounds (see ``NetworkServer.fit``)."""
        history = super().fit(num_rounds, timeout)
        if self.run is not None:
            print(f"run folder      {self.run.path}", flush=True)
        return history


def _given(config_type: type[Any], run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a config that a run config gives.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """
    given = {}
    for field in fields(config_type):
        value = run_config.get(field.name, "")
        if value == "":
            continue
        if type_of(config_type, field.name)[0] is dict:
            given[field.name] = parse_flag(config_type, field, str(value).split())
        else:
            given[field.name] = check(config_type, field, value, f"run config: {field.name} = {value!r}")
    return given


client_app = ClientApp(client_fn=_ClientFn())
server_app = ServerApp(server_fn=_server_fn)
