from flwr.common import Context
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def weighted_mean(metrics):
    total = sum(n for n, _ in metrics)
    return {"mae": sum(n * m["mae"] for n, m in metrics) / total}


def server_fn(context: Context) -> ServerAppComponents:
    used = FedAvg(evaluate_metrics_aggregation_fn=weighted_mean, on_fit_config_fn=lambda number: {"passes": number})
    return ServerAppComponents(strategy=used, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]))


app = ServerApp(server_fn=server_fn)
