"""Clients and strategies of a user's own, each made to show one thing."""

import os
import random
import threading
import time
from pathlib import Path

import flwr.serverapp.strategy
import numpy as np
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg
from flwr.serverapp.strategy import FedAvg as MessageFedAvg
from torch import nn

from sim.client.torch_client import CifarClient


class EachClientFedAvg(FedAvg):
    """FedAvg that asks for every client's weights, as a strategy that does not average would."""


class AveragedMessages(MessageFedAvg):
    averages_clients = True


class MetricsFedAvg(FedAvg):
    """An averaging strategy whose metrics function writes down which clients it saw."""

    averages_clients = True

    def __init__(self, **kwargs):
        super().__init__(fit_metrics_aggregation_fn=self.see, **kwargs)
        self.seen = []

    def see(self, metrics):
        self.seen.append([(n, sorted(m)) for n, m in metrics])
        return {"largest": max(n for n, _ in metrics), "note": "text"}


class MessageAverages(flwr.serverapp.strategy.FedAvg):
    """A strategy of the newer form that averages."""

    averages_clients = True


class EverySecondRound(FedAvg):
    """Chooses no client in rounds of even numbers."""

    def configure_fit(self, server_round, parameters, client_manager):
        return super().configure_fit(server_round, parameters, client_manager) if server_round % 2 else []


class RaisingFedAvg(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        raise ArithmeticError("no average today")


class Tutorial(NumPyClient):
    """Takes what the tutorial's client takes, writes into the arrays it gets, and prints."""

    def __init__(self, net, trainloader, testloader):
        self.net, self.trainloader, self.testloader = net, trainloader, testloader

    def fit(self, parameters, config):
        for array in parameters:
            array += 1  # noqa: PLW2901 - in place, to show that these arrays are the client's own
        print(f"own client trained with batch size {self.trainloader.batch_size}")
        return parameters, len(self.trainloader.dataset), {"loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, len(self.testloader.dataset), {"accuracy": 0.75}


class Plain(Client):
    """flwr's Client instead of the NumPyClient; adds 1 to every weight."""

    def fit(self, ins):
        weights = [array + 1 for array in parameters_to_ndarrays(ins.parameters)]
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(weights), 2, {"loss": 1.5})


class Refusing(Client):
    def fit(self, ins):
        return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, "not today"), ins.parameters, 0, {})


class Failing(CifarClient):
    """Every client with an odd id raises in round 2."""

    def __init__(self, net, train_loader, test_loader, device, train, test, client_id):
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.client_id = client_id

    def fit(self, parameters, config):
        if config["server_round"] == 2 and self.client_id % 2:
            raise ValueError(f"client {self.client_id} has\na bad day")
        return super().fit(parameters, config)


class Printing(Failing):
    """As Failing, and prints before it trains or raises."""

    def fit(self, parameters, config):
        print(f"own client trains with batch size {self.train_loader.batch_size}")
        return super().fit(parameters, config)


class Lost(CifarClient):
    def fit(self, parameters, config):
        raise MemoryError("all of them")


class Exiting(Failing):
    """Client 3 ends its process in round 1 as a segmentation fault would; a GPU is broken after client 5."""

    def fit(self, parameters, config):
        if config["server_round"] == 1 and self.client_id == 3:
            os._exit(9)
        if config["server_round"] == 1 and self.client_id == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return CifarClient.fit(self, parameters, config)


class DyingOnce(CifarClient):
    """Ends its process in the second round, unless a file says that one has done so before."""

    def fit(self, parameters, config):
        try:
            if config["server_round"] == 2:
                Path(os.environ["DIED"]).touch(exist_ok=False)
                os._exit(9)
        except FileExistsError:
            pass
        return super().fit(parameters, config)


def counting_train(net, loader, epochs, device):
    optimizer, steps = torch.optim.SGD(net.parameters(), lr=0.1), 0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            steps += 1
    return {"loss": 1.0, "steps": steps}


def training_by_hand(net, loader, device):
    for images, labels in loader:
        net.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(0.1 * parameter.grad)


class Counting(Client):
    """Counts its own calls in Context.state and reports the count as its loss."""

    def __init__(self, context):
        self.state = context.state

    def fit(self, ins):
        state = self.state
        count = (state["count"]["calls"] if "count" in state else 0) + 1
        state["count"] = MetricRecord({"calls": count})
        return FitRes(Status(Code.OK, ""), ins.parameters, 1, {"loss": float(count)})


class CountingGpus(Counting):
    """Also reports the GPU that its process may use."""

    def fit(self, ins):
        result = super().fit(ins)
        result.metrics["gpu"] = float(os.environ.get("CUDA_VISIBLE_DEVICES") or -1)
        return result


class WithBatchNorm(nn.Module):
    """Has integer buffers: BatchNorm counts its batches."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(image_shape[0])
        self.out = nn.Linear(int(np.prod(image_shape)), num_classes)

    def forward(self, x):
        return self.out(self.norm(x).flatten(1))


class WithDropout(nn.Module):
    """Cannot hide in which mode it is trained."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(int(np.prod(image_shape)), num_classes)

    def forward(self, x):
        return self.out(self.drop(x.flatten(1)))


def train_without_setting_the_mode(net, loader, epochs, device, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for images, labels in loader:
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()  # gradients of the client before would add up here, too
        optimizer.step()
        optimizer.zero_grad()
    nn.functional.cross_entropy(net(images), labels).backward()


class BadArrays(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        return ndarrays_to_parameters([np.zeros(3)]), {}


class EvaluationFails(CifarClient):
    def evaluate(self, parameters, config):
        raise OSError("no test data today")


class SystemExits(CifarClient):
    def fit(self, parameters, config):
        if config["server_round"]:
            raise SystemExit(0)
        return super().fit(parameters, config)


def client_side_privacy(**kwargs):
    return DifferentialPrivacyClientSideFixedClipping(FedAvg(**kwargs), 0.1, 1.0, 10)


class Travelling(CifarClient):
    """Its loss is the server's batch size, plus how often it was called, as numpy has it; client 1 raises once."""

    def __init__(self, net, train_loader, test_loader, device, train, test, client_id, context):
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.client_id, self.context = client_id, context
        self.given_batch_size = train_loader.batch_size

    def fit(self, parameters, config):
        calls = int(self.context.state["calls"]["n"]) + 1 if "calls" in self.context.state else 1
        self.context.state = RecordDict({"calls": ConfigRecord({"n": calls})})
        if self.client_id == 1 and config["server_round"] == 2:
            raise ValueError("not this time")
        weights, num_examples, _ = super().fit(parameters, config)
        return weights, num_examples, {"loss": np.float64(self.given_batch_size + calls)}


class Locking(FedAvg):
    """Holds what no checkpoint can keep."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.lock = threading.Lock()


AGGREGATIONS = 0
LOSSES = {"all": []}


def _shrunk():
    factor = 1.0

    def shrink():
        nonlocal factor
        factor *= 0.9
        return factor

    return shrink


class Drawing(FedAvg):
    """Draws from generators of its own, learns, and keeps numbers in its class, in this module and in a function."""

    total = 0

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.numpy, self.legacy = np.random.default_rng(0), np.random.RandomState(1)
        self.python, self.pytorch = random.Random(2), torch.Generator().manual_seed(3)
        self.shrink, self.seen = _shrunk(), set()
        self.learned = torch.rand(1, requires_grad=True)  # by an optimizer that refers to it
        self.optimizer = torch.optim.Adam([self.learned], lr=0.1)
        self.whole = np.ones(4)
        self.part = self.whole[:2]  # changes when the other does

    def aggregate_fit(self, server_round, results, failures):
        global AGGREGATIONS  # noqa: PLW0603
        AGGREGATIONS += 1
        Drawing.total += len(results)
        LOSSES["all"].append(results[0][1].metrics["loss"])
        self.seen |= {int(proxy.cid) for proxy, _ in results}
        if server_round == 1:
            self.later = np.random.default_rng(4)
        drawn = [self.numpy.random(), self.legacy.random_sample(), self.python.random(), self.later.random()]
        self.optimizer.zero_grad()
        (self.learned - 2).square().sum().backward()
        self.optimizer.step()
        self.part += 0.5
        drawn += [self.learned.item(), self.whole.sum()]
        drawn += [float(torch.rand((), generator=self.pytorch)), self.shrink(), AGGREGATIONS, Drawing.total]
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        scale = 1 + (sum(drawn) + sum(LOSSES["all"]) + len(self.seen)) / 1e4
        return ndarrays_to_parameters([array * scale for array in parameters_to_ndarrays(parameters)]), metrics


class NotANumber(Failing):
    """Where Failing raises, it returns NaN."""

    def fit(self, parameters, config):
        weights, num_examples, metrics = CifarClient.fit(self, parameters, config)
        if config["server_round"] == 2 and self.client_id % 2:
            weights[0][:] = np.nan
        return weights, num_examples, metrics


class Hanging(Failing):
    """Where Failing raises, it does not return."""

    def fit(self, parameters, config):
        if config["server_round"] == 2 and self.client_id % 2:
            time.sleep(600)
        return CifarClient.fit(self, parameters, config)


class Remembering(FedAvg):
    """Begins to hold what no checkpoint can keep in round 1."""

    def aggregate_fit(self, server_round, results, failures):
        self.seen = threading.Lock()
        return super().aggregate_fit(server_round, results, failures)


class CountingBoth(CifarClient):
    """Counts its trainings and its evaluations in Context.state, and returns weights that depend on both."""

    def __init__(self, net, train_loader, test_loader, device, train, test, context):
        super().__init__(net, train_loader, test_loader, device, train, test)
        self.state = context.state

    def counted(self, call):
        counts = dict(self.state["counts"]) if "counts" in self.state else {"fit": 0, "evaluate": 0}
        counts[call] += 1
        self.state["counts"] = MetricRecord(counts)
        return counts

    def fit(self, parameters, config):
        counts = self.counted("fit")
        weights, num_examples, metrics = super().fit(parameters, config)
        moved = 1e-3 * counts["evaluate"] + 1e-4 * counts["fit"]
        return [array + np.float32(moved) for array in weights], num_examples, {**metrics, **counts}

    def evaluate(self, parameters, config):
        self.counted("evaluate")
        return super().evaluate(parameters, config)


class Stepped(nn.Module):
    """Has one weight, the number of the round, which ``train_stepped`` counts and ``test_stepped`` looks up."""

    def __init__(self):
        super().__init__()
        self.count = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.count + torch.zeros(len(images), 10)


def train_stepped(net, loader, epochs, device):
    for _ in loader:
        pass
    with torch.no_grad():
        net.count += 1


def test_stepped(net, loader, device):
    return {"loss": 1.0, "accuracy": (0.1, 0.3, 0.5, 0.4, 0.6)[round(net.count.item())]}
