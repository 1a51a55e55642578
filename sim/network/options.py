"""Where the server is and how it is reached: settings of ``sim server`` and ``sim client`` beside the run's own.

They are not part of the run's config, so that one config file serves ``sim run``, ``sim server`` and
``sim client``.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sim.config.fields import check, setting
from sim.errors import ConfigError

NETWORK = "network"


@dataclass(frozen=True, kw_only=True)
class _Options:
    address: str = setting("127.0.0.1:8080", "host:port of the server", NETWORK)
    ca: str | None = setting(None, "PEM file of the authority that signed the server's certificate", NETWORK)
    insecure: bool = setting(
        False, "without TLS beyond this machine: whoever is on the way reads and changes everything", NETWORK
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
        """The host of ``address``."""
        return self._parsed[0]

    @property
    def port(self) -> int:
        """The port of ``address``."""
        return self._parsed[1]

    @property
    def _parsed(self) -> tuple[str, int]:
        from flwr.supercore.address import parse_address  # flwr is heavy, and flags are made from this file

        parsed = parse_address(self.address)
        if parsed is None or not parsed[0] or parsed[1] == 0:
            raise ConfigError(
                f"--address {self.address}: must be host:port with a port from 1 to 65535, e.g. 127.0.0.1:8080 or "
                "[::1]:8080"
            )
        return parsed[0], parsed[1]

    def resolve(self) -> list[tuple[Any, ...]]:
        """Return the socket addresses behind ``address``.

        Raises:
            ConfigError: the address does not resolve, or leads off this machine without TLS or ``--insecure``.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"--address {self.address}: the host does not resolve: {reason}") from None
        local = all(ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)  # type: ignore[union-attr]
        if not local and not self.insecure and self.ca is None:
            raise ConfigError(f"--address {self.address}: is not only this machine, so it needs {self._tls_flags}")
        return found

    _tls_flags = "TLS (--ca) or a spelled-out --insecure"


@dataclass(frozen=True, kw_only=True)
class ServerOptions(_Options):
    """Knobs of ``sim server``."""

    min_clients: int | None = setting(
        None,
        "clients that must be there for a round to begin; all of --num-clients, or 2 where that is not given, unless "
        "given",
        NETWORK,
        low=1,
    )
    round_timeout: float = setting(
        3600.0,
        "how long to wait for the answer of one client, and in the midst of a run for --min-clients, before giving up",
        NETWORK,
        unit="seconds",
        above=0,
        high=10_000_000,
    )
    certificate: str | None = setting(None, "PEM file of the server's certificate, for TLS", NETWORK)
    private_key: str | None = setting(None, "PEM file of the certificate's private key, for TLS", NETWORK)

    _tls_flags = "TLS (--certificate, --private-key and --ca) or a spelled-out --insecure"

    def certificates(self) -> tuple[bytes, bytes, bytes] | None:
        """Return (authority, certificate, private key) as Flower takes them; None without TLS.

        Raises:
            ConfigError: one is missing or unreadable, or the key is not that of the certificate.
        """
        if self.ca is None and self.certificate is None and self.private_key is None:
            return None
        if self.ca is None or self.certificate is None or self.private_key is None:
            raise ConfigError("TLS needs all of --certificate, --private-key and --ca")
        authority = read_authority(self.ca)
        certificate = _read("--certificate", self.certificate)
        private_key = _read("--private-key", self.private_key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With a password of its own, so that a locked key is an error, not a question on the terminal.
            context.load_cert_chain(self.certificate, self.private_key, password="")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise ConfigError(
                f"--certificate {self.certificate} and --private-key {self.private_key}: cannot be used together: "
                f"{reason.replace('_', ' ').lower()}"
            ) from None
        return authority, certificate, private_key


@dataclass(frozen=True, kw_only=True)
class ClientOptions(_Options):
    """Knobs of ``sim client``."""

    client_id: int | None = setting(None, "which partition is this client's, from 0 to num_clients - 1", NETWORK, low=0)
    max_wait: float = setting(
        60.0, "how long to wait for a server that is not there yet", NETWORK, unit="seconds", low=0, high=10_000_000
    )


def networked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run over a network: clients that are connected all train, unless told otherwise."""
    return given if {"fraction_fit", "clients_per_round"} & set(given) else {"fraction_fit": 1.0, **given}


def read_authority(path: str) -> bytes:
    """Read the certificates of an authority.

    Raises:
        ConfigError: the file is missing or holds no certificate.
    """
    content = _read("--ca", path)
    try:
        ssl.create_default_context(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"--ca {path}: holds no certificate in PEM form") from None
    return content


def _read(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
