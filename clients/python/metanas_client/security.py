"""How a connection is protected: TLS, certificates, the caller's token.

    read_security   arguments, and METANAS_... variables where they say nothing  ->  Security
    open_channel    an address and its Security  ->  a channel that sends the token with each call

A token is never sent in plain text to another machine, unless ``insecure`` says that something else
protects the way.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from metanas_client.errors import InvalidRequestError

Pem: TypeAlias = str | os.PathLike[str] | bytes
"""A PEM file: its path, or its content as bytes."""

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Security:
    """What protects one connection."""

    tls: bool = False
    root_certificates: bytes | None = None
    """Of the authorities that the server's certificate may be of; None: the system's."""
    client_certificate: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


def read_security(
    address: str,
    *,
    tls: bool | None = None,
    root_certificate: Pem | None = None,
    client_certificate: Pem | None = None,
    client_key: Pem | None = None,
    token: str | None = None,
    insecure: bool | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Security:
    """Read what protects the connection to a server.

    Args:
        address: ``host:port``.
        tls: None: METANAS_TLS, or whether a certificate is named.
        root_certificate, client_certificate, client_key, token, insecure: None: METANAS_ROOT_CERTIFICATE,
            METANAS_CLIENT_CERTIFICATE, METANAS_CLIENT_KEY, METANAS_TOKEN, METANAS_INSECURE.

    Raises:
        InvalidRequestError: they contradict each other, a token cannot be one, or it would go to another
            machine in plain text.
        OSError: a file that cannot be read.
    """
    root = root_certificate or environment.get("METANAS_ROOT_CERTIFICATE") or None
    certificate = client_certificate or environment.get("METANAS_CLIENT_CERTIFICATE") or None
    key = client_key or environment.get("METANAS_CLIENT_KEY") or None
    token = token or environment.get("METANAS_TOKEN") or None
    if tls is None:
        asked = _flag(environment, "METANAS_TLS")
        tls = bool(root or certificate or key) if asked is None else asked
    if insecure is None:
        insecure = _flag(environment, "METANAS_INSECURE") or False
    if (certificate is None) != (key is None):
        raise InvalidRequestError("client_certificate and client_key go together; pass both or none")
    if not tls and (root or certificate):
        raise InvalidRequestError("tls is off and a certificate is named; leave the certificate out, or tls on")
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InvalidRequestError("the token has characters that no token has; pass it as `metanas-tokens` printed it")
    if token is not None and not (tls or insecure or _is_loopback(address)):
        raise InvalidRequestError(
            f"the token would go to {address} in plain text; pass root_certificate or tls=True for a server with "
            "TLS, or insecure=True if something else protects the way to it"
        )
    return Security(
        tls=tls,
        root_certificates=_content(root),
        client_certificate=_content(certificate),
        client_key=_content(key),
        token=token,
    )


def open_channel(address: str, security: Security, *, options: Sequence[tuple[str, int]]) -> grpc.Channel:
    """Open a channel; nothing is connected before the first call."""
    if security.tls:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=security.root_certificates,
            private_key=security.client_key,
            certificate_chain=security.client_certificate,
        )
        channel = grpc.secure_channel(address, credentials, options=options)
    else:
        channel = grpc.insecure_channel(address, options=options)
    return channel if security.token is None else grpc.intercept_channel(channel, _Token(security.token))


@dataclass(frozen=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Token(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends a token with every call."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _send(self, continuation: Callable[..., Any], details: grpc.ClientCallDetails, request: Any) -> Any:
        return continuation(
            _Details(
                details.method,
                details.timeout,
                (*(details.metadata or ()), self._entry),
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    # One for all: none looks at requests or answers.
    intercept_unary_unary: Any = _send
    intercept_unary_stream: Any = _send
    intercept_stream_unary: Any = _send
    intercept_stream_stream: Any = _send


def _is_loopback(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    target = address.rpartition("/")[2]  # a scheme before it: dns:///host:port
    target = re.sub(r"^(dns|ipv4|ipv6):", "", target)
    host = target.rpartition(":")[0] if re.search(r"(\]|^[^:]*):\d*$", target) else target
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _flag(environment: Mapping[str, str], name: str) -> bool | None:
    value = environment.get(name)
    if value is None:
        return None
    if value.lower() not in (*_TRUE, *_FALSE):
        raise InvalidRequestError(f"{name} must be 1 or 0, got {value!r}")
    return value.lower() in _TRUE


def _content(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()
