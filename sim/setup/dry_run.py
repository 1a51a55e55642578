"""Tries the user's own functions on two examples, so that what cannot work ends before anything is written.

A function that raises is tried on a whole batch as well, because there are programs that need one.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.client import Client
from flwr.common import Context, NDArrays, RecordDict, Scalar
from numpy.typing import NDArray
from torch import nn

from sim import user_code
from sim.client.algorithm_client import AlgorithmClient
from sim.client.built_in_functions import BuiltInTest
from sim.client.own_evaluation import OwnTest
from sim.client.own_files import trial_folder
from sim.client.own_function import EXAMPLES
from sim.client.own_returns import OwnReturnError
from sim.client.own_training import OwnTrain
from sim.client.runtime import ClientRuntime, ClientSpec, loss_of, metrics_of
from sim.client.torch_client import TRAIN_SETTINGS, most_batches
from sim.data.columns import Columns, leaves, target_of
from sim.data.items import Items
from sim.data.load_dataset import Dataset, Examples
from sim.data.loaders import ExampleLoader, LimitedLoader, ResidentColumns, example_batch, resident
from sim.engine.client_calls import WrongReturnError
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import DataError, PluginError, described, one_line, some
from sim.process_settings import in_own_context, restored_settings
from sim.seeds import Purpose, seeded
from sim.training.device import varying_operations
from sim.training.local import evaluating
from sim.training.losses import IGNORED_LABEL, LOSSES, METRICS, ignores, inputs_and_target, is_labelled
from sim.training.models import check_logits, try_out
from sim.training.proximal_term import UnseenStepsError, proximal_term
from sim.training.weights import set_weights
from sim.used_variables import set_by_a_script
from sim.user_objects import own_modules
from sim.user_variables import OF_THIS_PROCESS, isolated

_EXAMPLES_FOR_METRICS = 64
_FROM_A_GPU = "device type tensor to numpy"  # what PyTorch says where an array is made of a tensor on a GPU


class _RaisedError(PluginError):
    """A function of the user's raised an exception, perhaps because two examples are too few for it."""


class Tried(NamedTuple):
    """What the dry run has shown.

    Attributes:
        notes: what the user should know, one line each.
        files: what ``train`` and ``test`` have written into the current folder, relative to it.
        measured: what the user's ``test`` returns, with the loss; nothing without one.
        batches_on_cpu: the user's code takes its batches from the memory of the CPU only, although it uses a GPU.
    """

    notes: list[str]
    files: tuple[str, ...] = ()
    batches_on_cpu: bool = False
    measured: tuple[str, ...] = ()


def check_user_code(
    spec: ClientSpec,
    weights: NDArrays,
    fit_settings: dict[str, Scalar],
    strategy: Any = None,
    *,
    results_dir: str | Path = "results",
) -> Tried:
    """Call the user's ``train``, ``test`` and client once; the built-in ones are known to work.

    Args:
        fit_settings: what ``FitIns.config`` will carry.
        strategy: may send a ``proximal_mu``.
        results_dir: in which other runs may write meanwhile.

    Raises:
        PluginError: one of them raises or returns the wrong thing.
    """
    if spec.train is None and spec.test is None and spec.client is None:
        return Tried([*_notes_of_arguments(spec)])
    OF_THIS_PROCESS.forget_changes()  # those of an earlier run in this process
    try:
        return _tried(spec, weights, fit_settings, strategy, results_dir)
    except PluginError as error:
        if spec.batches_on_cpu or _FROM_A_GPU not in str(error):
            raise
    # Batches on the GPU spare a copy. But a program may make arrays of labels as they come from its own loader.
    return _tried(replace(spec, batches_on_cpu=True), weights, fit_settings, strategy, results_dir)


def _tried(
    spec: ClientSpec, weights: NDArrays, fit_settings: dict[str, Scalar], strategy: Any, results_dir: str | Path
) -> Tried:
    made: list[Any] = []
    measured: tuple[str, ...] = ()
    notes = [*_notes_of_arguments(spec)]

    def client_fn(context: Context) -> Client:
        loader = some_examples(runtime)
        try:
            made.append(runtime.client_over(loader, loader, context))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"--client {user_code.shown_name(spec.client)}: cannot be made: {described(error)}"
            ) from error
        return made[0]  # type: ignore[no-any-return]

    worker = Worker(spec, 1, 0, client_fn=client_fn)
    runtime = worker.torch_runtime  # what a module sets when it is imported is part of the program, and stays
    proximal_mu: Any = getattr(strategy, "proximal_mu", fit_settings.get("proximal_mu", 0.0))
    with seeded(0, Purpose.TEST) as stream, isolated(stream, log=False), varying_operations() as varying:
        is_copied = spec.train is not None or spec.test is not None
        nothing: tuple[list[str], list[str]] = ([], [])
        trial = trial_folder(Path(results_dir).absolute()) if is_copied else nullcontext(nothing)
        with trial as (files, shared):
            if spec.train is not None:
                with restored_settings():
                    notes += _try_train(runtime, weights, fit_settings, proximal_mu)
                runtime.renew_net()
                set_weights(runtime.net, weights)
            if spec.test is not None:
                about, measured = _try_test(runtime, weights)
                notes += about
        if spec.client is not None:
            name = user_code.shown_name(spec.client)
            task = Task(0, {**fit_settings, "server_round": 0, "local_epochs": 1})
            with trial_folder(Path(results_dir).absolute()) as (of_clients, _):
                (result,) = worker.run(Chunk("fit", 0, [task], weights, summed=False)).results
            _check_client(name, made, result)
            if of_clients:  # perhaps on purpose, for its next round
                notes.append(
                    f"--client {name} writes {some(of_clients)} into the current folder, which all clients share; "
                    "context.state keeps what belongs to one client"
                )
    if varying:
        notes.append(
            f"on this GPU PyTorch has no kernel for {some(sorted(varying))} that gives the same bits each time, so the "
            "last digits may change from run to run"
        )
    shared = [name for name in shared if name not in files]
    if shared:
        notes.append(
            f"{some(shared)} changed in the current folder during the dry run; what train or test writes there by an "
            "absolute path is shared by all clients, and with a relative path each client has its own"
        )
    return Tried([*notes, *OF_THIS_PROCESS.notes], tuple(files), spec.batches_on_cpu, measured)


def _try_train(
    runtime: ClientRuntime, weights: NDArrays, fit_settings: dict[str, Scalar], proximal_mu: float
) -> list[str]:
    """Return notes on ``train``."""
    try:
        return _check_train(runtime, some_examples(runtime), fit_settings, proximal_mu)
    except _RaisedError as error:
        with _trying_again(error, runtime, weights):
            batch = _training_batch(runtime, fit_settings)
            return [*_check_train(runtime, batch, fit_settings, proximal_mu), _works_on_a_batch(error, batch)]


def _try_test(runtime: ClientRuntime, weights: NDArrays) -> tuple[list[str], tuple[str, ...]]:
    """Return notes on ``test``, and the names of what it returns."""
    found, difference = _try_test_on_few(runtime, weights), _difference(runtime.dataset)
    if difference:
        try:
            _check_test(runtime, _test_batch(runtime), is_predicted=False)
        except _RaisedError as error:
            raise PluginError(f"{error} on the test examples; {difference}") from error.__cause__
    return found


def _try_test_on_few(runtime: ClientRuntime, weights: NDArrays) -> tuple[list[str], tuple[str, ...]]:
    predicted = _as_predicted(runtime)
    few = some_examples(runtime) if predicted is None else predicted
    try:
        return _check_test(runtime, few, is_predicted=predicted is not None)
    except _RaisedError as error:
        with _trying_again(error, runtime, weights):
            batch = _training_batch(runtime, {}) if runtime.dataset.test is None else _test_batch(runtime)
            notes, measured = _check_test(runtime, batch, is_predicted=False)
            return [*notes, _works_on_a_batch(error, batch)], measured


@contextmanager
def _trying_again(error: _RaisedError, runtime: ClientRuntime, weights: NDArrays) -> Iterator[None]:
    """Try a function that has raised ``error`` on two examples once more, from the weights of the beginning.

    Raises:
        PluginError: ``error`` if it raises in this block, too; or what it returns is wrong.
    """
    runtime.renew_net()
    set_weights(runtime.net, weights)
    try:
        yield
    except _RaisedError:
        raise error from error.__cause__


def _works_on_a_batch(error: _RaisedError, batch: Any) -> str:
    return f"{error} on two examples, and works on a batch of {batch.num_examples}; a client with fewer may fail"


def _notes_of_arguments(spec: ClientSpec) -> Iterator[str]:
    """Yield a note on each of the program's arguments that has no effect, or not everywhere."""
    program = spec.data.program
    if not spec.args:
        return
    # A folder without __init__.py is a module without a file; so is what a notebook defines, but it is no package.
    modules = [module for module in own_modules() if module.__dict__.get("__file__") or not hasattr(module, "__path__")]
    names = {user_code.name_in_folder(module.__name__) for module in modules}
    of_data, is_own, _ = ("" if program is None else user_code.shown_name(program.function)).partition(":")
    files = [Path(module.__dict__.get("__file__") or "") for module in modules]
    if not all(file.is_file() for file in files) or (is_own and of_data not in names):
        return  # not all can be read; or the data come from the cache, and what loads them was not needed
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    parsed = [
        (module, own)
        for module, file in zip(modules, files, strict=True)
        if file.is_relative_to(Path.cwd())
        for own in vars(module).values()
        if type(own) is argparse.Namespace
    ]
    takes_any = re.search(rf"\b({user_code.ARGUMENTS.replace(' ', '|')})\b", text) is not None
    for name, value in spec.args.items():
        argument = f"--args {name}={one_line(str(value), 100)}"
        if re.search(rf"\b{re.escape(name.replace('-', '_')).replace('_', '[-_]')}\b", text) is None:
            yield f"{argument}: no file of your program has the name {name}"
        elif not takes_any:
            yield f"{argument} has no effect: nothing in your program takes it, as a parameter args would"
        for module, own in parsed:
            now = getattr(own, name.replace("-", "_"), value)
            if now != value:
                yield (
                    f"{argument}: {user_code.name_in_folder(module.__name__)} parses its options when it is imported, "
                    f"and where it uses them itself {name} stays {one_line(str(now), 100)}"
                )


@in_own_context
def check_algorithm(spec: ClientSpec, received: NDArrays, fit_settings: dict[str, Scalar]) -> AlgorithmClient:
    """Execute the client part of the run's algorithm once, on two examples, or else on a batch.

    Args:
        received: what the server sends: the weights of the model, and what the algorithm adds.

    Returns:
        The client, which knows which optimizers took steps.

    Raises:
        PluginError: it does not work with the model or with ``train``.
    """
    assert spec.algorithm is not None
    worker = Worker(spec, 1, 0)
    runtime = worker.torch_runtime
    name = spec.algorithm.name
    context = Context(0, 0, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
    settings = {**fit_settings, "local_epochs": 1}
    raised: list[BaseException] = []
    with seeded(0, Purpose.TEST) as stream, isolated(stream, log=False):
        for loader in (some_examples(runtime), _training_batch(runtime, fit_settings)):
            client: Any = runtime.client_over(loader, loader, context)
            try:
                local: AlgorithmClient = runtime.algorithm_client(client.numpy_client, received, settings, 1, {})
                local.fit()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - perhaps two examples are too few
                raised.append(error)
            else:
                return local
    reason = str(raised[0]) if isinstance(raised[0], ValueError) else described(raised[0])
    raise PluginError(f"--strategy {name}: {one_line(reason)}") from raised[0]


@in_own_context
def check_fit_of(spec: ClientSpec, dataset: Dataset, net: nn.Module, name_of_data: str) -> None:
    """Check that the model takes the data, and that the loss and the metrics of the built-in test take what it returns.

    Args:
        name_of_data: ``--dataset``, for messages.

    Raises:
        PluginError: the model does not fit the data, or the user's own loss or metric does not work.
        DataError: labels lie outside of the model's classes.
    """
    built_in = spec.train is None or spec.test is None
    name = user_code.shown_name(spec.model)
    if spec.train is None and spec.client is None and not any(p.requires_grad for p in net.parameters()):
        raise PluginError(f"--model {name}: has no parameter that the built-in training could change")
    if isinstance(dataset.train, Examples):
        assert dataset.image_shape is not None
        if built_in and spec.loss in (None, "cross_entropy"):
            check_logits(name, net, dataset.image_shape, len(dataset.classes))
        if spec.loss in (None, *LOSSES) and set(spec.metrics) <= METRICS.keys():
            return  # of which is known what they take
    if not built_in or (spec.client is not None and spec.test is not None):
        return
    with seeded(0, Purpose.TEST) as stream, isolated(stream, log=False):
        batch = example_batch(dataset.train, 2)
        try:
            inputs, named, target = inputs_and_target(batch)
        except ValueError as error:
            raise DataError(f"--dataset {name_of_data}: {error}") from None
        outputs = _tried_out(spec, net, inputs, named)
        loss = loss_of(spec, dataset)
        if loss in ("cross_entropy", "nll") and isinstance(outputs, torch.Tensor):
            _check_labels(spec, dataset, outputs, name_of_data)
        metrics = metrics_of(spec, dataset)
        own_metrics = [metric for metric in metrics if not isinstance(metric, str)]
        if isinstance(outputs, torch.Tensor):
            if not isinstance(loss, str):
                _check_loss(loss, outputs, target)
            _check_metrics(own_metrics, net, dataset)
            metrics = [metric for metric in metrics if isinstance(metric, str)]
        try:
            value = BuiltInTest(loss, metrics).sums(net, [batch], torch.device("cpu"))
            function = LOSSES[loss] if isinstance(loss, str) else loss
            mean = function(outputs, target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            shown = f"outputs {tuple(outputs.shape)}" if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise PluginError(
                f"--model {name}: its {shown} do not fit the loss {user_code.shown_name(loss)} or the metrics on "
                f"targets of {tuple(getattr(target, 'shape', ()))}: {described(error)}"
            ) from error
        has_label = not ignores(function, target) or bool(is_labelled(target).any())
        if not (isinstance(mean, torch.Tensor) and mean.ndim == 0) or (has_label and math.isnan(value.loss)):
            raise PluginError(f"--loss {user_code.shown_name(loss)}: gives {mean!r}; one number is expected")
        _check_test_examples(spec, dataset, net, BuiltInTest(loss, metrics), name_of_data)


def _check_test_examples(
    spec: ClientSpec, dataset: Dataset, net: nn.Module, test: BuiltInTest, name_of_data: str
) -> None:
    """Check that the built-in test takes test examples that have another form than those for training."""
    difference = _difference(dataset)
    if spec.test is not None or not difference:
        return
    try:
        test.sums(net, [example_batch(dataset.test, 1)], torch.device("cpu"))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = f"--dataset {name_of_data}: {difference}"
        raise DataError(f"{place}, which the model or the loss does not take: {described(error)}") from error


def _difference(dataset: Dataset) -> str:
    """Return in words how an example of the test differs from one for training; empty if it has the same form."""
    if dataset.test is None or isinstance(dataset.train, Examples):
        return ""
    try:
        train, test = (
            ", ".join(
                f"{str(getattr(leaf, 'dtype', type(leaf).__name__)).removeprefix('torch.')} "
                f"{list(getattr(leaf, 'shape', ())[1:])}"
                for leaf in leaves(example_batch(split, 1))
            )
            for split in (dataset.train, dataset.test)
        )
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a collate_fn of the user's may need more than one
        return ""
    return "" if train == test else f"a test example is {test}, and one for training {train}"


def _tried_out(spec: ClientSpec, net: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    try:
        return try_out(net, inputs, named, f"--model {user_code.shown_name(spec.model)}")
    except PluginError as error:
        if spec.train is None:
            raise
        raise PluginError(f"{error}; your program has no test, and the built-in one calls the model so") from error


def _check_labels(spec: ClientSpec, dataset: Dataset, outputs: torch.Tensor, name_of_data: str) -> None:
    """Check that each class of the examples has an output."""
    for name, split in (("", dataset.train), ("test ", dataset.test)):
        labels = target_of(split.batch) if isinstance(split, Columns) else getattr(split, "labels", None)
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or outputs.ndim != 2:
            continue
        labels = labels[labels != IGNORED_LABEL]
        if len(labels) and (labels.min() < 0 or labels.max() >= outputs.shape[1]):
            raise DataError(
                f"--dataset {name_of_data}: {name}labels are {labels.min()} … {labels.max()}, but --model "
                f"{user_code.shown_name(spec.model)} has {outputs.shape[1]} outputs, for 0 … {outputs.shape[1] - 1}"
            )


def _check_loss(loss: Callable[..., Any], outputs: torch.Tensor, target: Any) -> None:
    """Check that the user's own loss gives a number with a gradient."""
    place = f"--loss {user_code.shown_name(loss)}"
    with torch.enable_grad():
        given = outputs.detach().requires_grad_(outputs.is_floating_point())
        try:
            mean = loss(given, target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(f"{place}: raised {described(error)}; {_shapes_of(outputs, target)}") from error
    if not (isinstance(mean, torch.Tensor) and mean.ndim == 0):
        raise PluginError(f"{place}: gives {one_line(repr(mean), 200)}; a tensor of one number is expected")
    if not mean.requires_grad:
        raise PluginError(f"{place}: its result has no gradient, so that nothing would be learnt")


def _check_metrics(metrics: Sequence[tuple[str, Callable[..., Any]]], net: nn.Module, dataset: Dataset) -> None:
    """Check that each metric of the user's own gives a number, on more than two examples: it may need all classes."""
    if not metrics:
        return
    inputs, named, target = inputs_and_target(example_batch(dataset.train, _EXAMPLES_FOR_METRICS, spread=True))
    outputs = try_out(net, inputs, named, "--model")
    for name, metric in metrics:
        place = f"--metric {user_code.shown_name(metric)}"
        try:
            value = metric(outputs.float(), target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(f"{place}: raised {described(error)}; {_shapes_of(outputs, target)}") from error
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError):
            shown = one_line(repr(value), 200)
            raise PluginError(f"{place}: gives {shown}; one number is expected for {name}") from None


def _shapes_of(outputs: torch.Tensor, target: Any) -> str:
    return f"it got outputs of {tuple(outputs.shape)} and targets of {tuple(getattr(target, 'shape', ()))}"


def some_examples(runtime: ClientRuntime) -> Any:
    """Return a loader of two examples, which have the largest label where there are labels."""
    train = runtime.dataset.train
    positions = np.arange(min(2, len(train)))
    if isinstance(train, Examples):
        return runtime.batches(Examples(train.images[:2], train.labels[:2]), positions, 2, shuffle=False)
    if isinstance(train, Columns) and train.labels is not None:
        positions = np.unique([0, int(train.labels.argmax())])
        positions = positions if len(positions) == 2 or len(train) == 1 else np.arange(2)
    split, device = resident(train, runtime.batch_device), runtime.batch_device
    assert isinstance(split, ResidentColumns | Items)
    return ExampleLoader(split, positions, 2, training=False, in_process=True, device=device)


def _training_batch(runtime: ClientRuntime, fit_settings: dict[str, Scalar]) -> Any:
    """Return a loader of one batch for training, from all over the examples: of their first ones, all may be alike."""
    given = fit_settings.get("batch_size")
    if given is None and isinstance(runtime.dataset.train, Examples):
        given = _EXAMPLES_FOR_METRICS
    size = None if given is None else int(given)
    of_loader = runtime.training_batches(np.arange(1), size).batch_size or _EXAMPLES_FOR_METRICS
    return runtime.training_batches(_spread(of_loader, len(runtime.dataset.train)), size)


def _test_batch(runtime: ClientRuntime) -> Any:
    """Return a loader of the first batch of the central test, with examples from all over the test split."""
    size = runtime.test_batches(np.arange(1)).batch_size
    return runtime.test_batches(_spread(size or _EXAMPLES_FOR_METRICS, runtime.dataset.num_test_examples))


def _spread(count: int, num_examples: int) -> NDArray[np.int64]:
    return np.linspace(0, num_examples - 1, min(count, num_examples)).astype(np.int64)


@torch.no_grad()
def _as_predicted(runtime: ClientRuntime) -> Any:
    """Return two examples labelled as the net predicts: its accuracy on them is 1, or 100 where percent are meant.

    None where labels are no classes, or outputs are not one number per class.
    """
    train = runtime.dataset.train
    is_list = isinstance(train, Columns) and isinstance(train.batch, list) and len(train.batch) == 2
    if not (isinstance(train, Examples) or (is_list and train.labels is not None)):
        return None
    try:
        inputs, target = next(iter(some_examples(runtime)))
        with evaluating(runtime.net):
            labels = runtime.net(inputs.to(runtime.device)).argmax(1).cpu().numpy()
    except Exception:  # noqa: BLE001 - its outputs are the program's own affair
        return None
    if isinstance(train, Examples):
        return runtime.batches(Examples(train.images[:2], labels), None, 2, shuffle=False)
    if target.dtype.is_floating_point or labels.shape != tuple(target.shape):
        return None
    columns = Columns([inputs.cpu().numpy(), labels.astype(target.cpu().numpy().dtype)])
    return ExampleLoader(ResidentColumns(columns, runtime.batch_device), None, 2, training=False)


@in_own_context
def _check_train(runtime: ClientRuntime, loader: Any, fit_settings: dict[str, Scalar], proximal_mu: float) -> list[str]:
    train: OwnTrain = runtime.train
    name = user_code.shown_name(runtime.spec.train)
    binding = train.binding
    adds_term = bool(proximal_mu) and not train.takes_proximal_mu
    train.check_effect(noise_step=runtime.spec.noise_step, augment=runtime.spec.augment)
    offered = {**fit_settings, "proximal_mu": proximal_mu}
    settings: dict[str, Any] = {key: offered[key] for key in TRAIN_SETTINGS if key in offered}
    try:
        with proximal_term(runtime.net, proximal_mu) if adds_term else nullcontext():
            limited = LimitedLoader(loader, most) if (most := most_batches(train, offered)) else loader
            calls = train.calls(runtime.net, limited, 1, runtime.device, validation_loader=loader, **settings)
    except (OwnReturnError, UnseenStepsError) as error:
        raise PluginError(f"--train {name}: {str(error).removeprefix('train ')}") from error
    except PluginError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{described(error)}{set_by_a_script(train.function) if isinstance(error, NameError) else ''}"
        raise _RaisedError(f"--train {name}: raised {reason}") from error
    notes = [*train.notes(runtime.net, settings), *calls[0].notes]
    if adds_term:
        notes.append("has no parameter proximal_mu, so the proximal term is added to its gradients before each step")
    code = getattr(inspect.unwrap(train.function), "__code__", None)
    if not loader.was_read and not binding.takes("dataset") and code is not None and "dataset" not in code.co_names:
        name_of_loader = next((name for name, role in binding.roles.items() if role in EXAMPLES), "loader")
        notes.append(
            f"it does not iterate over its parameter {name_of_loader}, which has the examples of the client; a "
            "variable of the module has the same ones for all clients"
        )
    if train.validates is not None and runtime.spec.eval_share:
        share = f"--eval-share {runtime.spec.eval_share:g}"
        notes.append(f"its parameter {train.validates} gets the examples that each client keeps ({share})")
    return [f"--train {name}: {note}" for note in notes]


@in_own_context
def _check_test(runtime: ClientRuntime, loader: Any, *, is_predicted: bool) -> tuple[list[str], tuple[str, ...]]:
    """Return notes, and the names of what the test returns."""
    test: OwnTest = runtime.test
    name = user_code.shown_name(runtime.spec.test)
    try:
        returned = test.call_once(runtime.net, loader, runtime.device)
    except OwnReturnError as error:
        raise PluginError(f"--test {name}: {str(error).removeprefix('test ')}") from error
    except PluginError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{described(error)}{set_by_a_script(test.function) if isinstance(error, NameError) else ''}"
        raise _RaisedError(f"--test {name}: raised {reason}") from error
    notes = list(returned.notes)
    accuracy = returned.metrics.get("accuracy", 1.0)
    if is_predicted and not math.isclose(accuracy, 1.0):
        notes.append(
            f"its accuracy is {accuracy:g} for two examples of the classes that the model predicts, where it should be "
            '1; a loss is returned as {"loss": …}, and beside an accuracy as (loss, accuracy)'
        )
    measured = *returned.metrics, *(() if returned.loss is None else ("loss",))
    return [f"--test {name}: {note}" for note in notes], measured


def _check_client(name: str, made: list[Any], result: ClientResult) -> None:
    if isinstance(result.cause, PluginError):
        raise result.cause
    if not isinstance(made[0], Client):
        raise PluginError(f"--client {name}: made {type(made[0]).__name__}, not a flwr NumPyClient or Client")
    # What it raises on two examples may be due to them; what it returns is not.
    if isinstance(result.cause, WrongReturnError):
        raise PluginError(f"--client {name}: {result.cause}")
