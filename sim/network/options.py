"""The settings of ``sim server`` and ``sim client`` for the network: where the server is and how it is reached.

They are not part of the run's config, so that ``sim run``, ``sim server`` and ``sim client`` can use the same config
file.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sim.config.fields import check, flag_of, given_as, setting
from sim.config.virtual_time import VirtualTimeConfig
from sim.disk import check_is_file
from sim.errors import ConfigError

NETWORK = "network"


@dataclass(frozen=True, kw_only=True)
class _Options:
    address: str = setting("127.0.0.1:8080", "host:port of the server", NETWORK)
    ca: str | None = setting(
        None, "PEM file of the certificate authority (CA) that signed the server's certificate", NETWORK
    )
    insecure: bool = setting(
        False, "allow other machines without TLS; then others on the network can read and change all data", NETWORK
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            checked = check(type(self), option, value, f"{option.name} = {value!r}")
            object.__setattr__(self, option.name, checked)
        if self.insecure and self.ca is not None:
            raise ConfigError(f"--insecure and --ca {self.ca}: give one of the two")

    @property
    def host(self) -> str:
        """Return the host of ``address``, without the brackets of an IPv6 address."""
        return self._parsed[0]

    @property
    def port(self) -> int:
        """Return the port of ``address``."""
        return self._parsed[1]

    @property
    def _parsed(self) -> tuple[str, int]:
        parsed = _parse_address(self.address)
        if parsed is None:
            raise ConfigError(
                f"--address {self.address}: must be host:port with a port from 1 to 65535, e.g. 127.0.0.1:8080 or "
                "[::1]:8080"
            )
        return parsed

    def resolve(self) -> list[tuple[Any, ...]]:
        """Return the socket addresses of ``address``, as ``socket.getaddrinfo`` gives them.

        Raises:
            ConfigError: the host does not resolve, or it is another machine without TLS or ``--insecure``.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"--address {self.address}: the host does not resolve: {reason}") from None
        local = all(ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)  # type: ignore[union-attr]
        if not local and not self.insecure and self.ca is None:
            raise ConfigError(
                f"--address {self.address}: is not limited to this machine, so it needs {self._tls_flags}"
            )
        return found

    _tls_flags = "TLS (--ca) or --insecure"


@dataclass(frozen=True, kw_only=True)
class ServerOptions(_Options):
    """The settings of ``sim server`` for the network."""

    min_clients: int | None = setting(
        None,
        "number of clients that must be connected before a round begins; if not given, all of --num-clients, or 2 if "
        "that is not given either",
        NETWORK,
        low=1,
    )
    round_timeout: float = setting(
        3600.0,
        "longest time to wait for the result of a client and, after the first round has begun, for --min-clients to be "
        "connected",
        NETWORK,
        unit="seconds",
        above=0,
        high=10_000_000,
    )
    certificate: str | None = setting(None, "PEM file of the server's certificate, for TLS", NETWORK)
    private_key: str | None = setting(None, "PEM file of the certificate's private key, for TLS", NETWORK)

    _tls_flags = "TLS (--certificate, --private-key and --ca) or --insecure"

    def certificates(self) -> tuple[bytes, bytes, bytes] | None:
        """Return the content of the PEM files (authority, certificate, private key) for Flower; None without TLS.

        Raises:
            ConfigError: a file is missing or cannot be read, the key does not belong to the certificate, or no client
                would accept the certificate: it is not signed by the authority, has expired or is not valid yet.
        """
        if self.ca is None and self.certificate is None and self.private_key is None:
            return None
        if self.ca is None or self.certificate is None or self.private_key is None:
            raise ConfigError("TLS needs all of --certificate, --private-key and --ca")
        authority = read_authority(self.ca)
        certificate = _read("--certificate", self.certificate, again=True)
        private_key = _read("--private-key", self.private_key, again=True)
        for flag, path, content, kind in (
            ("--certificate", self.certificate, certificate, "CERTIFICATE"),
            ("--private-key", self.private_key, private_key, "PRIVATE KEY"),
        ):
            if f"{kind}-----".encode() not in content:
                raise ConfigError(f"{flag} {path}: holds no {kind.lower()} in PEM form")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With a password, an encrypted key is an error; without one, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(self.certificate, self.private_key, password="")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise ConfigError(
                f"--certificate {self.certificate} and --private-key {self.private_key}: cannot be used together: "
                f"{reason.replace('_', ' ').lower()}"
            ) from None
        mismatch = _reason_against(context, authority, None)
        if mismatch is not None:
            raise ConfigError(f"--certificate {self.certificate}: clients with --ca {self.ca} refuse it: {mismatch}")
        if not self._listens_everywhere:
            mismatch = _reason_against(context, authority, self.host)
            if mismatch is not None:  # clients may know the server by another name
                message = "note: --certificate %s: clients that connect to %s refuse it: %s"
                logging.getLogger("sim").warning(message, self.certificate, self.host, mismatch)
        return authority, certificate, private_key

    @property
    def _listens_everywhere(self) -> bool:
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True)
class ClientOptions(_Options):
    """The settings of ``sim client`` for the network."""

    client_id: int | None = setting(
        None, "number of this client, from 0 to num_clients - 1; it determines the partition", NETWORK, low=0
    )
    max_wait: float = setting(
        60.0,
        "longest time to wait for a server that cannot be reached yet",
        NETWORK,
        unit="seconds",
        low=0,
        high=10_000_000,
    )


# What belongs to the processes of a simulation, and to the checkpoints from which it is resumed.
_OF_SIMULATIONS = (
    "num_cpus", "num_gpus", "engine", "ray_address", "niceness", "max_retries", "client_timeout",
    "local_training", "vectorized_clients", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip

# All that is refused or has nothing to do over a network, which --help therefore leaves out.
SIMULATED_ONLY = frozenset((
    *_OF_SIMULATIONS, *VirtualTimeConfig.__annotations__, "app", "client_fn", "run_config", "attack", "attack_share",
    "attack_args", "validation_share", "validation_metric", "patience", "final_evaluate",
))  # fmt: skip


# What the server decides, whatever a client was given.
OF_THE_SERVER = (
    "name", "results_dir", "track", "fraction_evaluate", "evaluate_every", "test_every", "target_accuracy",
    "target_metric", "fraction_fit", "clients_per_round", "num_rounds", "client_dropout", "sample_seed", "stragglers",
    "straggler_policy", "strategy", "strategy_args", "server_lr", "local_parameters", "server_strategy", "server_args",
    "dp", "dp_args", "on_client_error",
)  # fmt: skip


def check_flags(flags: Mapping[str, Any]) -> None:
    """Check that no flag would be without effect over a network; a config file may be that of a simulation too.

    Raises:
        ConfigError: one would be.
    """
    for name in _OF_SIMULATIONS:
        if name in flags:
            reason = "whoever starts the clients of a network decides how their processes are executed"
            if "checkpoint" in name:
                reason = "a run over a network has no checkpoints, from which it could be resumed"
            elif name in ("local_training", "vectorized_clients"):
                reason = "each client of a network trains in a process of its own"
            raise ConfigError(f"{given_as(name, flags[name])}: belongs to sim run; {reason}")


def networked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run over a network: all connected clients train, unless ``given`` says otherwise.

    Raises:
        ConfigError: a Flower program, whose clients Flower's own SuperNodes execute, or an attack.
    """
    for name in ("app", "client_fn"):
        if given.get(name) is not None:
            raise ConfigError(
                f"{flag_of(name)} {given[name]}: a Flower program is only simulated, by sim run or sim app"
            )
    if given.get("attack") is not None:
        raise ConfigError(
            f"--attack {given['attack']}: attacks are only simulated, by sim run; whoever starts a client of a network "
            "decides what it sends"
        )
    if given.get("compress"):
        pairs = " ".join(f"{key}={value}" for key, value in given["compress"].items())
        raise ConfigError(
            f"--compress {pairs}: encodings are only simulated, by sim run; over a network arrays are sent as they are"
        )
    if given.get("validation_share"):
        raise ConfigError(
            f"--validation-share {given['validation_share']:g}: is held out by sim run only; the clients of a network "
            "have their own data"
        )
    if given.get("final_evaluate"):
        raise ConfigError("--final-evaluate: asks clients that may no longer be connected; it belongs to sim run")
    return given if {"fraction_fit", "clients_per_round"} & set(given) else {"fraction_fit": 1.0, **given}


def _reason_against(server: ssl.SSLContext, authority: bytes, host: str | None) -> str | None:
    """Return why a client that trusts ``authority`` refuses this server; None if it does not.

    Client and server shake hands in memory, so the reason is that which a client gets.

    Args:
        host: the name by which the client knows the server; None to accept any.
    """
    client = ssl.create_default_context(cadata=authority.decode("ascii"))
    client.check_hostname = host is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(3):  # each end needs at most three turns in TLS 1.2 and 1.3
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except ssl.SSLError as error:
                return (error.reason or str(error)).replace("_", " ").lower()
    return None


def _parse_address(address: str) -> tuple[str, int] | None:
    """Split ``host:port`` or ``[IPv6]:port``; return None if there is no host or the port is not from 1 to 65535."""
    host, _, port_text = address.rpartition(":")
    try:
        port = int(port_text)
    except ValueError:
        return None
    if not host or "://" in address or not 1 <= port <= 65535:
        return None
    bare = host.replace("[", "").replace("]", "")
    try:
        ip_address(bare)
    except ValueError:
        return host, port
    return bare, port


def read_authority(path: str) -> bytes:
    """Return the content of a PEM file with the certificates of an authority; its comments are made ASCII.

    Raises:
        ConfigError: the file is missing or holds no certificate.
    """
    text = _read("--ca", path).decode("ascii", errors="replace").replace("\ufffd", "?")
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"--ca {path}: holds no certificate in PEM form") from None
    return text.encode()


def _read(flag: str, path: str, *, again: bool = False) -> bytes:
    try:
        check_is_file(Path(path), or_pipe=not again, read_again=again)
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
