"""Clients that return what they got, so that only the framework's own time is left; or clients that train."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bench_app.model import NUM_EXAMPLES, make_net, train

app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Return the arrays unchanged, or after training."""
    arrays = message.content["arrays"]
    if not context.run_config["num-parameters"]:
        net = make_net()
        net.load_state_dict(arrays.to_torch_state_dict())
        train(net, int(context.node_config["partition-id"]))
        arrays = ArrayRecord(net.state_dict())
    metrics = MetricRecord({"num-examples": NUM_EXAMPLES, "train_loss": 0.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
