import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam


class Decaying(FedAdam):
    """Halves the learning rate in each round, in the config that it was given, and keeps what it saw."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.means = []

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.means.append(float(arrays["w"].numpy().mean()))
        return arrays, metrics


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = Decaying(fraction_train=0.6).start(
        grid,
        ArrayRecord({"w": Array(np.ones(3))}),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": 1.0}),
    )
    print("rounds", sorted(result.train_metrics_clientapp))
