import random

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def size(message: Message, context: Context) -> Message:
    return Message(
        RecordDict(
            {"about": MetricRecord({"size": 10 + context.node_config["partition-id"], "node": context.node_id})}
        ),
        reply_to=message,
    )


@app.query("draw")
def draw(message: Message, context: Context) -> Message:
    return Message(RecordDict({"about": MetricRecord({"number": random.random()})}), reply_to=message)


@app.train("mean")
def mean(message: Message, context: Context) -> Message:
    value = message.content["arrays"]["value"].numpy() + context.node_config["partition-id"]
    message.content["arrays"]["value"] = type(message.content["arrays"]["value"])(value)
    message.content["metrics"] = MetricRecord({"num-examples": 1, "loss": float(value.sum())})
    return Message(message.content, reply_to=message)
