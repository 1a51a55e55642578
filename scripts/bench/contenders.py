"""The programs that are compared. Each runs one round for each line on its stdin and prints the seconds of the round.

``bare``: the same steps in bare PyTorch, NCHW and fp32, one process per core, without Flower or Ray.
``bare_grad``: the same with ``torch.autograd.grad`` and ``torch._foreach_add_`` instead of an optimizer.
``flower``: ``start_simulation`` with Flower's own proxies and actors, and a client_fn that loads the data only once.
``sim``: this engine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from functools import cache, lru_cache
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.common import Context, NDArrays
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import WORKLOADS, Workload

from sim.client.runtime import facts_of
from sim.config.run_config import RunConfig
from sim.data import partition
from sim.data.load_dataset import load_dataset
from sim.training import models
from sim.training.weights import get_weights, set_weights

_START_SECONDS = 300.0  # after which a process that has not come is taken for dead


def wait_for_go() -> None:
    """Wait for the request to run the next round; exit when stdin is closed."""
    if not sys.stdin.readline():
        os._exit(0)


def report(seconds: float) -> None:
    """Print the seconds of a round."""
    print(json.dumps(seconds), flush=True)


class Instant(NumPyClient):
    """A client that returns the weights that it gets."""

    def fit(self, parameters: NDArrays, config: dict[str, Any]) -> tuple[NDArrays, int, dict[str, Any]]:
        """Return ``parameters`` without training."""
        return parameters, 1, {}


class Plain:
    """The model and the data of one process in plain PyTorch; images are converted once to float32 NCHW tensors."""

    def __init__(self, name: str, device: str) -> None:
        torch.set_num_threads(1)
        self.device = torch.device(device)
        self.config = RunConfig(**WORKLOADS[name].settings)
        dataset = load_dataset(self.config)
        self.dealt = partition.assign(dataset, self.config)
        self.net: nn.Module = models.build(self.config.model, facts_of(dataset))
        self.net.to(self.device)
        images = torch.from_numpy(np.array(dataset.train.images)).permute(0, 3, 1, 2).contiguous()
        self.images = images.to(self.device).float().mul_(2 / 255).sub_(1)
        self.labels = torch.from_numpy(np.array(dataset.train.labels)).to(self.device)

    @cache  # noqa: B019 - the object lives as long as the process
    def examples(self, client_id: int) -> tuple[Tensor, Tensor]:
        """Return the images (float32 [N, C, H, W]) and the labels (int64 [N]) of one client."""
        indices = torch.from_numpy(np.array(self.dealt.of(client_id))).to(self.device)
        return self.images[indices], self.labels[indices]

    def train(self, client_id: int, *, with_optimizer: bool = True) -> int:
        """Train on the examples of one client and return their number."""
        images, labels = self.examples(client_id)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=self.config.lr)
        weights = list(self.net.parameters())
        self.net.train()
        for _ in range(self.config.local_epochs):
            order = torch.randperm(len(labels), device=self.device)
            for chosen in order.split(self.config.batch_size):
                if with_optimizer:
                    optimizer.zero_grad()
                    F.cross_entropy(self.net(images[chosen]), labels[chosen]).backward()
                    optimizer.step()
                    continue
                grads = torch.autograd.grad(F.cross_entropy(self.net(images[chosen]), labels[chosen]), weights)
                with torch.no_grad():
                    torch._foreach_add_(weights, grads, alpha=-self.config.lr)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return len(labels)


@lru_cache(maxsize=1)
def plain(name: str, device: str) -> Plain:
    """Return the ``Plain`` of this process."""
    return Plain(name, device)


class PlainClient(NumPyClient):
    """A client that trains with ``Plain``, as an experienced user of Flower would write it."""

    def __init__(self, program: Plain, client_id: int) -> None:
        self.program = program
        self.client_id = client_id

    def fit(self, parameters: NDArrays, config: dict[str, Any]) -> tuple[NDArrays, int, dict[str, Any]]:
        """Train from ``parameters``."""
        set_weights(self.program.net, parameters)
        num_examples = self.program.train(self.client_id)
        return get_weights(self.program.net), num_examples, {}


class FlowerClientFn:
    """The ``client_fn`` of a workload. It is small to send, because model and data are created in the actor."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device

    def __call__(self, context: Context) -> Client:
        """Return the client of a partition."""
        if WORKLOADS[self.name].instant:
            return Instant().to_client()
        client_id = int(context.node_config["partition-id"])
        return PlainClient(plain(self.name, self.device), client_id).to_client()


def bare(name: str, num_rounds: int, num_processes: int, device: str, *, with_optimizer: bool = True) -> None:
    """Run bare training loops. In each round, the clients 0, 1, … are assigned to the processes in turn.

    Each client starts from the mean of its process's last round: the time of a step depends on the weights, because
    pooling is faster where many of its inputs are zero, as they become in a net that trains on from client to client.
    """
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(num_processes + 1), context.Barrier(num_processes + 1)
    num_clients = RunConfig(**WORKLOADS[name].settings).num_fit_clients
    workers = [
        context.Process(
            target=_bare_process,
            args=(name, range(i, num_clients, num_processes), num_rounds, start, end, device, with_optimizer),
            daemon=True,
        )
        for i in range(num_processes)
    ]
    for worker in workers:
        worker.start()
    for _ in range(num_rounds):
        wait_for_go()
        start.wait(_START_SECONDS)
        began = time.perf_counter()
        end.wait()
        report(time.perf_counter() - began)


def bare_grad(name: str, num_rounds: int, num_processes: int, device: str) -> None:
    """Run bare training loops without an optimizer object."""
    bare(name, num_rounds, num_processes, device, with_optimizer=False)


def _bare_process(
    name: str,
    client_ids: range,
    num_rounds: int,
    start: Barrier,
    end: Barrier,
    device: str,
    with_optimizer: bool,
) -> None:
    program = plain(name, device)
    for client_id in client_ids:
        program.examples(client_id)
    weights = list(program.net.parameters())
    mean = [weight.detach().clone() for weight in weights]
    for _ in range(num_rounds):
        start.wait()
        total = [torch.zeros_like(weight) for weight in mean]
        for client_id in client_ids:
            with torch.no_grad():
                torch._foreach_copy_(weights, mean)
            program.train(client_id, with_optimizer=with_optimizer)
            with torch.no_grad():
                torch._foreach_add_(total, weights)
        end.wait()
        mean = [weight / len(client_ids) for weight in total]


def flower(name: str, num_rounds: int, num_processes: int, device: str) -> None:
    """Run Flower's ``start_simulation`` as its documentation describes."""
    from flwr.server import ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import start_simulation

    config = RunConfig(**WORKLOADS[name].settings)
    dataset = load_dataset(config)
    net = models.build(config.model, facts_of(dataset))
    from flwr.common import ndarrays_to_parameters

    class Timed(FedAvg):
        began = 0.0

        def configure_fit(self, *arguments: Any, **keywords: Any) -> Any:
            wait_for_go()
            self.began = time.perf_counter()
            return super().configure_fit(*arguments, **keywords)

        def aggregate_fit(self, *arguments: Any, **keywords: Any) -> Any:
            aggregated = super().aggregate_fit(*arguments, **keywords)
            if arguments[2]:
                raise arguments[2][0]
            report(time.perf_counter() - self.began)
            return aggregated

    strategy = Timed(
        fraction_fit=config.num_fit_clients / config.num_clients,
        min_fit_clients=config.num_fit_clients,
        min_available_clients=config.num_clients,
        fraction_evaluate=0.0,
        min_evaluate_clients=0,
        initial_parameters=ndarrays_to_parameters(get_weights(net)),
    )
    num_cpus = len(os.sched_getaffinity(0))
    gpus = {"num_gpus": 1 / num_processes} if device == "cuda" else {}
    start_simulation(
        client_fn=FlowerClientFn(name, device),
        num_clients=config.num_clients,
        client_resources={"num_cpus": num_cpus / num_processes if num_processes > num_cpus else 1, **gpus},
        config=ServerConfig(num_rounds=num_rounds),
        strategy=strategy,
        ray_init_args={"address": "local", "include_dashboard": False, "log_to_driver": False, "num_cpus": num_cpus},
    )


def sim(name: str, num_rounds: int, num_processes: int, device: str, **settings: Any) -> None:
    """Run this package's engine, as ``sim run`` does."""
    from sim.run_folder.records import RoundRecord
    from sim.simulation import simulate

    workload: Workload = WORKLOADS[name]
    if workload.instant:
        settings["client"] = "contenders:Instant"

    def on_record(record: RoundRecord) -> None:
        if record.round > 0:
            report((record.round_seconds or 0) - (record.test_seconds or 0))
        if record.round < num_rounds:
            wait_for_go()

    num_cpus = len(os.sched_getaffinity(0))
    resources: dict[str, Any] = {"num_cpus": num_cpus / num_processes if num_processes > num_cpus else 1.0}
    if device == "cuda":
        resources["num_gpus"] = 1 / num_processes
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            **{
                **workload.settings,
                **resources,
                **settings,
                "num_rounds": num_rounds,
                "results_dir": folder,
                "device": device,
            }
        )
        simulate(config, on_record=on_record)


def main() -> None:
    """Run the function that the first argument names.

    bench.py calls this through an import, so that other processes can import the classes of this module.
    """
    chosen, arguments = sys.argv[1], json.loads(sys.argv[2])
    {"bare": bare, "bare_grad": bare_grad, "flower": flower, "sim": sim}[chosen](**arguments)
