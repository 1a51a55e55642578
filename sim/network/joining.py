"""``sim client``: Flower's ``start_client`` with one client of the run.

The only file that touches ``start_client`` (deprecated in Flower 1.13, working in 1.41 and 1.42).
"""

from __future__ import annotations

import grpc
from flwr.client import start_client
from flwr.common import RecordDict

from sim import data, partition, rehearsal, runlog
from sim.client import Program, get_weights, workbench
from sim.config import RunConfig
from sim.errors import ConfigError, EngineError, RefusedError
from sim.network.identity import REFUSED, Identity, Shape
from sim.network.options import ClientOptions
from sim.network.probe import wait_for_server
from sim.network.remote_client import RemoteClient
from sim.preparation import check_device, fit_config, fresh_weights, make_program


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
    program, identity = introduce(config, client_id)
    rehearsal.rehearse(workbench(program), get_weights(workbench(program).net), fit_config(config, 1))
    authority = wait_for_server(options)
    client = RemoteClient(program, identity, RecordDict())
    with runlog.notes(), runlog.quiet("flwr", show=config.verbose):
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


def introduce(config: RunConfig, client_id: int) -> tuple[Program, Identity]:
    """Load the data, deal them and build the model; return what the client is made of and how it presents itself.

    Raises:
        UsageError: something does not work.
    """
    dataset = data.load(config)
    dealt = partition.deal(dataset.train.labels, config)
    program = make_program(config, dataset, dealt, alone=True)
    shape = Shape.of(dataset, fresh_weights(program))
    return program, Identity(
        **vars(shape), client_id=client_id, num_clients=config.num_clients, num_examples=int(dealt.sizes[client_id])
    )
