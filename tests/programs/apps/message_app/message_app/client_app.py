from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from message_app.task import Net, load_data, test, train

app = ClientApp()


def _net(message):
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def _loader(context):
    return load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train_message(message: Message, context: Context) -> Message:
    net, loader = _net(message), _loader(context)
    loss = train(net, loader, context.run_config["local-epochs"], message.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate_message(message: Message, context: Context) -> Message:
    loader = _loader(context)
    loss, accuracy = test(_net(message), loader)
    rates = [accuracy, 1 - accuracy]
    counts = {"num-examples": len(loader.dataset)}
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "rates": rates, **counts})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
