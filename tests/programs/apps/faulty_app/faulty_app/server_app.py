import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg


class Counting(FedAvg):
    """Prints how many replies have an error."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        print("errors", server_round, [reply.error.reason[:7] for reply in replies if reply.has_error()])
        return super().aggregate_train(server_round, replies)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    Counting(fraction_evaluate=0.0).start(
        grid, ArrayRecord({"w": Array(np.zeros(2))}), num_rounds=context.run_config["num-server-rounds"]
    )
