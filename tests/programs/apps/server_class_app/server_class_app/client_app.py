import random

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class MeanClient(NumPyClient):
    """Adds the number of its partition; what it is asked for is drawn."""

    def __init__(self, partition_id):
        self.partition_id = partition_id

    def get_properties(self, config):
        return {"partition": self.partition_id, "drawn": random.random()}

    def get_parameters(self, config):
        return [np.zeros(2)]

    def fit(self, parameters, config):
        return [parameters[0] + self.partition_id + config["drawn"]], 1 + self.partition_id, {}

    def evaluate(self, parameters, config):
        return float(parameters[0].sum()), 1, {}


def client_fn(context: Context):
    return MeanClient(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
