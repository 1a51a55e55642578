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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flwr.common import (
    Code,
    ConfigRecord,
    DisconnectRes,
    EvaluateRes,
    FitRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
)
from flwr.proto.transport_pb2_grpc import FlowerServiceStub
from flwr.server.client_proxy import ClientProxy

from conftest import ROOT, Sim, Small, sha256
from federation import Federation, free_port, wait_until
from sim.cli import main
from sim.config.fields import flag_of
from sim.config.run_config import RunConfig
from sim.engine.interface import Chunk, ClientResult, Task
from sim.engine.network import RemoteDispatcher
from sim.errors import ConfigError, EngineError
from sim.network.client import join as join_as_client
from sim.network.identity import REFUSED, Identity, Shape
from sim.network.options import SIMULATED_ONLY, ClientOptions, ServerOptions
from sim.network.registry import Registry
from sim.network.server import _reserve
from sim.run_folder.records import Phase

FEW = ["--num-clients", "2", "--partitioner", "iid", "--local-epochs", "1", "--max-local-steps", "3"]


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


def _tls_accepts_the_right_authority_only(federation: Federation, certificates: Path) -> None:
    other = certificates / "other" / "ca.pem"
    wrong = federation.client(0, *FEW, f"--ca={other}", name="wrong")
    plain = federation.client(0, *FEW, name="plain")
    assert (wrong.end(), plain.end()) == (2, 2)
    (line,) = wrong.lines
    assert re.fullmatch(rf"sim: --ca {other}: the server at {federation.address} is not trusted: .*", line)
    assert plain.lines == [
        f"sim: --address {federation.address}: the server uses TLS; give its certificate authority with --ca"
    ]


@pytest.mark.parametrize(
    "secured", [pytest.param(False, id="plain", marks=pytest.mark.nightly), pytest.param(True, id="tls")]
)
def test_connections_of_other_programs_change_nothing(
    federation: Federation, small: Small, certificates: Path, secured: bool
) -> None:
    """Random bytes, 1000 connections without a handshake, and 50 gRPC streams without a message.

    With TLS also a client with a wrong CA and one without TLS, which get one line each.
    """
    authority = certificates / "ca.pem"
    own = [f"--certificate={certificates / 'server.pem'}", f"--private-key={certificates / 'server.key'}"]
    shared = [f"--ca={authority}"] if secured else []
    server = federation.server(*FEW, "--num-rounds", "1", *(own if secured else []), *shared)
    server.wait_for("waiting for 2 more clients")
    if secured:
        _tls_accepts_the_right_authority_only(federation, certificates)
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
    simulated = small(num_clients=2, partitioner="iid", clients_per_round=None, fraction_fit=1.0, num_rounds=1)
    assert sha256(federation.run.model_path) == sha256(simulated.model_path)


def test_too_few_clients_stop_the_run_and_completed_rounds_are_kept(federation: Federation) -> None:
    server = federation.server(*FEW, "--num-rounds", "2000", "--round-timeout", "4")
    clients = [federation.client(i, *FEW) for i in range(2)]
    server.wait_for("round 2/")
    clients[0].process.kill()
    assert server.end() == 1
    assert "sim: waiting for 1 more client, 1 of 2 are connected" in server.lines
    line = "--min-clients 2: only 1 connected within --round-timeout 4 s"
    assert server.lines[-1] == f"sim: {line}"
    assert clients[1].end() == 1
    assert clients[1].lines[-1] == f"sim: the server stopped: {line}"
    assert "sim: client 1 takes part with 718 examples" in clients[1].lines
    rounds = federation.run.rounds()
    assert rounds["round"].tolist() == list(range(len(rounds)))
    assert len(rounds) >= 3
    assert federation.run.model_path.is_file()


def test_refused_clients_print_the_reason_and_the_others_continue(federation: Federation) -> None:
    server = federation.server(*FEW, "--num-rounds", "1")
    first = federation.client(0, *FEW)
    server.wait_for("client 0 joined")
    wrong = {
        "taken": ([*FEW], "client 0 was refused: --client-id 0: another client has this number"),
        "count": (["--num-clients", "3"], "client 0 was refused: --num-clients 3: the run has 2"),
        "few": (["--num-clients", "1"], "client 0 was refused: --num-clients 1: the server waits for --min-clients 2"),
        "shape": (
            [*FEW, "--dataset", "synthetic", "--image-size", "28"],
            "client 0 was refused: its inputs are 3×28×28 with 10 classes, but those of the run are 1×32×32",
        ),
        "model": ([*FEW, "--model", "Mlp"], "client 0 was refused: its model has "),
    }
    refused = {name: federation.client(0, *words, name=name) for name, (words, _) in wrong.items()}
    for name, program in refused.items():
        assert program.end() == 2, program.lines
        *before, line = program.lines
        assert line.startswith(f"sim: {wrong[name][1]}")
        assert before == [f"sim: client 0 has found the server at {federation.address} and waits to be called"]
    second = federation.client(1, *FEW)
    assert [program.end() for program in (server, first, second)] == [0, 0, 0], server.lines
    assert sum("was refused" in line for line in server.lines) == len(wrong)


def test_an_interrupted_server_leaves_a_complete_folder_and_waits_for_no_client(
    federation: Federation, command: Sim
) -> None:
    server = federation.server(*FEW, "--num-rounds", "2000")
    clients = [federation.client(i, *FEW) for i in range(2)]
    server.wait_for("round 1/")
    clients[1].send(signal.SIGSTOP)  # a client that never returns
    server.wait_for("round 1/")
    server.send(signal.SIGTERM)
    assert server.end() == 130
    assert server.lines[-1] == "sim: interrupted; what was done is on disk"
    for path in (federation.run.model_path, federation.run.accuracy_path):
        assert path.stat().st_size > 1000
    assert clients[0].end() == 1
    resumed = command("run", "--resume", str(federation.run.path))
    assert resumed.returncode == 2
    assert " has no checkpoint to resume from: sim server made it, whose clients keep their own state" in resumed.stderr


def test_a_server_that_dies_is_one_line(federation: Federation) -> None:
    server = federation.server(*FEW, "--num-rounds", "2000")
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
    assert result.stderr.splitlines() == [
        f"sim: no server at {address} yet; waits up to 1 s for one",
        f"sim: --address {address}: no server within --max-wait 1 s: Connection refused",
    ]
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
        (["server", "--client-timeout", "5"], "--client-timeout 5.0: belongs to sim run; whoever starts the cli"),
        (["server", "--checkpoint-every", "5"], "--checkpoint-every 5: belongs to sim run; a run over a net"),
        (["client", "--client-id", "0", "--niceness", "3"], "--niceness 3: belongs to sim run; whoever starts the cli"),
        (
            ["server", "--local-training", "vectorized"],
            "--local-training vectorized: belongs to sim run; each client of",
        ),
        (
            ["client", "--client-id", "0", "--vectorized-clients", "2"],
            "--vectorized-clients 2: belongs to sim run; each",
        ),
        (["client"], "--client-id is missing: must be from 0 to num_clients - 1"),
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


@pytest.mark.network
def test_the_data_and_the_partitioner_may_decide_which_client_ids_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_grpc_proxy", "")  # join sets it

    def joined(client_id: int, **settings: Any) -> None:
        config = RunConfig(device="cpu", **settings)
        join_as_client(config, ClientOptions(address=f"127.0.0.1:{free_port()}", client_id=client_id, max_wait=0))

    few = {"dataset": "synthetic", "num_examples": 300}
    sizes = {**few, "partitioner": "size", "partitioner_args": {"partition_sizes": "2," * 100 + "2"}}
    for client_id, last, settings in (
        (5, 4, {**few, "num_clients": 5}),
        (101, 100, sizes),
        (30, 29, {"dataset": "fedprox-synthetic"}),
    ):
        with pytest.raises(ConfigError, match=f"^--client-id {client_id}: must be from 0 to num_clients - 1 = {last}$"):
            joined(client_id, **settings)
    with pytest.raises(EngineError, match="no server"):
        joined(100, **sizes)


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_help_has_no_flag_that_a_network_refuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(command: str) -> set[str]:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        return set(re.findall("^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))

    simulated = {flag_of(setting) for setting in SIMULATED_ONLY}
    assert {"--strategy", "--lr", "--address"} <= shown(name)
    assert shown(name).isdisjoint(simulated)
    assert simulated <= shown("run")


def test_certificates_that_do_not_fit(command: Sim, certificates: Path, tmp_path: Path) -> None:
    own, other = certificates, certificates / "other"
    (tmp_path / "empty.pem").write_text("nothing\n")
    os.mkfifo(tmp_path / "pipe")
    for certificate, key, authority, line in (
        (own / "server.pem", other / "server.key", own / "ca.pem", "cannot be used together: key values mismatch"),
        (own / "server.pem", own / "server.key", tmp_path / "empty.pem", "holds no certificate in PEM form"),
        (tmp_path / "pipe", own / "server.key", own / "ca.pem", "pipe: is no file, and it is read more than once"),
        (own / "server.pem", tmp_path / "pipe", own / "ca.pem", "pipe: is no file, and it is read more than once"),
    ):
        words = [f"--certificate={certificate}", f"--private-key={key}", f"--ca={authority}"]
        result = command("server", "--address", f"127.0.0.1:{free_port()}", *words)
        assert result.returncode == 2
        assert line in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_comments_between_certificates_may_have_any_letters(certificates: Path, tmp_path: Path) -> None:
    content, comment = (certificates / "ca.pem").read_bytes(), "# Behörde: eigene\n".encode()
    (tmp_path / "ca.pem").write_bytes(comment + content + comment)
    names = {"certificate": "server.pem", "private_key": "server.key"}
    paths = {name: str(certificates / file) for name, file in names.items()}
    options = ServerOptions(address="localhost:8080", ca=str(tmp_path / "ca.pem"), **paths)  # type: ignore[arg-type]
    found = options.certificates()
    assert found is not None
    assert found[0] == b"# Beh??rde: eigene\n" + content + b"# Beh??rde: eigene\n"
    (tmp_path / "ca.pem").write_bytes(content.replace(b"MII", "MÜI".encode()))
    with pytest.raises(ConfigError, match="holds no certificate in PEM form"):
        options.certificates()


class _Answering(ClientProxy):
    """A connection that answers each request with what the test says."""

    def __init__(self, cid: str, answer: Any) -> None:
        super().__init__(cid)
        self.answer = answer
        self.refused = threading.Event()

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        if ins.config:
            self.reason = str(ins.config[REFUSED])
            self.refused.set()
        return GetPropertiesRes(_OK, self.answer)

    def get_parameters(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError

    def fit(self, ins: Any, timeout: float | None, group_id: int | None) -> FitRes:
        return self.answer  # type: ignore[no-any-return]

    def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> EvaluateRes:
        return self.answer  # type: ignore[no-any-return]

    def reconnect(self, ins: Any, timeout: float | None, group_id: int | None) -> DisconnectRes:
        return DisconnectRes("")


class _One:
    """The connections of a run with one client, which said that it has 10 examples."""

    def __init__(self, answer: Any) -> None:
        self.proxy = _Answering("0", answer)

    def wait_for_enough(self) -> None: ...

    def unregister(self, client: ClientProxy) -> None: ...

    def proxy_of(self, client_id: int) -> ClientProxy:
        return self.proxy

    def num_examples_of(self, client_id: int) -> int:
        return 10


_OK = Status(Code.OK, "")
_SENT = [np.zeros((2, 3), np.float32)]


def _answer(answer: Any) -> ClientResult:
    worker: Any = SimpleNamespace(runtime=SimpleNamespace(dataset=SimpleNamespace(num_test_examples=20)))
    phase: Phase = "fit" if isinstance(answer, FitRes) else "evaluate"
    chunk = Chunk(phase, 1, [Task(0, {})], _SENT, summed=False)
    (result,) = next(iter(RemoteDispatcher(_One(answer), worker, {}, 60).execute([chunk]))).results
    return result


def _fit_res(num_examples: int = 10, metrics: Any = None, tensors: Any = None) -> FitRes:
    content = ndarrays_to_parameters(_SENT) if tensors is None else Parameters(tensors, "numpy.ndarray")
    return FitRes(_OK, content, num_examples, metrics or {})


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_fit_res(11), "fit returned num_examples 11; it must be from 0 to 10"),
        (_fit_res(2**62), "fit returned num_examples 4611686018427387904; it"),
        (_fit_res(-7), "fit returned num_examples -7; it must be from 0 to 10"),
        (_fit_res(metrics={"accuracy": 57.0}), "fit returned accuracy 57.0; a fraction 0–1 is expected"),
        (_fit_res(metrics={"accuracy": -0.5}), "fit returned accuracy -0.5; a fraction"),
        (_fit_res(metrics={"accuracy": float("nan")}), "fit returned accuracy nan; a fraction"),
        (_fit_res(metrics={"loss": float("nan")}), "it returned the loss nan; a number is needed"),
        (_fit_res(metrics={"sim_seconds": 0.0, "sim_loss": float("nan")}), "it returned the loss nan"),
        (EvaluateRes(_OK, 1.0, 21, {}), "evaluate returned num_examples 21; it must be from 0 to 20"),
        (EvaluateRes(_OK, float("nan"), 10, {}), "it returned the loss nan"),
        (EvaluateRes(_OK, 1.0, 10, {"accuracy": 57.0}), "evaluate returned accuracy 57.0"),
        (
            _fit_res(tensors=[_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (400000000000,), }")]),
            "fit returned an array of shape (400000000000,) and type float32 at position 0; the model has (2, 3)",
        ),
        (_fit_res(tensors=[_npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }")]), "fit returned an ar"),
        (_fit_res(tensors=[b"PK\x03\x04"]), "fit returned no array at position 0"),
        (_fit_res(tensors=[]), "fit returned 0 arrays, the model has 1"),
    ],
)
def test_an_answer_that_cannot_be_true_is_the_failure_of_its_client(answer: Any, error: str) -> None:
    result = _answer(answer)
    assert result.error is not None
    assert result.error.startswith(f"WrongReturnError: {error}")


def test_an_answer_within_the_bounds_is_taken() -> None:
    assert _answer(_fit_res(10, {"accuracy": 1.0, "sim_seconds": 0.0})).error is None


def test_an_evaluation_may_give_metrics_and_no_loss() -> None:
    answer = _answer(EvaluateRes(_OK, float("nan"), 10, {"accuracy": 0.5}))
    assert (answer.error, answer.metrics) == (None, {"accuracy": 0.5})
    as_an_app = _answer(_fit_res(10, ConfigRecord({"accuracy": 1.0})))  # how Flower's apps deliver metrics
    assert (as_an_app.error, as_an_app.metrics) == (None, {"accuracy": 1.0})
    assert _answer(EvaluateRes(_OK, 1.0, 20, {"accuracy": 0.0})).error is None
    assert _answer(_fit_res(10, {"sim_seconds": -1e300})).seconds >= 0


def test_the_error_of_a_client_is_bounded_and_printable() -> None:
    error = _answer(
        FitRes(Status(Code.FIT_NOT_IMPLEMENTED, "\x1b[2J\r\n" + "e" * 50_000_000), Parameters([], ""), 0, {})
    )
    assert error.error is not None
    assert error.error.startswith("\\x1b[2J e")
    assert len(error.error) < 3000


def _registry(**given: Any) -> Registry:
    choices: dict[str, Any] = {"num_clients": None, "most_clients": 1000, "min_clients": 2, **given}
    return Registry(_SHAPE, timeout_seconds=60, introduction_seconds=60, **choices)


_SHAPE = Shape("1×2×2", 10, 6, "sha256")


def _join(registry: Registry, name: str, **said: Any) -> _Answering:
    identity = Identity(**vars(_SHAPE), client_id=0, num_clients=2, num_examples=5, examples="")
    connection = _Answering(name, {**identity.to_properties(), **said})
    registry.register(connection)
    return connection


class _Leaving(_Answering):
    """A connection that ends without an answer when the test says so."""

    def __init__(self) -> None:
        super().__init__("leaving", {})
        self.leaves = threading.Event()

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        self.leaves.wait(60)
        raise ConnectionError("gone")


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_connection_that_ends_after_the_run_is_not_said(is_closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    registry, connection = _registry(), _Leaving()
    registry.register(connection)
    if is_closed:
        registry.close(None)
    connection.leaves.set()
    wait_until(lambda: not registry._connections)
    assert caplog.messages == ([] if is_closed else ["a connection did not identify itself: gone"])


def test_the_claim_of_a_stranger_excludes_nobody() -> None:
    registry = _registry()
    billion = _join(registry, "billion", num_clients=10**9)
    assert billion.refused.wait(60)
    assert billion.reason == "client 0 was refused: --num-clients 1000000000: at most 1000 are possible in this run"
    possible = _join(registry, "possible", num_clients=900)
    wait_until(lambda: registry.num_available() == 1)
    _join(registry, "first")
    _join(registry, "second", client_id=1)
    registry.wait_for_enough()
    assert (registry.num_clients, list(registry.clients)) == (2, [0, 1])
    assert possible.refused.wait(60)
    assert possible.reason == "client 0 was refused: --num-clients 900: the run has 2"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"num_examples": 2**53 + 1},
            "client 0 was refused: it has 9007199254740993 training examples; the number mus",
        ),
        (
            {"protocol_version": "\x1b[31m" + "x" * 100_000},
            "the client uses version \\x1b[31mxxxxx … (99985 characters",
        ),
        ({"client_id": "\x1b]0;"}, "the client's client_id is '\\x1b]0;', not of type int"),
        ({"image_shape": "\x1b" + "y" * 100_000}, "client 0 was refused: its inputs are \\x1byyyy"),
    ],
)
def test_what_a_stranger_says_is_bounded_and_printable(said: dict[str, Any], reason: str) -> None:
    stranger = _join(_registry(), "stranger", **said)
    assert stranger.refused.wait(60)
    assert stranger.reason.startswith(reason)
    assert len(stranger.reason) < 500


@pytest.mark.parametrize(
    ("first", "last", "reason"), [(-20, -10, "certificate has expired"), (10, 20, "certificate is not yet valid")]
)
def test_the_server_names_a_certificate_that_no_client_accepts(
    tmp_path: Path, first: int, last: int, reason: str
) -> None:
    """The certificate is its own authority, valid from ``first`` to ``last`` days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]), datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now + timedelta(first)).not_valid_after(now + timedelta(last))
    made = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(key, SHA256())
    certificate, private_key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    private_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    options = ServerOptions(certificate=str(certificate), private_key=str(private_key), ca=str(certificate))
    with pytest.raises(ConfigError, match=f"--certificate {certificate}: clients with --ca .* refuse it: {reason}"):
        options.certificates()


@pytest.mark.network
def test_of_two_servers_that_start_at_one_address_one_is_refused() -> None:
    options = ServerOptions(address=f"127.0.0.1:{free_port()}")
    with _reserve(options), pytest.raises(ConfigError, match="the port is in use; choose another"):
        _reserve(options)
    _reserve(options).close()
