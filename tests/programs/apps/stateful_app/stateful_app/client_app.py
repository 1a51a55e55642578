import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def counting(message, context, call_next):
    """A mod: counts the messages that a client got, and tells the app."""
    state = context.state.setdefault("count", ConfigRecord({"messages": 0}))
    state["messages"] += 1
    reply = call_next(message, context)
    reply.content["metrics"]["messages"] = state["messages"]
    return reply


app = ClientApp(mods=[counting])


@app.train()
def train(message: Message, context: Context) -> Message:
    own = context.state.get("own")
    seen = own["value"].numpy() if own is not None else np.zeros(3)
    noise = message.content["config"]["lr"] * np.random.rand(3)  # noqa: NPY002 - as users' code draws
    value = 0.5 * message.content["arrays"]["w"].numpy() + noise + 0.1 * seen
    context.state["own"] = ArrayRecord({"value": Array(value)})
    metrics = MetricRecord({"num-examples": 1 + context.node_config["partition-id"], "loss": float(value.mean())})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(value)}), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 5, "acc": float(context.state["count"]["messages"] / 100)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
