"""Checks that a server answers, and that it uses TLS if and only if the client does.

This is done before Flower's client is started, because that client cannot report these errors.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time

from sim.errors import ConfigError, EngineError
from sim.network.options import ClientOptions, read_authority

log = logging.getLogger("sim")

_TRY_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 2.0
# The first bytes that an HTTP/2 client sends: the preface and an empty SETTINGS frame (RFC 9113, section 3.4).
_CONNECTION_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_SETTINGS, _TLS_ALERT = 4, 0x15


def wait_for_server(options: ClientOptions) -> bytes | None:
    """Wait until a gRPC server answers at the address.

    Returns:
        The content of the ``--ca`` file; None without ``--ca``.

    Raises:
        ConfigError: the address does not resolve; only one of server and client uses TLS; the certificate of the server
            is not trusted; or the program that answers is not a gRPC server.
        EngineError: no server answers within ``--max-wait`` seconds.
    """
    places = options.resolve()
    authority = read_authority(options.ca) if options.ca is not None else None
    deadline = time.monotonic() + options.max_wait
    pause, is_waiting = 0.1, False
    while True:
        reason = "no program listens there"
        for family, kind, protocol, _, place in places:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(max(0.1, min(_TRY_SECONDS, deadline - time.monotonic())))
                try:
                    connection.connect(place)
                except OSError as error:
                    reason = error.strerror or str(error) or reason
                    continue
                if _answers_as_expected(connection, options, authority):
                    return authority
                reason = "it accepts connections, but sends nothing"
        if not is_waiting:
            log.info("no server at %s yet; waits up to %g s for one", options.address, options.max_wait)
            is_waiting = True
        if time.monotonic() + pause > deadline:
            raise EngineError(
                f"--address {options.address}: no server within --max-wait {options.max_wait:g} s: {reason}"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _answers_as_expected(connection: socket.socket, options: ClientOptions, authority: bytes | None) -> bool:
    """Return whether the server answers as expected; False if it closes the connection, as a server does at its end.

    Raises:
        ConfigError: the server answers in another way.
    """
    try:
        if authority is None:
            return _is_plain_grpc(connection, options)
        return _is_trusted(connection, options, authority)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"--ca {options.ca}: the server at {options.address} is not trusted: {error.verify_message}"
        ) from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            raise ConfigError(
                f"--ca {options.ca}: the server at {options.address} does not use TLS; start it with --certificate, "
                "--private-key and --ca, or run this client without --ca"
            ) from None
        return False
    except OSError:
        return False


def _is_trusted(connection: socket.socket, options: ClientOptions, authority: bytes) -> bool:
    context = ssl.create_default_context(cadata=authority.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection, server_hostname=options.host) as secured:
        return secured.version() is not None


def _accepts_tls(connection: socket.socket) -> bool:
    """Return whether the server that closed this plain connection accepts a TLS connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(connection.getpeername()[:2], timeout=_TRY_SECONDS) as second:
            context.wrap_socket(second).close()
    except OSError:
        return False
    return True


def _is_plain_grpc(connection: socket.socket, options: ClientOptions) -> bool:
    connection.sendall(_CONNECTION_PREFACE)
    head = connection.recv(9)
    if len(head) >= 4 and head[3] == _SETTINGS:
        return True
    if not head:
        if not _accepts_tls(connection):
            return False
        head = bytes([_TLS_ALERT])
    if head[0] == _TLS_ALERT:
        raise ConfigError(f"--address {options.address}: the server uses TLS; give its certificate authority with --ca")
    raise ConfigError(f"--address {options.address}: a program answers there, but it is not a server of sim")
