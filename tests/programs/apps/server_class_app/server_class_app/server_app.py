from flwr.common import Context, FitIns, GetPropertiesIns, parameters_to_ndarrays
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAvg


class AsksClients(FedAvg):
    """Asks each client that it samples for its properties, and sends it what it answered."""

    def configure_fit(self, server_round, parameters, client_manager):
        chosen = []
        for client, _ in super().configure_fit(server_round, parameters, client_manager):
            answer = client.get_properties(GetPropertiesIns({}), timeout=30, group_id=server_round).properties
            print(f"round {server_round} partition {answer['partition']} drawn {answer['drawn']}")
            chosen.append((client, FitIns(parameters, {"drawn": answer["drawn"]})))
        return chosen


class PrintingServer(Server):
    """Does something with what Flower's rounds leave behind."""

    def fit(self, num_rounds, timeout):
        history, seconds = super().fit(num_rounds, timeout)
        print("losses", history.losses_distributed)
        print("last", parameters_to_ndarrays(self.parameters)[0].tolist())
        return history, seconds


class OwnRounds(PrintingServer):
    """Has rounds of its own."""

    def fit_round(self, server_round, timeout):
        print("own round", server_round)
        return super().fit_round(server_round, timeout)


def server_fn(context: Context) -> ServerAppComponents:
    server_class = OwnRounds if context.run_config["own-rounds"] else PrintingServer
    server = server_class(client_manager=SimpleClientManager(), strategy=AsksClients(fraction_fit=0.5))
    return ServerAppComponents(server=server, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]))


app = ServerApp(server_fn=server_fn)
