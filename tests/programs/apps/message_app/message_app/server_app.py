import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp, strategy

from message_app.task import Net, load_data, test

app = ServerApp()


class FedAvgOfReplies(strategy.FedAvg):
    """Has an aggregation of its own, so that it needs every reply."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    torch.manual_seed(3)
    kind = FedAvgOfReplies if config["strategy"] == "FedAvgOfReplies" else getattr(strategy, config["strategy"])
    used = kind(fraction_train=config["fraction-train"])
    result = used.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=central_test,
    )
    print("last", max(result.evaluate_metrics_clientapp), dict(result.evaluate_metrics_clientapp[1]))


def central_test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(net, load_data(99, 100))
    return MetricRecord({"loss": loss, "accuracy": accuracy})
