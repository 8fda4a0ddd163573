"""What a server's connections are made of: plain TCP, or TLS with its certificates.

    server_credentials   the paths of a configuration  ->  TLS for gRPC; None: plain

Files are read once, at the start, and checked there: what gRPC says of a bad one does not name it.
"""

import ssl
from pathlib import Path

import grpc

from metanas_serving.errors import StartupError


def server_credentials(
    certificate: Path | None, key: Path | None, client_authorities: Path | None
) -> grpc.ServerCredentials | None:
    """TLS for a server.

    Args:
        certificate: PEM, the server's own first, then those up to its authority; None: no TLS.
        key: PEM, without a password.
        client_authorities: PEM; callers have to show a certificate that one of these signed. None: they
            need none.

    Raises:
        StartupError: a file cannot be read, is not PEM, or the key is not the certificate's.
    """
    if certificate is None or key is None:
        return None
    chain, secret = _read(certificate, "--tls-cert"), _read(key, "--tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise StartupError(
            f"cannot use --tls-cert {certificate} with --tls-key: {_reason(error)}; both have to be PEM, the key "
            "without a password and of the first certificate"
        ) from error
    authorities = None
    if client_authorities is not None:
        authorities = _read(client_authorities, "--tls-client-ca")
        try:
            context.load_verify_locations(client_authorities)
        except (ssl.SSLError, OSError) as error:
            raise StartupError(
                f"cannot use --tls-client-ca {client_authorities}: {_reason(error)}; it has to hold the PEM "
                "certificates of the authorities that sign callers' certificates"
            ) from error
    return grpc.ssl_server_credentials(
        [(secret, chain)], root_certificates=authorities, require_client_auth=authorities is not None
    )


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {option} {path}: {error.strerror or error}; pass another file") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
