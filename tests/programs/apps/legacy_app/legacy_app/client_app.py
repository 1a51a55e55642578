import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class LineClient(NumPyClient):
    """Fits y = a·x + b to its own points by gradient steps."""

    def __init__(self, partition_id, local_epochs):
        rng = np.random.default_rng(partition_id)
        self.x = rng.normal(size=20 + partition_id)
        self.y = 2 * self.x + 1 + rng.normal(size=self.x.shape) * 0.1
        self.local_epochs = local_epochs

    def get_parameters(self, config):
        return [np.zeros(1), np.zeros(1)]

    def fit(self, parameters, config):
        a, b = (value.copy() for value in parameters)
        for _ in range(self.local_epochs * config.get("passes", 1)):
            error = a * self.x + b - self.y
            a -= 0.1 * 2 * (error * self.x).mean()
            b -= 0.1 * 2 * error.mean()
        noise = np.random.normal(size=1) * 1e-3  # noqa: NPY002 - the global generator, as users' code draws from it
        return [a + noise, b], len(self.x), {"loss": float((error**2).mean())}

    def evaluate(self, parameters, config):
        error = parameters[0] * self.x + parameters[1] - self.y
        return float((error**2).mean()), len(self.x), {"mae": float(np.abs(error).mean())}


def client_fn(context: Context):
    return LineClient(context.node_config["partition-id"], context.run_config["local-epochs"]).to_client()


app = ClientApp(client_fn=client_fn)
