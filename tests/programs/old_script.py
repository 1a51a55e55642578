"""A script of 2023: client_fn(cid), a strategy with metrics functions, and Flower's own simulation."""

import numpy as np
from flwr.client import NumPyClient
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import start_simulation


class NumberClient(NumPyClient):
    def __init__(self, cid):
        self.cid = int(cid)

    def get_parameters(self, config):
        return [np.zeros(3, np.float32)]

    def fit(self, parameters, config):
        # Two thirds and the like are not exact, and Flower adds results in any order: 1 + 1 + 2 examples are.
        return [parameters[0] * 0.5 + self.cid], 1 + self.cid // 2, {"got": float(self.cid)}

    def evaluate(self, parameters, config):
        return float(parameters[0].sum()), 1 + self.cid // 2, {"acc": float(parameters[0][0])}


def client_fn(cid: str):
    return NumberClient(cid).to_client()


def mean(metrics):
    total = sum(n for n, _ in metrics)
    return {key: sum(n * each[key] for n, each in metrics) / total for key in metrics[0][1]}


if __name__ == "__main__":
    history = start_simulation(
        client_fn=client_fn,
        num_clients=3,
        config=ServerConfig(num_rounds=3),
        strategy=FedAvg(
            fit_metrics_aggregation_fn=mean,
            evaluate_metrics_aggregation_fn=mean,
            evaluate_fn=lambda number, parameters, config: (float(parameters[0][0]), {"number": float(number)}),
        ),
        client_resources={"num_cpus": 1},
        ray_init_args={"num_cpus": 1, "include_dashboard": False},
    )
    print("history", vars(history))
