import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam


class Decaying(FedAdam):
    """Halves the learning rate in each round, in the config that it was given, and keeps what it saw."""

    def __init__(self, state, **arguments):
        super().__init__(**arguments)
        self.means = []
        self.add = lambda arrays: _with_momentum(arrays, state)

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.means.append(float(arrays["w"].numpy().mean()))
        return self.add(arrays), metrics


def _with_momentum(arrays: ArrayRecord, state: RecordDict) -> ArrayRecord:
    """Add the mean of what the server has seen."""
    before = state["seen"]["w"].numpy() if "seen" in state else 0
    seen = ArrayRecord({"w": Array(0.5 * before + 0.5 * arrays["w"].numpy())})
    state["seen"] = seen
    return ArrayRecord({"w": Array(arrays["w"].numpy() + 0.1 * seen["w"].numpy())})


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    best = 0.0

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal best
        best = max(best, float(arrays["w"].numpy().sum()) / (1 + server_round))
        return MetricRecord({"best": best})

    result = Decaying(context.state, fraction_train=0.6).start(
        grid,
        ArrayRecord({"w": Array(np.ones(3))}),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": 1.0}),
        evaluate_fn=evaluate,
    )
    print("rounds", sorted(result.train_metrics_clientapp))
