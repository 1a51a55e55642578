"""Strategies that call their clients by themselves, and clients that answer."""

import random

import numpy as np
from client_fns import Whole
from flwr.app import MetricRecord
from flwr.common import (
    Code,
    Context,
    EvaluateIns,
    FitIns,
    GetParametersIns,
    GetPropertiesIns,
    GetPropertiesRes,
    Status,
    parameters_to_ndarrays,
)
from flwr.server.strategy import FedAvg

from sim.client.torch_client import CifarClient


class Describing(CifarClient):
    """Says how many examples it has, a random number, and how often it was asked."""

    def __init__(self, net, train_loader, test_loader, device, context):
        super().__init__(net, train_loader, test_loader, device)
        self.context = context

    def get_properties(self, config):
        kept = self.context.state.setdefault("asked", MetricRecord({"count": 0}))
        kept["count"] += config["by"]
        return {"examples": len(self.train_loader.dataset), "random": random.random(), "count": kept["count"]}


class Refusing(CifarClient):
    def get_properties(self, config):
        raise PermissionError("no properties today")


class Raw(Whole):
    """flwr's Client instead of the NumPyClient."""

    def get_properties(self, ins):
        return GetPropertiesRes(Status(Code.OK, ""), {"examples": 4, "by": ins.config["by"]})


def raw(context: Context):
    return Raw()


class Choosing(FedAvg):
    """Takes the clients with the most examples, and of these the one with the largest loss."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "fraction_evaluate": 0.0})
        self.properties, self.losses, self.first = [], [], []

    def configure_fit(self, server_round, parameters, client_manager):
        proxies = [client_manager.all()[cid] for cid in sorted(client_manager.all(), key=int)]
        properties = [p.get_properties(GetPropertiesIns({"by": 2}), None, None).properties for p in proxies]
        self.properties.append(properties)
        order = sorted(range(len(proxies)), key=lambda i: -properties[i]["examples"])[:4]
        losses = [proxies[i].evaluate(EvaluateIns(parameters, {}), None, None).loss for i in order]
        self.losses.append(losses)
        return [(proxies[i], FitIns(parameters, {})) for i in order[:2]]

    def aggregate_fit(self, server_round, results, failures):
        proxy, answer = results[0]
        again = proxy.fit(FitIns(answer.parameters, {"lr": 0.0}), None, None)
        same = zip(parameters_to_ndarrays(again.parameters), parameters_to_ndarrays(answer.parameters), strict=True)
        self.first.append((again.num_examples == answer.num_examples, all(np.array_equal(a, b) for a, b in same)))
        return super().aggregate_fit(server_round, results, failures)


class AskingForParameters(FedAvg):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.found = []

    def configure_fit(self, server_round, parameters, client_manager):
        answer = client_manager.all()["1"].get_parameters(GetParametersIns({}), None, None)
        self.found.append(parameters_to_ndarrays(answer.parameters))
        return super().configure_fit(server_round, parameters, client_manager)
