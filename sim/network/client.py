"""``sim client``: Flower's ``start_client`` with one client of the run.

The only file that touches ``start_client`` (deprecated in Flower 1.13, working in 1.41 and 1.42).
"""

from __future__ import annotations

import os

import grpc
from flwr.client import start_client
from flwr.common import Context, RecordDict

from sim.client.runtime import get_weights, workbench
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, EngineError, RefusedError
from sim.network.identity import REFUSED, introduce
from sim.network.options import ClientOptions
from sim.network.probe import wait_for_server
from sim.network.remote_client import RemoteClient
from sim.run_folder import log
from sim.setup import dry_run
from sim.setup.prepare import check_device, fit_config


def join(config: RunConfig, options: ClientOptions) -> int:
    """Be client ``options.client_id`` of the server at ``options.address`` until it ends.

    Returns:
        The number of rounds in which it trained.

    Raises:
        UsageError: config, data, address or certificates do not work, or the server refuses this client.
        EngineError: there is no server, it died, or it stopped early.
    """
    client_id = options.client_id
    if client_id is None or client_id >= config.num_clients:
        raise ConfigError(
            f"--client-id {'is missing' if client_id is None else client_id}: must be from 0 to "
            f"--num-clients - 1 = {config.num_clients - 1}"
        )
    options.resolve()
    check_device(config)
    member = introduce(config)
    program = member.program
    dry_run.rehearse(workbench(program), get_weights(workbench(program).net), fit_config(config, 1))
    authority = wait_for_server(options)
    client = RemoteClient(program, member.identity(client_id), Context(0, client_id, {}, RecordDict(), {}))
    # The probe was direct, and a server of this kind is behind no proxy.
    os.environ["no_grpc_proxy"] = options.host  # noqa: SIM112 - so gRPC reads it
    with log.notes(), log.quiet("flwr", show=config.verbose):
        try:
            start_client(server_address=options.address, client=client, root_certificates=authority)
        except (grpc.RpcError, StopIteration) as error:
            if client.farewell is None:
                detail = error.details() if isinstance(error, grpc.Call) else "the connection ended"
                raise EngineError(f"--address {options.address}: the server is gone: {detail}") from None
    if client.farewell is not None:
        kind, reason = client.farewell
        raise RefusedError(reason) if kind == REFUSED else EngineError(reason)
    return client.num_rounds
