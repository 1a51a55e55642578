"""FedAvg over all clients; writes the time at which each round ends."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from bench_app.model import make_net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds."""
    times = Path(str(context.run_config["times-file"]))

    def note_the_time(server_round: int, arrays: ArrayRecord) -> None:
        with times.open("a") as file:
            file.write(f"{time.time()}\n")

    num_parameters = int(context.run_config["num-parameters"])
    instant = {"weights": Array(np.zeros(num_parameters, np.float32))}
    FedAvg(fraction_evaluate=0.0).start(
        grid,
        ArrayRecord(instant if num_parameters else make_net().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=note_the_time,
    )
