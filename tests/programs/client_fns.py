"""Client functions of Flower programs, each with one habit of real ones."""

import numpy as np
from flwr.client import Client, NumPyClient
from flwr.common import (
    Code,
    ConfigRecord,
    Context,
    EvaluateRes,
    FitRes,
    GetParametersRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.strategy import FedAvg


class Numbers(NumPyClient):
    """Moves two arrays towards its own number, and draws from the global generator."""

    def __init__(self, client_id, step=0.5):
        self.client_id, self.step = client_id, step

    def get_parameters(self, config):
        return [np.zeros((2, 2), np.float32), np.ones(3)]

    def fit(self, parameters, config):
        noise = np.random.rand()  # noqa: NPY002 - as users' code draws
        moved = [array + self.step * (self.client_id - array) + 0.01 * noise for array in parameters]
        return (
            [m.astype(p.dtype) for m, p in zip(moved, parameters, strict=True)],
            10 + self.client_id,
            {"loss": float(noise)},
        )

    def evaluate(self, parameters, config):
        return float(np.abs(parameters[1]).sum()), 5, {"accuracy": 0.5}


def by_context(context: Context):
    return Numbers(context.node_config["partition-id"]).to_client()


def by_cid(cid: str):
    return Numbers(int(cid))  # a NumPyClient itself, as scripts of 2023 return it


def with_run_config(context: Context):
    step = context.run_config["learning-rate"]
    assert context.run_config.get("not-there", 7) == 7
    return Numbers(context.node_config["partition-id"], step).to_client()


SEEN = []


def head_stays(context: Context):
    """As FedPer: the second array never leaves the client. What the module keeps is put back, and a note says so."""

    class Partial(Numbers):
        def get_parameters(self, config):
            return super().get_parameters(config)[:1]

        def fit(self, parameters, config):
            count = context.state.setdefault("count", ConfigRecord({"fits": 0}))
            count["fits"] += 1
            SEEN.append(count["fits"])
            weights, examples, metrics = super().fit([parameters[0], np.ones(3)], config)
            return weights[:1], examples, {**metrics, "fits": count["fits"]}

        def evaluate(self, parameters, config):
            return float(parameters[0].sum()), 5, {"acc": 87.5}

    return Partial(context.node_config["partition-id"]).to_client()


def sends_fewer(context: Context):
    """Gets all arrays at first, and sends only the first of them."""

    class Fewer(Numbers):
        def fit(self, parameters, config):
            weights, examples, metrics = super().fit(parameters, config)
            return weights[:1], examples, metrics

    return Fewer(context.node_config["partition-id"]).to_client()


def unequal(context: Context):
    class Unequal(Numbers):
        def fit(self, parameters, config):
            weights, examples, metrics = super().fit(parameters, config)
            return weights[: 1 + self.client_id % 2], examples, metrics

    return Unequal(context.node_config["partition-id"]).to_client()


class Whole(Client):
    """A Client with Flower's own types."""

    def get_parameters(self, ins):
        return GetParametersRes(Status(Code.OK, ""), ndarrays_to_parameters([np.zeros(2)]))

    def fit(self, ins):
        (array,) = parameters_to_ndarrays(ins.parameters)
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters([array + 1]), 4, {})

    def evaluate(self, ins):
        return EvaluateRes(Status(Code.OK, ""), 1.0, 2, {})


def a_client(context: Context):
    return Whole()


def makes_nothing(context: Context):
    return None


def without_parameters(context: Context):
    class Silent(NumPyClient):
        def fit(self, parameters, config):
            return [], 1, {}

    return Silent().to_client()


def infinite(context: Context):
    class Infinite(Numbers):
        def fit(self, parameters, config):
            return [array * np.inf for array in super().fit(parameters, config)[0]], 1, {}

    return Infinite(context.node_config["partition-id"]).to_client()


def of_twelve_arrays(context: Context):
    """Array n holds n."""

    class Filled(NumPyClient):
        def get_parameters(self, config):
            return [np.zeros((2, 2), np.float32) for _ in range(12)]

        def fit(self, parameters, config):
            return [np.full_like(array, number) for number, array in enumerate(parameters)], 1, {}

    return Filled().to_client()


class SendsSteps(FedAvg):
    """Sends each client how far it is to move."""

    def __init__(self, **settings):
        super().__init__(**settings, on_fit_config_fn=lambda server_round: {"step": 0.25})


def with_steps(context: Context):
    class Moving(Numbers):
        def fit(self, parameters, config):
            self.step = config["step"]
            return super().fit(parameters, config)

    return Moving(context.node_config["partition-id"]).to_client()


def without_examples(context: Context):
    """Counts no example where the run config's ``empty`` says so."""

    class Empty(Numbers):
        def fit(self, parameters, config):
            arrays, num_examples, metrics = super().fit(parameters, config)
            return arrays, 0 if context.run_config["empty"] == "fit" else num_examples, metrics

        def evaluate(self, parameters, config):
            loss, num_examples, metrics = super().evaluate(parameters, config)
            return loss, 0 if context.run_config["empty"] == "evaluate" else num_examples, metrics

    return Empty(context.node_config["partition-id"]).to_client()
