"""TLS, connections of other programs, and wrong input: each error is one line, and no process or result is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from flwr.proto.transport_pb2_grpc import FlowerServiceStub

from conftest import ROOT, Sim, Small, sha256
from federation import Federation, free_port

FEW = ["--num-clients", "2", "--partitioner", "iid", "--local-epochs", "1"]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the openssl commands of docs/deploy.md make; ``other`` has another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    guide = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    lines = re.search(r"```sh\n(openssl.*?)```", guide, re.DOTALL)[1]  # type: ignore[index]
    for place in (folder, folder / "other"):
        place.mkdir(exist_ok=True)
        subprocess.run(["bash", "-ec", lines], cwd=place, check=True, capture_output=True)
    return folder


def test_tls_accepts_the_right_authority_only(federation: Federation, certificates: Path) -> None:
    """A client with a wrong CA and a client without TLS get one line each, and the federation continues."""
    own, other = certificates / "ca.pem", certificates / "other" / "ca.pem"
    secured = [f"--certificate={certificates / 'server.pem'}", f"--private-key={certificates / 'server.key'}"]
    server = federation.server(*FEW, *secured, f"--ca={own}", "--num-rounds", "3")
    server.wait_for("waiting for 2 more clients")
    wrong = federation.client(0, *FEW, f"--ca={other}", name="wrong")
    plain = federation.client(0, *FEW, name="plain")
    assert (wrong.end(), plain.end()) == (2, 2)
    (line,) = wrong.lines
    assert re.fullmatch(rf"sim: --ca {other}: the server at {federation.address} is not trusted: .*", line)
    assert plain.lines == [
        f"sim: --address {federation.address}: the server uses TLS; give its certificate authority with --ca"
    ]
    clients = [federation.client(i, *FEW, f"--ca={own}") for i in range(2)]
    assert [program.end() for program in (server, *clients)] == [0, 0, 0], server.lines
    assert federation.run.rounds()["round"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_connections_of_other_programs_change_nothing(
    federation: Federation, small: Small, certificates: Path, secured: bool
) -> None:
    """Random bytes, 1000 connections without a handshake, and 50 gRPC streams without a message."""
    authority = certificates / "ca.pem"
    own = [f"--certificate={certificates / 'server.pem'}", f"--private-key={certificates / 'server.key'}"]
    shared = [f"--ca={authority}"] if secured else []
    server = federation.server(*FEW, "--num-rounds", "3", *(own if secured else []), *shared)
    server.wait_for("waiting for 2 more clients")
    host, _, port = federation.address.partition(":")
    place = host, int(port)
    noise = []
    for _ in range(20):
        noise.append(socket.create_connection(place, timeout=60))
        noise[-1].sendall(os.urandom(4096))
    silent = []
    for _ in range(1000):
        silent.append(socket.create_connection(place, timeout=60))
    over = threading.Event()

    def send_nothing() -> Iterator[object]:
        over.wait()
        yield from ()

    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    channels = [
        grpc.secure_channel(federation.address, credentials) if secured else grpc.insecure_channel(federation.address)
        for _ in range(50)
    ]
    joins = [FlowerServiceStub(channel).Join(send_nothing()) for channel in channels]
    clients = [federation.client(i, *FEW, *shared) for i in range(2)]
    codes = [program.end() for program in (server, *clients)]
    over.set()
    for join, channel in zip(joins, channels, strict=True):
        join.cancel()
        channel.close()
    for connection in (*noise, *silent):
        connection.close()
    assert codes == [0, 0, 0], server.lines
    simulated = small(
        num_clients=2, partitioner="iid", clients_per_round=None, fraction_fit=1.0, num_rounds=3, local_epochs=1
    )
    assert sha256(federation.run.model_path) == sha256(simulated.model_path)


def test_too_few_clients_stop_the_run_and_completed_rounds_are_kept(federation: Federation) -> None:
    server = federation.server(*FEW, "--num-rounds", "50", "--round-timeout", "4")
    clients = [federation.client(i, *FEW) for i in range(2)]
    server.wait_for("round 2/")
    clients[0].process.kill()
    assert server.end() == 1
    assert "sim: waiting for 1 more client, 1 of 2 are connected" in server.lines
    line = "--min-clients 2: only 1 connected within --round-timeout 4 s"
    assert server.lines[-1] == f"sim: {line}"
    assert clients[1].end() == 1
    assert clients[1].lines[-1] == f"sim: the server stopped: {line}"
    assert clients[1].lines[0] == "sim: client 1 takes part with 718 examples"
    rounds = federation.run.rounds()
    assert rounds["round"].tolist() == list(range(len(rounds)))
    assert len(rounds) >= 3
    assert federation.run.model_path.is_file()


def test_refused_clients_print_the_reason_and_the_others_continue(federation: Federation) -> None:
    server = federation.server(*FEW, "--num-rounds", "2")
    first = federation.client(0, *FEW)
    server.wait_for("client 0 joined")
    wrong = {
        "taken": ([*FEW], "client 0 was refused: --client-id 0: another client has this number"),
        "count": (["--num-clients", "3"], "client 0 was refused: --num-clients 3: the run has 2"),
        "few": (["--num-clients", "1"], "client 0 was refused: --num-clients 1: the server waits for --min-clients 2"),
        "shape": (
            [*FEW, "--dataset", "synthetic", "--image-size", "28"],
            "client 0 was refused: its images are 3×28×28 in 10 classes, but those of the run are 1×32×32",
        ),
        "model": ([*FEW, "--model", "Mlp"], "client 0 was refused: its model has "),
    }
    refused = {name: federation.client(0, *words, name=name) for name, (words, _) in wrong.items()}
    for name, program in refused.items():
        assert program.end() == 2, program.lines
        (line,) = program.lines
        assert line.startswith(f"sim: {wrong[name][1]}")
    second = federation.client(1, *FEW)
    assert [program.end() for program in (server, first, second)] == [0, 0, 0], server.lines
    assert sum("was refused" in line for line in server.lines) == len(wrong)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_server_leaves_a_complete_folder_and_waits_for_no_client(
    federation: Federation, number: signal.Signals
) -> None:
    server = federation.server(*FEW, "--num-rounds", "50")
    clients = [federation.client(i, *FEW) for i in range(2)]
    server.wait_for("round 1/")
    clients[1].process.send_signal(signal.SIGSTOP)  # a client that never returns
    server.wait_for("round 1/")
    server.process.send_signal(number)
    assert server.end() == 130
    assert server.lines[-1] == "sim: interrupted; what was done is on disk"
    for path in (federation.run.model_path, federation.run.accuracy_path):
        assert path.stat().st_size > 1000
    assert clients[0].end() == 1


def test_a_server_that_dies_is_one_line(federation: Federation) -> None:
    server = federation.server(*FEW, "--num-rounds", "50")
    clients = [federation.client(i, *FEW) for i in range(2)]
    server.wait_for("round 1/")
    server.process.kill()
    for client in clients:
        assert client.end() == 1
        assert client.lines[-1].startswith(f"sim: --address {federation.address}: the server is gone: ")
        assert not any("Traceback" in line for line in client.lines)


@pytest.mark.network
def test_no_server_in_time(command: Sim) -> None:
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    result = command("client", "--address", address, "--client-id", "0", *FEW, "--max-wait", "1")
    assert result.returncode == 1
    assert result.stderr == f"sim: --address {address}: no server within --max-wait 1 s: Connection refused\n"
    assert time.monotonic() - start < 60  # which is the default of --max-wait


@pytest.mark.network
def test_something_else_at_the_address(command: Sim) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer_as_http() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=answer_as_http, daemon=True).start()
        result = command("client", "--address", address, "--client-id", "0", *FEW, "--max-wait", "1")
    assert result.returncode == 2
    assert result.stderr == f"sim: --address {address}: a program answers there, but it is not a server of sim\n"


def test_a_client_with_an_authority_at_a_plain_server(federation: Federation, certificates: Path) -> None:
    server = federation.server(*FEW, "--num-rounds", "1")
    server.wait_for("waiting for 2 more clients")
    client = federation.client(0, *FEW, f"--ca={certificates / 'ca.pem'}")
    assert client.end() == 2
    assert client.lines[-1].startswith(f"sim: --ca {certificates / 'ca.pem'}: the server at {federation.address} does")
    server.process.terminate()


@pytest.mark.network
def test_a_port_in_use(command: Sim, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        result = command("server", "--address", address)
    assert (result.returncode, result.stderr) == (
        2,
        f"sim: --address {address}: the port is in use; choose another\n",
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["server", "--address", "nowhere.invalid:8080"], "--address nowhere.invalid:8080: the host does not resolve"),
        (["client", "--address", "nowhere.invalid:8080", "--client-id", "0"], "--address nowhere.invalid:8080: the ho"),
        (["server", "--address", "localhost"], "--address localhost: must be host:port"),
        (
            ["server", "--address", "localhost:0"],
            "--address localhost:0: must be host:port with a port from 1",
        ),
        (
            ["server", "--address", "0.0.0.0:8080"],
            "--address 0.0.0.0:8080: is not limited to this machine, so it needs TLS",
        ),
        (["client", "--address", "192.0.2.1:80", "--client-id", "0"], "--address 192.0.2.1:80: is not limited to"),
        (["server", "--certificate", "server.pem"], "TLS needs all of --certificate, --private-key and --ca"),
        (["server", "--min-clients", "3", "--num-clients", "2"], "--min-clients 3: must be at most --num-clients 2"),
        (["server", "--min-clients", "0"], "--min-clients 0: must be at least 1"),
        (["client"], "--client-id is missing: must be from 0 to --num-clients - 1"),
        (
            ["client", "--client-id", "7", "--num-clients", "5"],
            "--client-id 7: must be from 0 to --num-clients - 1 =",
        ),
        (["client", "--client-id", "0", "--ca", "none.pem"], "--ca none.pem: No such file"),
        (["client", "--client-id", "0", "--ca", "none.pem", "--insecure"], "--insecure and --ca none.pem: give one"),
    ],
)
def test_bad_options_are_one_line(command: Sim, tmp_path: Path, words: list[str], line: str) -> None:
    result = command(*words)
    assert result.returncode == 2
    assert result.stderr.startswith(f"sim: {line}"), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_certificates_that_do_not_fit(command: Sim, certificates: Path, tmp_path: Path) -> None:
    own, other = certificates, certificates / "other"
    (tmp_path / "empty.pem").write_text("nothing\n")
    for certificate, key, authority, line in (
        (own / "server.pem", other / "server.key", own / "ca.pem", "cannot be used together: key values mismatch"),
        (own / "server.pem", own / "server.key", tmp_path / "empty.pem", "holds no certificate in PEM form"),
    ):
        words = [f"--certificate={certificate}", f"--private-key={key}", f"--ca={authority}"]
        result = command("server", "--address", f"127.0.0.1:{free_port()}", *words)
        assert result.returncode == 2
        assert line in result.stderr
        assert len(result.stderr.splitlines()) == 1
