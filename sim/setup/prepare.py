"""A configuration → all that a run needs, loaded, assigned, built and checked.

Everything that can be wrong is found here. Nothing is started, and nothing is written outside the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.common import NDArrays, Scalar
from torch import nn

from sim import user_code
from sim.algorithms.by_name import ALGORITHMS, AlgorithmSpec
from sim.algorithms.local_parameters import local_names
from sim.client.own_evaluation import OwnTest
from sim.client.own_folder import OwnFolderSpec
from sim.client.own_function import SourceFacts, gets, source_facts
from sim.client.own_training import OwnTrain
from sim.client.runtime import ClientSpec, build_net, metrics_of
from sim.client.torch_client import fit_settings
from sim.compression.by_name import Compression
from sim.config.choices import WITHOUT_IMAGES
from sim.config.fields import IMPORT_PATH, flag_of, given_as
from sim.config.program import program_parts
from sim.config.run_config import RunConfig, TrainingConfig
from sim.data import partition
from sim.data.columns import Columns, LoaderSettings
from sim.data.defaults import decided
from sim.data.load_dataset import Dataset, Examples, load_dataset
from sim.data.loaders import example_batch, joins_batches, takes_noise
from sim.data.partition import Partition
from sim.errors import ConfigError, PluginError, RunError, one_line, some
from sim.method_binding import load_function, with_owner
from sim.metrics import configured
from sim.process_settings import in_own_context
from sim.run_folder.best_round import metric_of_validation
from sim.seeds import Purpose, seeded
from sim.server import attacks, strategy
from sim.server.async_rules import rule_of
from sim.server.prepared_run import Prepared, ProgramObjects
from sim.setup import dry_run
from sim.setup.local_training import with_local_training
from sim.setup.prepare_flower import prepare_app, prepare_client_fn, with_client_fn
from sim.setup.virtual_time import check_real_time, with_devices
from sim.training.device import compute_repeatably, notes_on_precision
from sim.training.losses import LOSSES, METRICS, inputs_and_target
from sim.training.models import try_out
from sim.training.weights import WeightLayout, get_weights
from sim.user_variables import isolated

_SIZES = re.compile(r"shape|size|dimension|channel", re.IGNORECASE)  # what PyTorch's errors of wrong sizes speak of


def prepare(config: RunConfig, objects: ProgramObjects | None = None, *, alone: bool = False) -> Prepared:
    """Load, assign, build and check everything that the config names.

    Args:
        objects: parts of the program that were given from Python.
        alone: no other client shares the GPU, so that ``--device auto`` takes it without ``--num-gpus``.

    Raises:
        UsageError: something does not work.
    """
    if alone:
        check_real_time(config)
    config, objects = with_client_fn(config, objects or ProgramObjects())
    if config.app is not None:
        return prepare_app(config, objects)
    if config.client_fn is not None:
        return prepare_client_fn(config, objects)
    Compression.of(config.compress)  # before the data are loaded, which may take minutes
    dataset = load_dataset(config, objects.load_data)
    config, notes = decided(config, dataset)
    dataset = replace(dataset, notes=(*dataset.notes, *notes))
    unused = [*settings_without_effect(config, objects.train, objects.test)]
    config = resolved(config, dataset, objects.train)
    _check_target(config, dataset, objects.strategy)
    attacks.check(config, dataset)
    assigned = partition.assign(dataset, config)
    spec = client_spec(config, dataset, assigned, alone=alone, train=objects.train)
    given = {name: getattr(objects, name) for name in ("model", "client", "loss")}
    given |= {name: with_owner(getattr(objects, name)) for name in ("train", "test")}
    spec = replace(spec, **{name: value for name, value in given.items() if value is not None})
    spec = replace(spec, facts_of_train=_facts_of("train", spec.train), facts_of_test=_facts_of("test", spec.test))
    spec = replace(spec, metrics=tuple(_of_script(name) for name in spec.metrics))
    compute_repeatably(config.torch_threads, spec.device, user_code=False)
    with _naming_built_in_data(config):
        net = build_net(spec, dataset)
        _check_measurements(config, spec, dataset, net)
        dry_run.check_fit_of(spec, dataset, net, config.dataset)
    initial_weights, layout = get_weights(net), WeightLayout.of(net)
    spec = replace(spec, algorithm=_algorithm(config, net))
    if spec.algorithm is not None:
        layout = layout.without(spec.algorithm.local_names)
    asked, vectorized_only = config.vectorized_clients, config.local_training == "vectorized"
    if alone:  # one client per process
        config = replace(config, local_training="sequential", vectorized_clients=None)
    else:
        config = with_local_training(config, spec, dataset, net, initial_weights)
    spec = replace(spec, vectorized_clients=config.vectorized_clients or 1, vectorized_only=vectorized_only)
    built = strategy.build(config, initial_weights, layout, _before_the_engine, objects.strategy)
    _check_weight(config, spec, built.strategy, alone=alone)
    settings = fit_settings(config, 1)
    if config.is_asynchronous:
        settings.update(rule_of(config).client_settings)
    with _naming_built_in_data(config):
        tried = dry_run.check_user_code(spec, initial_weights, settings, built.strategy, results_dir=config.results_dir)
    spec = replace(spec, batches_on_cpu=tried.batches_on_cpu)
    if not alone:
        spec = _with_own_folder(spec, tried, config.results_dir)
    found = [
        *tried.notes,
        *_algorithm_notes(config, spec, built, initial_weights),
        *_notes_without_effect(config, spec, dataset, asked),
        *_notes_on_measurements(config, tried.measured),
        *(notes_on_precision(config.precision, spec.device) if spec.train is None else ()),
        *unused,
    ]
    if config.dp and layout.has_running_statistics:
        raise ConfigError(
            f"--dp {config.dp}: {config.model} keeps running statistics of the clients' data, to which no noise is "
            "added; use a model with GroupNorm instead of BatchNorm"
        )
    prepared = Prepared(config, dataset, assigned, spec, initial_weights, layout, built, objects, notes=tuple(found))
    return with_devices(prepared)


def _with_own_folder(spec: ClientSpec, tried: dry_run.Tried, results_dir: str | Path) -> ClientSpec:
    """Let each client find the files of the current folder as they are there, and note which ones it writes."""
    if tried.files:
        tried.notes.append(
            f"train or test writes {some(tried.files)} into the current folder; each client and each test does so in a "
            "folder of its own, which is removed after it"
        )
    elif spec.client is not None or (spec.train is None and spec.test is None):
        return spec  # a client of the user's own may write files on purpose, for its next round
    return replace(spec, own_folder=OwnFolderSpec(Path(results_dir).absolute(), written=frozenset(tried.files)))


@contextmanager
def _naming_built_in_data(config: RunConfig) -> Iterator[None]:
    """Let the error of a user's function or model say on which built-in data it was tried, and the size of images."""
    try:
        yield
    except PluginError as error:
        if ":" in config.dataset:
            raise
        why = size = ""
        if config.program is not None and "dataset" not in program_parts(config.program, needs_model=False):
            why = f", because {config.program} has no load_data, trainloader or the like"
        if config.dataset not in WITHOUT_IMAGES and _SIZES.search(str(error)):
            pixels = f"{config.side}×{config.side} pixels"
            size = f"; images of {config.dataset} have {pixels}, --image-size changes that"
        if not (why or size):
            raise
        raise PluginError(f"{error} (with --dataset {config.dataset}{why}{size})") from error


def _facts_of(part: str, thing: Any) -> SourceFacts | None:
    """Return what the source of the user's function says; actors may not be able to read it."""
    if thing is None:
        return None
    owner, function = load_function(thing, f"--{part}")
    return source_facts(function, owner)


def _of_script(metric: str) -> Any:
    """Return a metric by its name, or the function where another process could not import it."""
    return user_code.load(metric, "--metric") if metric.startswith("__main__:") else metric


C = TypeVar("C", bound=TrainingConfig)


def resolved(config: C, dataset: Dataset, train: Any = None) -> C:
    """Return the config with the training settings that were left open: the program's own defaults come first.

    Args:
        train: the user's own function, if it was given from Python.

    Raises:
        PluginError: the user's ``train`` cannot be imported, or has a parameter that cannot be given.
    """
    own = _own_train(config, train)
    defaults: dict[str, Any] = {} if own is None else own.defaults()
    loader: LoaderSettings | None = getattr(dataset.train, "loader", None)
    makes_batches = own is not None and (own.binding.takes("dataset") or gets(own.binding, "inputs"))
    if makes_batches and "batch_size" in defaults:
        return config.resolved(defaults)
    if loader is not None and (loader.batch_size is not None or loader.batch_sampler is not None):
        defaults["batch_size"] = loader.batch_size
    return config.resolved(defaults)


def settings_without_effect(config: TrainingConfig, train: Any = None, test: Any = None) -> Iterator[str]:
    """Yield a note on each setting of the training that was given, but that the user's ``train`` does not get.

    Args:
        config: before it was resolved.
        train, test: the user's own functions, if they were given from Python.
    """
    own = _own_train(config, train)
    if own is None or own.binding.open_ended:
        return
    takes = own.binding.takes
    of_optimizer = own.gets_optimizer
    has_effect = {name: of_optimizer or takes(name) for name in ("lr", "momentum", "weight_decay")}
    has_effect["lr"] |= "lr" in own.defaults()
    has_effect |= dict.fromkeys(("lr_schedule", "lr_decay", "lr_warmup"), has_effect["lr"])
    makes_batches = takes("dataset") or gets(own.binding, "inputs")
    has_effect |= {
        "optimizer": of_optimizer,
        "precision": takes("precision"),
        "batch_size": takes("batch_size") or not makes_batches,
        "loss": takes("criterion") or not _measures_without_loss(config, test),
    }
    defaults = {**{field.name: field.default for field in fields(config)}, **config.BUILT_IN}
    for name, is_used in has_effect.items():
        value = getattr(config, name)
        if not is_used and value is not None and value != defaults[name]:
            functions = f"--train {config.train} has no" if name != "loss" else "neither --train nor --test has a"
            yield f"{given_as(name, value)} has no effect: {functions} parameter for it"


def _measures_without_loss(config: TrainingConfig, test: Any) -> bool:
    """Whether the user's ``test`` gets no loss and measures by itself: one that only prints is not listened to."""
    if config.test is None:
        return False
    owner, function = load_function(test or config.test, "--test")
    own = OwnTest(function, f"--test {config.test}", owner=owner)
    return bool(own.read_facts.returns) and not (own.binding.takes("criterion") or own.binding.open_ended)


def _own_train(config: TrainingConfig, train: Any) -> OwnTrain | None:
    """Return the user's own ``train``; None if there is none."""
    if config.train is None:
        return None
    owner, function = load_function(train or config.train, "--train")
    return OwnTrain(function, f"--train {config.train}", owner=owner)


def _notes_without_effect(
    config: RunConfig, spec: ClientSpec, dataset: Dataset, vectorized_clients: int | None
) -> Iterator[str]:
    """Yield what has no effect with these data and functions, one line each.

    Args:
        vectorized_clients: as it was given.
    """
    if vectorized_clients is not None and config.local_training == "sequential":
        yield f"--vectorized-clients {vectorized_clients} has no effect, because clients are trained one after another"
    if not dataset.num_test_examples and config.test_every != RunConfig.test_every:
        yield f"--test-every {config.test_every} has no effect, because there is no central test"
    if dataset.source.num_clients is not None:
        for name in ("partitioner", "partitioner_args", "alpha", "partition_by", "min_partition_size", "eval_share"):
            value, default = getattr(config, name), getattr(RunConfig, name, None)
            if value and value != default:
                yield f"{given_as(name, value)} has no effect, because the program makes the partition itself"
    elif config.eval_share != RunConfig.eval_share and not spec.eval_share:
        yield (
            f"--eval-share {config.eval_share:g} has no effect without --fraction-evaluate or --final-evaluate; each "
            "client trains on all its examples"
        )
    loader: LoaderSettings | None = getattr(dataset.train, "loader", None)
    sampler = None if loader is None or config.batch_size is not None else loader.batch_sampler
    if sampler is not None and config.num_clients > 1 and joins_batches(sampler):
        yield f"the batches of a client are joined from what it has of those of {type(sampler).__name__}"
    if config.augment != "none" and not isinstance(dataset.train, Examples):
        yield f"--augment {config.augment} has no effect, because the data are not kept as images with classes"


def _check_target(config: RunConfig, dataset: Dataset, strategy: Any) -> None:
    """Check that a target can be reached; a strategy of the user's may test on data of its own.

    Raises:
        ConfigError: there is no central test.
    """
    if dataset.num_test_examples or strategy is not None or ":" in config.strategy:
        return
    for name in ("target_accuracy", "target_metric"):
        value = getattr(config, name)
        if value is not None:
            raise ConfigError(
                f"{flag_of(name)} {value}: --dataset {config.dataset} gives the data of each client, so that there is "
                "no central test that could reach it"
            )


def _check_weight(config: RunConfig, spec: ClientSpec, used: Any, *, alone: bool) -> None:
    """Check that the built-in training measures what a strategy of Flower weights clients by.

    Args:
        alone: the clients are on other machines, which may have a program of their own.

    Raises:
        ConfigError: it does not.
    """
    name = getattr(used, "weighted_by_key", "num-examples")
    built_in = spec.train is None and spec.client is None and not alone
    if built_in and type(used).__module__.startswith("flwr.") and name not in ("num-examples", "loss"):
        raise ConfigError(
            f"--strategy {config.strategy}: weighted_by_key={one_line(str(name), 60)}: must be num-examples or loss, "
            "because the built-in training measures nothing else; a --train of your own may return more"
        )


def _notes_on_measurements(config: TrainingConfig, measured: Sequence[str]) -> Iterator[str]:
    """Yield what has no effect, because the user's ``test`` measures something else, one line each.

    Args:
        measured: what it returns; nothing without one.

    Raises:
        ConfigError: it does not measure the metric of the validation.
    """
    if not measured:
        return
    if isinstance(config, RunConfig):
        _check_validation_metric(config, measured)
    for name in configured(config.metric):
        if name not in measured:
            yield f"--metric {name} has no effect: --test {config.test} returns {some(measured, 9)}"
    if config.accuracy_in_percent and "accuracy" not in measured:
        yield f"--accuracy-in-percent has no effect on --test {config.test}, which returns {some(measured, 9)}"


def _check_validation_metric(config: RunConfig, measured: Sequence[str]) -> None:
    if config.validation_metric is not None:
        compared = metric_of_validation(vars(config), measured).name
        if compared not in measured:
            raise ConfigError(f"--validation-metric {one_line(compared, 60)}: must be one of {some(measured, 9)}")


@in_own_context
def _check_measurements(config: RunConfig, spec: ClientSpec, dataset: Dataset, net: nn.Module) -> None:
    """Check that the built-in test can compute the loss and the metrics that were asked for.

    Raises:
        ConfigError: it cannot.
        PluginError: the model does not take the data.
    """
    if spec.test is not None:
        return  # it measures what it likes, and is tried later
    metrics = metrics_of(spec, dataset)
    measured = ["loss", *(name if isinstance(name, str) else name[0] for name in metrics)]
    _check_validation_metric(config, measured)
    if not isinstance(dataset.train, Examples | Columns) or (config.loss, config.metric) == (None, None):
        return  # check_fit_of says what does not fit, or these are known to do so
    with seeded(0, Purpose.TEST) as stream, isolated(stream, log=False):
        try:
            inputs, named, target = inputs_and_target(example_batch(dataset.train, 2))
        except ValueError:
            return  # check_fit_of says that there is no target
        outputs = try_out(net, inputs, named, f"--model {user_code.shown_name(spec.model)}")
    if not isinstance(outputs, torch.Tensor):
        return
    shapes = f"outputs of {tuple(outputs.shape)} and targets of {tuple(getattr(target, 'shape', ()))}"
    if config.loss in LOSSES and not _fits(LOSSES[config.loss], outputs, target):
        fitting = ", ".join(name for name, loss in LOSSES.items() if _fits(loss, outputs, target))
        raise ConfigError(f"--loss {config.loss}: cannot be computed from {shapes}; one of {fitting} can")
    # Those that need all examples may raise on two, but r2 needs no more.
    computed = {name: metric.batch or (metric.whole if name == "r2" else None) for name, metric in METRICS.items()}
    for name in metrics:
        function = computed[name] if isinstance(name, str) else None
        if function is not None and not _fits(function, outputs, target):
            fitting = ", ".join(n for n, each in computed.items() if each is None or _fits(each, outputs, target))
            raise ConfigError(f"--metric {name}: cannot be computed from {shapes}; one of {fitting} can")


def _fits(function: Callable[..., Any], outputs: torch.Tensor, target: torch.Tensor) -> bool:
    try:
        function(outputs, target)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return False
    return True


def _kept_share(config: RunConfig, dataset: Dataset, train: Any) -> float:
    """Return the fraction of their examples that clients keep for their own evaluation.

    A program that partitions itself says which examples are for it.

    Raises:
        ConfigError: ``train`` needs such examples, and the user wants none.
    """
    own = _own_train(config, train)
    if own is None or own.validates is None or dataset.source.num_clients is not None:
        return config.kept_share
    if not config.eval_share:
        raise ConfigError(f"--eval-share 0: must be above 0, because {own.place} takes {own.validates}")
    return config.eval_share


def client_spec(
    config: RunConfig, dataset: Dataset, assigned: Partition, *, alone: bool, train: Any = None
) -> ClientSpec:
    """Return what a process needs to make any client of a run.

    Args:
        train: the user's own function, if it was given from Python.

    Raises:
        ConfigError: settings of the evaluation or of the noise do not fit the program.
    """
    parts = spec_parts(config, dataset)
    if config.device == "auto" and not config.num_gpus and not alone:
        parts["device"] = "cpu"  # in every engine: Ray shows no GPU to a client that has no share of one
    flipped = frozenset(attacks.attackers_of(config) if config.attack == "label-flip" else ())
    return ClientSpec(
        **parts,
        partition_folder=assigned.folder,
        client=config.client,
        eval_share=_kept_share(config, dataset, train),
        noise_step=_noise_step(config, dataset),
        flipped_clients=flipped,
        compression=Compression.of(config.compress),
    )


def _noise_step(config: RunConfig, dataset: Dataset) -> float:
    """Return the difference of ``--feature-noise`` between a client and the next.

    Raises:
        ConfigError: noise would be without effect.
    """
    noise = config.feature_noise
    if not noise:
        return 0.0
    if config.num_clients == 1:
        raise ConfigError(f"--feature-noise {noise:g}: needs at least 2 clients, because the first one adds no noise")
    if not takes_noise(example_batch(dataset.train, 1)):
        raise ConfigError(
            f"--feature-noise {noise:g}: noise is added to floating-point numbers, but the inputs of --dataset "
            f"{config.dataset} have none"
        )
    return noise / (config.num_clients - 1)


def _algorithm(config: RunConfig, net: nn.Module) -> AlgorithmSpec | None:
    """Return what clients do beside training; None for nothing.

    Raises:
        ConfigError: it does not fit the model or the program.
    """
    chosen = ALGORITHMS.get(config.strategy)
    if chosen is None and not config.local_parameters:
        return None
    if config.client is not None:
        what = f"--strategy {config.strategy}" if chosen else f"--local-parameters {config.local_parameters}"
        raise ConfigError(f"{what}: has its own client around train, so that --client {config.client} has no place")
    if chosen is not None and not chosen.USES_LOCAL_EPOCHS and config.stragglers and config.straggler_policy == "keep":
        raise ConfigError(
            f"--stragglers {config.stragglers:g}: gives slow clients fewer of --local-epochs, which --strategy-args of "
            f"{config.strategy} replaces; use --straggler-policy drop"
        )
    default = chosen.LOCAL if chosen else ""
    names = local_names(net, config.local_parameters, default, config.strategy)
    if chosen is not None and chosen.HAS_PERSONAL_MODEL and names:
        raise ConfigError(
            f"--local-parameters {config.local_parameters}: each client of {config.strategy} has a whole model of its "
            "own already; leave it out"
        )
    return AlgorithmSpec(config.strategy, config.strategy_args if chosen else {}, tuple(names))


def _algorithm_notes(
    config: RunConfig, spec: ClientSpec, built: strategy.BuiltStrategy, weights: NDArrays
) -> tuple[str, ...]:
    """Try the algorithm of a run; return what the user should know, one line each.

    Raises:
        PluginError: it does not work with the model or with ``train``.
    """
    if spec.algorithm is None:
        return ()
    algorithm = spec.algorithm.made()
    sent = [] if built.algorithm is None else built.algorithm.sent()
    tried = dry_run.check_algorithm(spec, [*weights, *sent], fit_settings(config, 1))
    notes = []
    name = f"--strategy {config.strategy}"
    others = sorted(tried.optimizers - {"Sgd", "SGD"})
    if others and algorithm.FOR_SGD:
        notes.append(f"{name}: is defined for SGD, but {', '.join(others)} takes the steps; {algorithm.FOR_SGD}")
    if tried.undoes_steps and algorithm.DIVIDES_BY_STEPS:
        notes.append(
            f"{name}: divides by all steps of a client, but train writes to the weights after its last one; if these "
            "are weights of an earlier step, such as those of its best epoch, it divides by steps that are not in them"
        )
    note = algorithm.note(config.lr, config.local_epochs)
    if note is not None:
        notes.append(f"{name}: {note}")
    if spec.algorithm.local_names:
        names = list(spec.algorithm.local_names)
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        warm = min(getattr(algorithm, "warm_start_rounds", 0), config.num_rounds)
        if warm:
            first = "all rounds" if warm == config.num_rounds else "round 1" if warm == 1 else f"rounds 1 to {warm}"
            then = "" if warm == config.num_rounds else "; later central tests use these averages"
            notes.append(f"{shown} are averaged in {first}{then}")
        else:
            notes.append(f"{shown} are not averaged; the central test uses their initial values")
    return tuple(notes)


def spec_parts(config: TrainingConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the parts of a ``ClientSpec`` that federated and centralised training share.

    Raises:
        ConfigError: there is no such metric.
    """
    metrics = tuple(m for m in configured(config.metric) if config.test is None or m in METRICS or ":" in m)
    for name in metrics:
        if name not in METRICS and not (IMPORT_PATH.fullmatch(name) or name.startswith("__main__:")):
            raise ConfigError(f"--metric {name}: must be one of {', '.join(METRICS)}, package.module:function")
    return {
        "data": dataset.source,
        "model": config.model,
        "train": config.train,
        "test": config.test,
        "device": config.device,
        "torch_threads": config.torch_threads,
        "import_folder": Path.cwd(),
        "batch_size": config.batch_size,
        "augment": config.augment,
        "seed": config.seed,
        "model_args": config.model_args,
        "args": config.args,
        "loss": config.loss,
        "loss_of_batches": None if config.loss else _loss_of_batches(dataset),
        "metrics": metrics,
        "accuracy_in_percent": config.accuracy_in_percent,
    }


def _loss_of_batches(dataset: Dataset) -> str | None:
    """Return bce where the user's own ``collate_fn`` makes floats of targets that are 0 and 1; else None."""
    target = dataset.target
    if isinstance(dataset.train, Examples) or target is None or target.ndim != 1 or target.dtype.kind not in "biu":
        return None
    if not set(np.unique(target).tolist()) <= {0, 1}:
        return None
    try:
        _, _, joined = inputs_and_target(example_batch(dataset.train, 2))
    except Exception:  # noqa: BLE001 - what its code raises is reported where it is used
        return None
    return "bce" if isinstance(joined, torch.Tensor) and joined.is_floating_point() else None


def check_device(config: TrainingConfig) -> None:
    """Check that the requested device is there.

    Raises:
        ConfigError: it is not.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU; choose auto or cpu")


def _before_the_engine(
    server_round: int, weights: NDArrays, config: dict[str, Scalar]
) -> tuple[float, dict[str, Scalar]]:
    """The ``evaluate_fn`` of a strategy that is only built to see that it can be."""
    raise RunError("the central test was called before the engine was open")
