"""A trained model → a file of another tool's, and the lines of Python that use it."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sim.config.choices import MODELS
from sim.data.columns import mapped
from sim.data.load_dataset import Examples
from sim.errors import ConfigError, PluginError, one_line
from sim.setup.trained import TrainedModel
from sim.training.models import TORCHVISION
from sim.training.weights import state_of

_FOR_ONNX = ("onnx", "onnxscript")
_CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}


def check_format(name: str) -> None:
    """Check that the libraries that a format needs are installed.

    Raises:
        ConfigError: they are not.
    """
    missing = [each for each in _FOR_ONNX if find_spec(each) is None] if name == "onnx" else []
    if missing:
        raise ConfigError(f"--format onnx: needs {' and '.join(missing)}; pip install {' '.join(missing)}")


def content_of(trained: TrainedModel, name: str) -> bytes:
    """Return the content of the file for a model: ``torch``, ``onnx`` or ``safetensors``.

    Raises:
        UsageError: this model has no such form.
    """
    return _MADE[name](trained)


def _state(trained: TrainedModel) -> dict[str, Tensor]:
    """Return the ``state_dict``, each tensor with memory of its own and, where the net is known, with its dtype."""
    state = {name: torch.tensor(array) for name, array in trained.weights.items()}
    like = {} if trained.net is None else state_of(trained.net)
    return {name: tensor.to(like[name].dtype) if name in like else tensor for name, tensor in state.items()}


def _torch(trained: TrainedModel) -> bytes:
    file = io.BytesIO()
    torch.save(_state(trained), file)
    return file.getvalue()


def _safetensors(trained: TrainedModel) -> bytes:
    from safetensors.torch import save

    content: bytes = save(_state(trained), metadata={"format": "pt"})
    return content


def _onnx(trained: TrainedModel) -> bytes:
    if trained.net is None or trained.dataset is None:
        raise ConfigError(f"--format onnx: {trained.notes[-1]}; torch and safetensors have its arrays")
    inputs, named = trained.inputs
    shapes: Any = mapped(inputs, _shape_of_batches), mapped(named, _shape_of_batches)
    by_position = dict(zip(inspect.signature(trained.net.forward).parameters, shapes[0], strict=False))
    shapes = {**by_position, **shapes[1]} if named else tuple(shapes[0])
    shown = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    try:
        # The exporter writes about its own progress and deprecations.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                trained.net,
                inputs,
                kwargs=named or None,
                input_names=[name for name, _ in _tensors(_by_name(inputs, named))],
                output_names=_outputs(trained),
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
            content: bytes = program.model_proto.SerializeToString()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # The exporter writes a page of advice, in colours, around what is wrong.
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("## Exception summary")
        reason = one_line((plain[2] or plain[0]).partition("The error above")[0], 300)
        about = f"torch.onnx cannot export the model {trained.config.model}: {reason}"
        raise PluginError(f"--format onnx: {about}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(shown)
    return content


def _outputs(trained: TrainedModel) -> list[str]:
    """Return a name for each tensor that the model gives, such as ``outputs`` or ``outputs_loss``."""
    assert trained.net is not None
    inputs, named = trained.inputs
    with torch.no_grad():
        return [name for name, _ in _tensors(trained.net(*inputs, **named), "outputs")]


def _axis(tensor: Tensor) -> int:
    """Return the axis of the examples, of which there are two; recurrent models often have time before it."""
    return next((axis for axis, size in enumerate(tensor.shape) if size == 2), 0)


def _shape_of_batches(value: Any) -> dict[int, str] | None:
    return {_axis(value): "batch"} if isinstance(value, Tensor) and value.dim() else None


def _by_name(inputs: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model is called with, by the names that it is given in the printed lines."""
    return {**{f"inputs_{number}" if number else "inputs": each for number, each in enumerate(inputs)}, **named}


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of containers with the names of their places."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, f"{name}_{key}".lstrip("_"))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _tensors(each, f"{name}_{number}")


_MADE: dict[str, Callable[[TrainedModel], bytes]] = {"torch": _torch, "onnx": _onnx, "safetensors": _safetensors}


def snippet(trained: TrainedModel, name: str, path: str) -> list[str]:
    """Return lines of Python that load the file of a model and call it; those about images take any ``images``."""
    if name == "onnx":
        inputs, call = _inputs(trained, onnx=True)
        outputs = _outputs(trained)
        names = ", ".join(outputs) if len(outputs) > 1 else f"({outputs[0]},)"
        first = ["import onnxruntime", "", f"session = onnxruntime.InferenceSession({path!r})"]
        return [*first, *inputs, f"{names} = session.run(None, {call})", *_classes(trained)]
    if name == "torch":
        first, load = ["import torch"], f"torch.load({path!r}, weights_only=True)"
    else:
        first, load = ["from safetensors.torch import load_file"], f"load_file({path!r})"
    if trained.net is None:
        return [*first, "", f"state = {load}", "# net: the model of your program", *_load_into_net(trained.weights)]
    imported, made = _made(trained)
    strict = set(trained.net.state_dict()) == set(trained.weights)
    loaded = load if strict else f"{load}, strict=False"  # state that is no tensor stays with the model
    inputs, call = _inputs(trained)
    lines = [*first, *imported, "", f"net = {made}", f"net.load_state_dict({loaded})", "net.eval()"]
    return [*lines, *inputs, f"outputs = net({call})", *_classes(trained)]


def _load_into_net(names: Collection[str]) -> list[str]:
    """Return the lines that load a state of these names into a net; numbers are positions in its ``state_dict``."""
    prefix = next(iter(names), "").rstrip("0123456789")
    if list(names) != [f"{prefix}{number}" for number in range(len(names))]:
        return ["net.load_state_dict(state)"]
    ordered = f'arrays = [state[f"{prefix}{{number}}"] for number in range({len(names)})]'
    return [ordered, "net.load_state_dict(dict(zip(net.state_dict(), arrays, strict=True)))"]


def _made(trained: TrainedModel) -> tuple[list[str], str]:
    """Return the imports and the expression that make the model of a run."""
    model, maker = trained.config.model, trained.maker
    assert isinstance(maker, partial)
    arguments = [repr(value) for value in maker.args]
    arguments += [f"{name}={_expression(value)}" for name, value in maker.keywords.items()]
    kinds = [Namespace if isinstance(value, Namespace) else type(value) for value in maker.keywords.values()]
    imports = [
        f"from {kind.__module__} import {kind.__qualname__.partition('.')[0]}"
        for kind in dict.fromkeys(kinds)
        if kind.__module__ != "builtins"
    ]
    if model.startswith(TORCHVISION):
        name = model.removeprefix(TORCHVISION)
        call = ", ".join([repr(name), "weights=None", *arguments])
        return ["from torchvision.models import get_model"], f"get_model({call})"
    module, _, name = model.partition(":")
    if model in MODELS:
        module, name = maker.func.__module__, maker.func.__qualname__
    imports.append(f"from {module} import {name.partition('.')[0]}")
    return imports, name if trained.is_made_already else f"{name}({', '.join(arguments)})"


def _expression(value: Any) -> str:
    """Return Python that makes an argument of a model; its own kind of namespace becomes that of argparse."""
    if not isinstance(value, Namespace):
        return repr(value)
    return f"Namespace({', '.join(f'{name}={inside!r}' for name, inside in vars(value).items())})"


def _inputs(trained: TrainedModel, *, onnx: bool = False) -> tuple[list[str], str]:
    """Return the lines that make the inputs of a model, and what it is called with."""
    dataset = trained.dataset
    assert dataset is not None
    if isinstance(dataset.train, Examples):
        assert dataset.image_shape is not None
        channels, height, width = dataset.image_shape
        kind = _CHANNELS.get(channels, f"{channels} channels")
        line = f"# images: uint8 [B, {height}, {width}, {channels}] in 0..255, {kind}; the model gets float32"
        if onnx:
            scaled = 'inputs = images.transpose(0, 3, 1, 2).astype("float32") * (2 / 255) - 1'
            return [f"{line} [B, {channels}, {height}, {width}] in -1..1", scaled], '{"inputs": inputs}'
        scaled = "inputs = images.permute(0, 3, 1, 2).float() * (2 / 255) - 1"
        return [f"{line} [B, {channels}, {height}, {width}] in -1..1", scaled], "inputs"
    inputs, named = trained.inputs
    about = [
        f"# {name}: {_described(value)}, as the program has it"
        for name, value in _by_name(inputs, named).items()
        if not _is_literal(value)
    ]
    if onnx:
        tensors = dict(_tensors(_by_name(inputs, named)))
        about = [f"# {name}: {_described(value)}, as the program has it" for name, value in tensors.items()]
        return about, "{" + ", ".join(f'"{name}": {name}' for name in tensors) + "}"
    shown = {name: repr(value) if _is_literal(value) else name for name, value in _by_name(inputs, named).items()}
    return about, ", ".join(f"{name}={value}" if name in named else value for name, value in shown.items())


def _is_literal(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _described(value: Any) -> str:
    """Return the dtype and the shape of a tensor, or of those in a container."""
    if isinstance(value, Tensor):
        sizes = ["B" if axis == _axis(value) else str(size) for axis, size in enumerate(value.shape)]
        return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(sizes)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_described, value)) + ")"
    return type(value).__name__


def _classes(trained: TrainedModel) -> list[str]:
    assert trained.dataset is not None
    classes = trained.dataset.classes
    return [f"classes = {list(classes)!r}"] if classes else []
