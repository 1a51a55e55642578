"""A configuration of a Flower program → all that its run needs: its clients bring data, model and training.

Nothing is started, and nothing is written.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.client import Client
from flwr.common import Code, Context, GetParametersIns, NDArrays, Parameters, RecordDict, parameters_to_ndarrays
from flwr.server.strategy import Strategy
from flwr.serverapp import ServerApp

from sim import user_code
from sim.client.flower_program import FlowerRuntime, FlowerSpec, is_client_fn
from sim.compression.by_name import Compression
from sim.config.app import read_app
from sim.config.run_config import RunConfig
from sim.data.partition import Partition
from sim.engine.aggregation import check_finite
from sim.errors import ConfigError, PluginError, SimError, described
from sim.process_settings import in_own_context, restored_settings
from sim.seeds import Purpose, seeded
from sim.server import strategy
from sim.server.prepared_run import Prepared, ProgramObjects
from sim.server.virtual_clients import virtual_clients
from sim.setup.virtual_time import with_devices
from sim.training import models
from sim.training.device import compute_repeatably
from sim.training.models import DataFacts
from sim.training.weights import WeightLayout, get_weights
from sim.user_variables import isolated

# Settings of a run under the names that Flower's templates use in a run config.
_RUN_CONFIG_NAMES = {
    "num-server-rounds": "num_rounds",
    "num-rounds": "num_rounds",
    "fraction-fit": "fraction_fit",
    "fraction-evaluate": "fraction_evaluate",
    "local-epochs": "local_epochs",
    "batch-size": "batch_size",
    "learning-rate": "lr",
    "lr": "lr",
    "momentum": "momentum",
    "weight-decay": "weight_decay",
    "seed": "seed",
    "num-clients": "num_clients",
}


def flower_spec(config: RunConfig, objects: ProgramObjects) -> FlowerSpec:
    """Return what a process needs to make any client of a ``client_fn``."""
    values = config.resolved({})
    defaults = {key: getattr(values, name) for key, name in _RUN_CONFIG_NAMES.items()}
    return FlowerSpec(
        Path.cwd(),
        config.seed,
        config.torch_threads,
        client_fn=objects.client_fn or config.client_fn,
        run_config=config.run_config,
        accuracy_in_percent=config.accuracy_in_percent,
        defaults={key: value for key, value in defaults.items() if value is not None},
        compression=Compression.of(config.compress),
    )


def prepare_client_fn(config: RunConfig, objects: ProgramObjects) -> Prepared:
    """Build and check what a ``client_fn`` and its strategy need.

    The first weights are those that the strategy brings; else those of ``--model``; else those that client 0 returns
    from ``get_parameters``.

    Raises:
        UsageError: something does not work.
    """
    strategy.check_takes_arrays(objects.strategy)
    spec = flower_spec(config, objects)
    compute_repeatably(config.torch_threads)
    runtime = FlowerRuntime(spec)
    client = _first_client(config, runtime)
    weights, layout = _first_weights(config, objects, client)
    built = strategy.build(config, weights, layout, None, objects.strategy)
    assigned = Partition.unknown(config.num_clients)
    return with_devices(Prepared(config, None, assigned, spec, weights, layout, built, objects))


def prepare_app(config: RunConfig, objects: ProgramObjects) -> Prepared:
    """Read a Flower app and import its two components.

    Raises:
        UsageError: something does not work.
    """
    notes: tuple[str, ...] = ()
    if objects.server_app is None:
        assert config.app is not None
        files = read_app(config.app, config.run_config)
        notes = files.notes
        server_app = user_code.load(files.server_app, "serverapp", folder=files.folder)
        spec = FlowerSpec(
            files.folder,
            config.seed,
            config.torch_threads,
            client_app=files.client_app,
            run_config=files.run_config,
            accuracy_in_percent=config.accuracy_in_percent,
        )
    else:
        server_app = objects.server_app
        spec = FlowerSpec(
            Path.cwd(),
            config.seed,
            config.torch_threads,
            client_app=objects.client_app,
            run_config=config.run_config,
            accuracy_in_percent=config.accuracy_in_percent,
        )
    if not isinstance(server_app, ServerApp):
        raise PluginError(f"serverapp: is of type {type(server_app).__name__}, not a flwr.serverapp.ServerApp")
    compute_repeatably(config.torch_threads)
    FlowerRuntime(spec)  # imports the other component
    layout = WeightLayout.unknown([])
    partition = Partition.unknown(config.num_clients)
    return Prepared(config, None, partition, spec, [], layout, None, objects, server_app=server_app, notes=notes)


@in_own_context
def _first_client(config: RunConfig, runtime: FlowerRuntime) -> Client:
    """Make client 0, which shows that the program works."""
    place = f"--client-fn {config.client_fn}"
    node_config: dict[str, Any] = {"partition-id": 0, "num-partitions": config.num_clients}
    context = Context(0, 0, node_config, RecordDict(), runtime.own_run_config())
    try:
        with seeded(config.seed, Purpose.INITIAL_WEIGHTS) as stream, isolated(stream, log=False):
            return runtime.client(context)
    except SimError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{place}: client 0 cannot be made: {described(error)}") from error


def _first_weights(config: RunConfig, objects: ProgramObjects, client: Client) -> tuple[NDArrays, WeightLayout]:
    if config.model != "auto":
        if not (":" in config.model or objects.model is not None):
            raise ConfigError(f"--model {config.model}: a Flower program needs its own model here, package.module:name")
        with restored_settings(), seeded(config.seed, Purpose.INITIAL_WEIGHTS):
            net = models.build(objects.model or config.model, DataFacts(None, None), config.model_args, config.args)
        return get_weights(net), WeightLayout.of(net)
    weights = _of_strategy(config, objects)
    if weights is None:
        weights = _of_client(config, client)
    try:
        check_finite(weights, [])
    except ValueError as error:
        raise PluginError(f"--client-fn {config.client_fn}: the first weights are no numbers: {error}") from error
    return weights, WeightLayout.unknown([f"array_{number}" for number in range(len(weights))])


def _of_strategy(config: RunConfig, objects: ProgramObjects) -> NDArrays | None:
    """Return the weights that the user's own strategy begins with, if it has some."""
    given = objects.strategy
    if not isinstance(given, Strategy):
        return None
    try:
        with restored_settings(), seeded(config.seed, Purpose.STRATEGY):
            parameters: Any = given.initialize_parameters(virtual_clients(config.num_clients))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = f"--strategy {user_code.shown_name(given)}"
        raise PluginError(f"{place}: initialize_parameters raised {described(error)}") from error
    if not parameters:
        return None
    if not isinstance(parameters, Parameters):
        place = f"--strategy {user_code.shown_name(given)}"
        kind = type(parameters).__name__
        raise PluginError(f"{place}: begins with a {kind}, not with Parameters, which ndarrays_to_parameters makes")
    return parameters_to_ndarrays(parameters)


@in_own_context
def _of_client(config: RunConfig, client: Client) -> NDArrays:
    place = f"--client-fn {config.client_fn}"
    try:
        with seeded(config.seed, Purpose.INITIAL_WEIGHTS) as stream, isolated(stream, log=False):
            answer = client.get_parameters(GetParametersIns({}))
            weights = parameters_to_ndarrays(answer.parameters)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{place}: get_parameters of client 0 raised {described(error)}") from error
    odd = next((array.dtype for array in weights if array.dtype.kind not in "biuf"), None)
    if odd is not None:
        raise PluginError(f"{place}: get_parameters of client 0 returned an array of type {odd}; numbers are expected")
    if answer.status.code not in (Code.OK, Code.GET_PARAMETERS_NOT_IMPLEMENTED):
        raise PluginError(f"{place}: get_parameters of client 0 answered {answer.status.message}")
    if not weights:
        raise PluginError(
            f"{place}: there are no first weights; get_parameters of the client, initial_parameters of the strategy "
            "or --model must give some"
        )
    return weights


def with_client_fn(config: RunConfig, objects: ProgramObjects) -> tuple[RunConfig, ProgramObjects]:
    """Return a config whose ``client`` is a ``client_fn`` with that name in the right place; others as they are."""
    if config.client is None:
        return config, objects
    thing = objects.client or user_code.load(config.client, "--client")
    if not is_client_fn(thing):
        return config, objects
    moved = replace(config, client=None, client_fn=config.client)
    return moved, replace(objects, client=None, client_fn=objects.client)
