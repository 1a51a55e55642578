"""Server and clients in processes of their own, with real sockets."""

from __future__ import annotations

import shutil
import signal

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import PROGRAMS, Small, sha256
from federation import Federation
from sim import RunConfig, simulate
from sim.data import partition
from sim.data.load_dataset import load_dataset

BRIEF = ["--local-epochs", "1", "--max-local-steps", "3"]


def test_clients_give_the_numbers_of_their_simulation(federation: Federation, small: Small, pictures: None) -> None:
    """The same config, simulated and over a network, gives exactly the same weights."""
    shared = ["--num-clients", "3", "--local-epochs", "1", "--fraction-evaluate", "0.7", "--augment", "crop-flip"]
    shared += ["--feature-noise", "0.2"]
    training = ["--lr", "0.05", "--batch-size", "16", "--num-rounds", "2", "--strategy", "fedprox"]
    training += ["--max-local-steps", "3"]
    tracked = ["--min-clients", "3", "--track", "tensorboard"]
    server = federation.server(*shared, *training, *tracked)
    # Training settings come from the server; a client's own flags for them are not used, which a note says.
    clients = [
        federation.client(i, "--num-clients", "3", "--lr", "9", "--augment", "none", "--strategy", "fedadam")
        for i in range(3)
    ]
    assert [program.end() for program in (server, *clients)] == [0] * 4, server.lines
    served = federation.run
    settings = {"local_epochs": 1, "fraction_evaluate": 0.7, "lr": 0.05, "batch_size": 16}
    settings |= {"augment": "crop-flip", "feature_noise": 0.2}
    simulated = small(
        num_clients=3, clients_per_round=None, fraction_fit=1.0, num_rounds=2, strategy="fedprox", **settings
    )
    assert sha256(served.model_path) == sha256(simulated.model_path)
    traffic = ["bytes_down", "bytes_up"]  # is counted where it is simulated
    columns = [name for name in served.rounds().columns if not name.endswith("_seconds") and name not in traffic]
    assert served.rounds()[columns].equals(simulated.rounds()[columns])
    columns = ["round", "phase", "client_id", "num_examples", "loss", "accuracy", "status"]
    assert served.clients()[columns].equals(simulated.clients()[columns])
    assert served.rounds()["round"].tolist() == [0, 1, 2]
    assert served.clients()[["actor", *traffic]].isna().all(axis=None)
    assert served.rounds()[traffic].isna().all(axis=None)
    assert simulated.clients()[traffic].notna().all(axis=None)
    files = {path.name for path in simulated.path.iterdir()} - {"checkpoints"}  # only a simulation can be resumed
    assert {path.name for path in served.path.iterdir()} == files | {"tensorboard"}
    events = EventAccumulator(str(served.path / "tensorboard"))
    events.Reload()
    accuracies = [float(np.float32(each)) for each in served.rounds().test_accuracy]
    assert [each.value for each in events.Scalars("test/accuracy")] == accuracies
    assert clients[2].lines[-1] == "client 2        trained in 2 rounds"
    assert any(line.startswith("sim: waiting for ") and line.endswith(" of 3 are connected") for line in server.lines)
    assert "note:" not in "\n".join(server.lines)
    config = RunConfig(num_clients=3, fraction_fit=1.0)
    size = partition.assign(load_dataset(config), config).sizes[2]
    taking_part = f"sim: client 2 takes part with {size} examples"
    found = f"sim: client 2 has found the server at {federation.address} and waits to be called"
    assert clients[2].lines.index(found) < clients[2].lines.index(taking_part)
    notes = [line for line in clients[2].lines if line.startswith("sim: note:")]
    assert sorted(notes) == [
        "sim: note: --augment none of this client is not used: augment comes from the server, and is crop-flip",
        "sim: note: --lr 9.0 of this client is not used: lr comes from the server, and is 0.05",
        "sim: note: --strategy fedadam of this client is not used: strategy comes from the server, and is fedprox",
    ]


def test_clients_of_the_users_own_give_the_results_of_their_simulation(
    federation: Federation, small: Small, in_programs: None
) -> None:
    """Checks the state of clients, the server's batch size, numpy numbers in metrics, and a dropped client."""
    shutil.copy(PROGRAMS / "own.py", federation.folder)
    shared = ["--num-clients", "2", "--client", "own:Travelling", "--on-client-error", "drop"]
    server = federation.server(*shared, "--num-rounds", "3", "--batch-size", "32", *BRIEF)
    clients = [federation.client(i, *shared) for i in range(2)]
    assert [program.end() for program in (server, *clients)] == [0, 0, 0], server.lines
    settings = {"num_clients": 2, "clients_per_round": None, "fraction_fit": 1.0, "num_rounds": 3, "batch_size": 32}
    simulated = small(client="own:Travelling", on_client_error="drop", **settings)
    columns = ["round", "client_id", "loss", "status", "error"]
    assert federation.run.clients()[columns].equals(simulated.clients()[columns])
    assert simulated.clients().loss.tolist()[0] == 32 + 1
    assert (simulated.clients().status == "failed").sum() == 1
    assert sha256(federation.run.model_path) == sha256(simulated.model_path)


def test_clients_of_a_program_that_partitions_itself_give_the_results_of_their_simulation(
    federation: Federation, in_programs: None
) -> None:
    """Each client has examples of its own, which nobody else can count: 7 and 5 of the 12."""
    shutil.copy(PROGRAMS / "odd_data.py", federation.folder)
    shared = ["--num-clients", "2", "--dataset", "odd_data:uneven", "--model", "odd_data:Net"]
    server = federation.server(*shared, "--min-clients", "2", "--num-rounds", "2", "--fraction-evaluate", "1")
    clients = [federation.client(i, *shared) for i in range(2)]
    assert [program.end() for program in (server, *clients)] == [0, 0, 0], server.lines
    assert "sim: client 1 joined with 5 examples" in server.lines
    config = RunConfig(
        num_clients=2,
        dataset="odd_data:uneven",
        model="odd_data:Net",
        num_rounds=2,
        fraction_fit=1.0,
        fraction_evaluate=1.0,
        engine="inline",
        results_dir=str(federation.folder / "simulated"),
    )
    simulated = simulate(config)
    columns = ["round", "client_id", "num_examples", "loss", "status"]
    assert federation.run.clients()[columns].equals(simulated.clients()[columns])
    assert sha256(federation.run.model_path) == sha256(simulated.model_path)


def test_the_server_takes_the_number_of_clients_from_its_clients(federation: Federation) -> None:
    """The server is started without the number of clients, as in Flower's tutorial with three terminals."""
    server = federation.server("--num-rounds", "1", "--min-clients", "2", *BRIEF)
    second = federation.client(1, "--num-clients", "2")
    server.wait_for("client 1 joined")
    other = federation.client(0, "--num-clients", "3", name="other")  # waits until enough others agree
    server.wait_for("client 0 has --num-clients 3")
    first = federation.client(0, "--num-clients", "2")
    assert [program.end() for program in (server, first, second, other)] == [0, 0, 0, 2], server.lines
    assert federation.run.config()["num_clients"] == 2
    assert federation.run.config()["fraction_fit"] == 1.0
    assert federation.run.rounds()["round"].tolist() == [0, 1]


SLOW = ["--num-clients", "3", "--dataset", "synthetic", "--num-examples", "3000", "--partitioner", "iid"]


def test_a_killed_client_is_named_and_one_that_comes_later_takes_part(federation: Federation) -> None:
    """With noise for differential privacy, which the server adds as well where a client is missing."""
    rounds = ["--num-rounds", "4", "--local-epochs", "5", "--min-clients", "2", "--dp", "fixed"]
    server = federation.server(*SLOW, *rounds)
    clients = [federation.client(i, *SLOW) for i in range(2)]
    server.wait_for("round 1/4")
    clients[1].send(signal.SIGSTOP)  # so round 2 does not end before the late client has joined
    clients[0].send(signal.SIGKILL)
    server.wait_for("client 0 disconnected")
    late = federation.client(2, *SLOW)
    server.wait_for("client 2 joined")
    clients[1].send(signal.SIGCONT)
    assert [program.end() for program in (server, clients[1], late)] == [0, 0, 0], server.lines
    records = federation.run.clients()
    lost = records[records.status == "failed"]
    assert lost[["round", "client_id"]].values.tolist() == [[2, 0]]
    assert "connection was lost" in lost.error.iloc[0]
    assert records[records.client_id == 1]["round"].tolist() == [1, 2, 3, 4]
    assert records[records.client_id == 2]["round"].tolist() == [3, 4]
    assert federation.run.rounds()["round"].tolist() == [0, 1, 2, 3, 4]
    assert federation.run.rounds().num_failures.sum() == 1


def test_a_round_that_is_begun_anew_may_have_no_client_left(federation: Federation) -> None:
    """With seed 2, client 1 drops out of round 1, in which client 0 is lost, and takes part in round 2."""
    data = [*SLOW, "--num-clients", "2", "--seed", "2"]
    rounds = ["--num-rounds", "2", "--local-epochs", "5", "--min-clients", "1", "--client-dropout", "0.5"]
    server = federation.server(*data, *rounds)
    lost = federation.client(0, *data)
    server.wait_for("client 0 joined")
    lost.send(signal.SIGSTOP)
    late = federation.client(1, *data)
    server.wait_for("client 1 joined")
    lost.send(signal.SIGKILL)
    assert [program.end() for program in (server, late)] == [0, 0], server.lines
    records = federation.run.clients()
    assert records[["round", "client_id", "status"]].values.tolist() == [
        [1, 0, "failed"],
        [1, 1, "dropped"],
        [2, 1, "ok"],
    ]
