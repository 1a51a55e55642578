"""Is there a server, and does it speak as we do? Asked before Flower's client is started, which cannot tell."""

from __future__ import annotations

import socket
import ssl
import time

from sim.errors import ConfigError, EngineError
from sim.network.options import ClientOptions, read_authority

_SECONDS = 5.0  # for one try
_LONGEST_PAUSE_SECONDS = 2.0
# What an HTTP/2 client says first: the preface and an empty SETTINGS frame (RFC 9113, section 3.4).
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_SETTINGS, _TLS_ALERT = 4, 0x15


def wait_for_server(options: ClientOptions) -> bytes | None:
    """Return when a gRPC server answers at the address; with ``--ca``, return that file's content.

    Raises:
        ConfigError: the address does not resolve; there is a server, but it speaks TLS and we do not, or the other
            way round, or its certificate is not good.
        EngineError: there is none within ``--max-wait``.
    """
    places = options.resolve()
    authority = read_authority(options.ca) if options.ca is not None else None
    deadline = time.monotonic() + options.max_wait
    pause = 0.1
    while True:
        reason = "nobody listens there"
        for family, kind, protocol, _, place in places:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(max(0.1, min(_SECONDS, deadline - time.monotonic())))
                try:
                    connection.connect(place)
                except OSError as error:
                    reason = error.strerror or str(error) or reason
                    continue
                if _speaks_as_we_do(connection, options, authority):
                    return authority
                reason = "it accepts connections, but says nothing"
        if time.monotonic() + pause > deadline:
            raise EngineError(
                f"--address {options.address}: no server within --max-wait {options.max_wait:g} s: {reason}"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _speaks_as_we_do(connection: socket.socket, options: ClientOptions, authority: bytes | None) -> bool:
    """Whether the server answers rightly; False if it breaks off, as one does that is about to end.

    Raises:
        ConfigError: it answers otherwise.
    """
    try:
        if authority is None:
            return _is_plain_grpc(connection, options)
        return _is_trusted(connection, options, authority)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"--ca {options.ca}: the server at {options.address} is not to be trusted: {error.verify_message}"
        ) from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            raise ConfigError(
                f"--ca {options.ca}: the server at {options.address} does not speak TLS; start it with --certificate, "
                "--private-key and --ca, or leave --ca away"
            ) from None
        return False
    except OSError:
        return False


def _is_trusted(connection: socket.socket, options: ClientOptions, authority: bytes) -> bool:
    context = ssl.create_default_context(cadata=authority.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection, server_hostname=options.host) as secured:
        return secured.version() is not None


def _shakes_hands(connection: socket.socket) -> bool:
    """Whether who hung up on a plain connection would have spoken TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(connection.getpeername()[:2], timeout=_SECONDS) as again:
            context.wrap_socket(again).close()
    except OSError:
        return False
    return True


def _is_plain_grpc(connection: socket.socket, options: ClientOptions) -> bool:
    connection.sendall(_HELLO)
    head = connection.recv(9)
    if len(head) >= 4 and head[3] == _SETTINGS:
        return True
    if not head:
        if not _shakes_hands(connection):
            return False
        head = bytes([_TLS_ALERT])
    if head[0] == _TLS_ALERT:
        raise ConfigError(f"--address {options.address}: the server speaks TLS; give --ca with its authority")
    raise ConfigError(f"--address {options.address}: something answers there, but it is no server of sim")
