import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Client 1 kills its process once, and client 2 hangs or raises in round 2, if they are asked to."""
    client, number = context.node_config["partition-id"], message.content["config"]["server-round"]
    marker = Path(str(context.run_config["marker"]))
    if context.run_config["marker"] and client == 1 and number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if context.run_config["hangs"] and client == 2 and number == 2:
        time.sleep(3600)
    if context.run_config["raises"] and client == 2 and number == 2:
        raise ValueError("as asked")
    value = message.content["arrays"]["w"].numpy() + client + np.random.rand(2)  # noqa: NPY002 - as users' code draws
    metrics = MetricRecord({"num-examples": 1, "loss": float(value.sum())})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(value)}), "metrics": metrics}), reply_to=message)
