"""Clients that leave things behind; ``config["habit"]`` says which one does what."""

import builtins
import contextvars
import decimal
import logging.config
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from flwr.common import MetricRecord, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAdam, FedAvg
from sklearn.datasets import load_digits
from torch import nn
from torch.overrides import TorchFunctionMode

from sim.client import TorchClient

DEPTH = contextvars.ContextVar("DEPTH", default=0)


def digits_and_their_scale():
    """Set a variable that clients need, too."""
    global SCALE  # noqa: PLW0603
    SCALE = torch.tensor(1.001)
    digits = load_digits()
    images, labels = (digits.images * 15).astype(np.uint8), digits.target
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


class Gained(nn.Module):
    """Its output depends on a buffer that is in no state_dict, and on an attribute."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.hidden = nn.Linear(int(np.prod(image_shape)), 8)
        self.out = nn.Linear(8, num_classes)
        self.register_buffer("gain", torch.ones(()), persistent=False)
        self.shift = 0.0

    def forward(self, x):
        return self.out(self.hidden(x.flatten(1)).tanh() * self.gain + self.shift)


def _double(module, inputs, output):
    return output * 2


class _Twice(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def _replace(net):
    net.out = _Twice(8, net.out.out_features)


HELD = []  # what would end when it is deleted
CALLS = 0
SCALE = None
LEARNING_RATES = {"first": [0.1]}
GENERATORS = [np.random.default_rng(0), np.random.RandomState(0), random.Random(0), torch.Generator().manual_seed(0)]


class Seen:
    clients: list = []  # noqa: RUF012
    number = 0


def _count(net, counts=[]):  # noqa: B006
    global CALLS  # noqa: PLW0603
    CALLS += 1
    Seen.number += 1
    Seen.clients.append(CALLS)
    LEARNING_RATES["first"][0] /= 2
    LEARNING_RATES[f"after {CALLS}"] = [0.2]
    _count.calls = getattr(_count, "calls", 0) + 1
    counts.append(CALLS)


_count.calls = 0


def _draws():
    return [
        GENERATORS[0].random(),
        GENERATORS[1].random_sample(),
        GENERATORS[2].random(),
        float(torch.rand((), generator=GENERATORS[3])),
    ]


HABITS = {
    "freezes": lambda net: net.hidden.requires_grad_(False),
    "hooks": lambda net: net.hidden.register_forward_hook(_double),
    "hooks all modules": lambda net: nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.Linear) else None
    ),
    "replaces a module": _replace,
    "changes an attribute": lambda net: setattr(net, "shift", 3.0),
    "changes a buffer": lambda net: net.gain.fill_(5),
    "evaluates": lambda net: net.eval(),
    "default dtype": lambda net: torch.set_default_dtype(torch.float64),
    "threads": lambda net: torch.set_num_threads(3),
    "no gradients": lambda net: torch.set_grad_enabled(False),
    "autocast": lambda net: HELD.append(torch.autocast("cpu").__enter__()),
    "inference": lambda net: (HELD.append(torch.inference_mode()), HELD[-1].__enter__()),
    "libraries": lambda net: setattr(torch.backends.mkldnn, "enabled", False),
    "recursion": lambda net: sys.setrecursionlimit(5000),
    "no denormal numbers": lambda net: torch.set_flush_denormal(True),
    "folder": lambda net: os.chdir(tempfile.gettempdir()),
    "environment": lambda net: os.environ.update(UNTIDY="1"),
    "seeds": lambda net: (torch.manual_seed(1), random.seed(1), np.random.seed(1)),  # noqa: NPY002
    "numpy's errors": lambda net: np.seterr(all="raise"),
    "warnings": lambda net: warnings.simplefilter("error"),
    "newer float32": lambda net: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all float32": lambda net: setattr(torch.backends, "fp32_precision", "ieee"),
    "older float32": lambda net: torch.set_float32_matmul_precision("medium"),
    "alarm": lambda net: signal.setitimer(signal.ITIMER_REAL, 600),
    "print": lambda net: setattr(builtins, "print", lambda *words: None),
    "errors' hook": lambda net: setattr(sys, "excepthook", lambda *error: None),
    "logging": lambda net: logging.config.dictConfig({"version": 1, "root": {"level": "ERROR"}}),
    "quiet": lambda net: logging.getLogger("sim").setLevel(logging.CRITICAL),
    "convolutions": lambda net: torch.backends.nnpack.set_flags(not _nnpack()),
    "function mode": lambda net: _Negated().__enter__(),
    "context": lambda net: DEPTH.set(DEPTH.get() + 1),
    "decimals": lambda net: setattr(decimal.getcontext(), "prec", 3),
    "processes": lambda net: multiprocessing.set_start_method("spawn", force=True),
    "processors": lambda net: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "variables": _count,
    "generators": lambda net: _draws(),
}


def _nnpack():
    (was_enabled,) = torch.backends.nnpack.set_flags(True)
    torch.backends.nnpack.set_flags(was_enabled)
    return was_enabled


class _Negated(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        return -made if function is torch.Tensor.tanh else made


def _precisions():
    libraries = torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
    return [getattr(library, "fp32_precision", None) for library in libraries]


def settings():
    """Everything that a client could find changed."""
    return {
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference": torch.is_inference_mode_enabled(),
        "libraries": torch.backends.mkldnn.enabled,
        "recursion": sys.getrecursionlimit(),
        "denormal": float(torch.tensor([1e-310], dtype=torch.float64).mul(1)) > 0,
        "folder": str(Path.cwd()),
        "environment": "UNTIDY" in os.environ,
        "errors": str(np.geterr()),
        "warnings": str(warnings.filters[:1]),
        "float32": str((_precisions(), torch.get_float32_matmul_precision())),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "print": type(print).__name__ + str(sys.excepthook),
        "loggers": str([(log.disabled, log.level) for log in map(logging.getLogger, (None, "sim", "flwr"))]),
        "convolutions": _nnpack(),
        "mode": float(torch.tensor(1.0).tanh()),
        "context": DEPTH.get(),
        "decimals": decimal.getcontext().prec,
        "processes": str(multiprocessing.get_start_method(allow_none=True)),
        "processors": len(os.sched_getaffinity(0)),
        "variables": str((CALLS, LEARNING_RATES, Seen.clients, Seen.number, _count.calls, _count.__defaults__)),
        "generators": str(_draws()),
    }


class Untidy(TorchClient):
    """Does what the config says after its training, or before it in round 1; returns what it found."""

    def __init__(self, net, train_loader, test_loader, device, train, test, client_id, context):
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.client_id, self.state = client_id, context.state

    def fit(self, parameters, config):
        found = {**settings(), "training": self.net.training}
        weights, count, metrics = super().fit(parameters, config)
        if config.get("habit"):
            HABITS[config["habit"]](self.net)
        return weights, count, {**metrics, **found, "draw": random.random()}


class Everything(Untidy):
    """Each client has another habit, keeps state, and some raise."""

    def fit(self, parameters, config):
        server_round = int(config["server_round"])
        calls = int(self.state["calls"]["count"]) if "calls" in self.state else 0
        self.state["calls"] = MetricRecord({"count": calls + 1})
        if server_round % 2 == 0 and self.client_id % 4 == 1:
            raise ValueError("the state was changed before")
        if calls == 2:
            del self.state["calls"]
        names = list(HABITS)
        HABITS[names[(self.client_id + server_round) % 6]](self.net)  # before the training, of this client alone
        habit = names[(self.client_id * 3 + server_round) % len(names)]
        weights, count, metrics = super().fit(parameters, {**config, "habit": habit})
        scale = float(SCALE) + (calls + CALLS + Seen.number + len(LEARNING_RATES) + sum(_draws())) / 1000
        return [array * scale for array in weights], count, {"loss": metrics["loss"]}


def _kept(arrays, kept=[]):  # noqa: B006 - shared by all clients of a process on purpose
    kept.append(arrays)
    for older in kept[:-1]:
        for array in older:
            array[...] = 0
    return arrays


class ChangesLater(Untidy):
    """Sets what it returned to zero when the next client of its process trains."""

    def fit(self, parameters, config):
        weights, count, metrics = super().fit(parameters, config)
        return _kept(weights), count, {"loss": metrics["loss"]}


class WithOffset(Gained):
    """Has a constant in its state_dict."""

    def __init__(self, image_shape, num_classes):
        super().__init__(image_shape, num_classes)
        self.register_buffer("offset", torch.zeros(()))


class Scaled(nn.Linear):
    """Has a parameter that is one number."""

    def __init__(self, num_features, num_classes):
        super().__init__(num_features, num_classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


class Tied(Gained):
    """Has two names of one weight."""

    def __init__(self, image_shape, num_classes):
        super().__init__(image_shape, num_classes)
        self.block, self.again = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.again.weight = self.block.weight


class Masked(nn.Module):
    """Two names of one weight, BatchNorm, a mask of −∞, a boolean buffer and a frozen layer."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.stem = nn.Linear(int(np.prod(image_shape)), 8)
        self.norm = nn.BatchNorm1d(8)
        self.block = nn.Linear(8, 8, bias=False)
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = self.block.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.out = nn.Linear(8, num_classes)
        self.register_buffer("mask", torch.full((num_classes,), -torch.inf).where(torch.arange(num_classes) > 99, 0))
        self.register_buffer("never", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("used", torch.tensor([True, False]))

    def forward(self, x):
        hidden = self.again(self.block(self.norm(self.stem(x.flatten(1))))).relu()
        return self.out(self.frozen(hidden) * self.used[0]) + self.mask


class OwnAdam(FedAdam):
    """An adaptive strategy of the user's own, with the arguments that train here."""

    def __init__(self, **arguments):
        super().__init__(**arguments, eta=0.03, tau=0.01)


class InPlace(FedAvg):
    """Writes zeros into the parameters that it was given, sends the same object, and does so after the training."""

    averages_clients = True

    def configure_fit(self, server_round, parameters, client_manager):
        _write_zeros(parameters)
        return super().configure_fit(server_round, parameters, client_manager)

    def configure_evaluate(self, server_round, parameters, client_manager):
        _write_zeros(parameters)
        return []


def _write_zeros(parameters):
    zeros = [array * 0 for array in parameters_to_ndarrays(parameters)]
    parameters.tensors = ndarrays_to_parameters(zeros).tensors


class Exits(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        raise SystemExit


class MakesNan(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        arrays = parameters_to_ndarrays(parameters)
        arrays[0][0] = np.nan
        return ndarrays_to_parameters(arrays), metrics


class Sent(TorchClient):
    """Returns the largest weight that it was sent as its loss."""

    def fit(self, parameters, config):
        weights, count, _ = super().fit(parameters, config)
        return weights, count, {"loss": max(float(abs(array).max()) for array in parameters)}


class Measures(TorchClient):
    """Measures with single numbers of numpy and PyTorch."""

    def fit(self, parameters, config):
        weights, count, metrics = super().fit(parameters, config)
        return weights, np.int64(count), {"loss": np.float32(metrics["loss"]), "accuracy": torch.tensor(0.5)}

    def evaluate(self, parameters, config):
        return np.float32(0.25), np.int32(4), {"accuracy": np.float32(0.75)}


class Wider(TorchClient):
    """Every other client returns its weights as float64, and not only in type."""

    def __init__(self, net, train_loader, test_loader, device, train, test, client_id):
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.client_id = client_id

    def fit(self, parameters, config):
        weights, count, metrics = super().fit(parameters, config)
        wide = [array.astype(np.float64) * (1 + 1e-9) for array in weights]
        return wide if self.client_id % 2 else weights, count, metrics


class Percent(TorchClient):
    def evaluate(self, parameters, config):
        return 0.5, 4, {"accuracy": 75.0}


class Odd(TorchClient):
    """Its error cannot be shown."""

    def fit(self, parameters, config):
        class OddError(Exception):
            def __str__(self):
                raise TypeError

        raise OddError


class Interrupts(TorchClient):
    def fit(self, parameters, config):
        raise KeyboardInterrupt


class Loud(TorchClient):
    def fit(self, parameters, config):
        raise ValueError("\x1b[31m" + "x" * 1_000_000 + os.fsdecode(b"\xff"))


class Panic(BaseException):
    """As libraries written in Rust raise it; it is no Exception."""


def exits(net, loader, epochs, device):
    raise SystemExit


def panics(net, loader, epochs, device):
    raise Panic("index out of bounds")


def panics_in_test(net, loader, device):
    if len(loader.dataset) > 2:  # not in the dry run
        raise Panic("index out of bounds")
    return 0.0, 0.5


def panics_when_made(image_shape):
    raise Panic("index out of bounds")


class PanicsWhenCalled(Gained):
    def forward(self, x):
        raise Panic("index out of bounds")


def exits_in_test(net, loader, device):
    if len(loader.dataset) > 2:  # not in the dry run
        raise SystemExit
    return 0.0, 0.5


def exits_when_made(image_shape):
    raise SystemExit


class ExitsWhenCalled(Gained):
    def forward(self, x):
        raise SystemExit


class Closes(TorchClient):
    """Client 3 closes what it did not open."""

    def __init__(self, net, train_loader, test_loader, device, train, test, client_id):
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.client_id = client_id

    def fit(self, parameters, config):
        if self.client_id == 3 and config["server_round"] > 0:
            os.closerange(3, 400)
        return super().fit(parameters, config)


class FailsTogether(nn.Module):
    """Raises in a vectorized training once ``fails`` is set, which is after the dry run."""

    fails, trainings = False, 0

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.out = nn.Linear(int(np.prod(image_shape)), num_classes)

    def forward(self, x):
        if FailsTogether.fails and torch._C._functorch.is_batchedtensor(x):
            FailsTogether.trainings += 1
            raise RuntimeError("no room for two")
        return self.out(x.flatten(1))
