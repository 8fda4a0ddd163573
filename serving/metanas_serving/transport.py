"""What a server's connections are made of: plain TCP, or TLS with its certificates.

    server_credentials   the paths of a configuration  ->  TLS for gRPC; None: plain

Files are checked when they are read, for what gRPC says of a bad one does not name it. They are read at the
start, and again for a new connection if they have changed: certificates are renewed while a server runs.
"""

import logging
import ssl
from pathlib import Path

import grpc

from metanas_serving.errors import StartupError

_log = logging.getLogger(__name__)


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
    files = _Files(certificate, key, client_authorities)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        files.changed,  # type: ignore[arg-type]  # the stubs forbid None, gRPC's documentation does not
        require_client_authentication=client_authorities is not None,
    )


class _Files:
    """The files of one server."""

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authorities = client_authorities
        self._stamps = self._look()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold, if that is not what it was; asked for each new connection."""
        if (stamps := self._look()) == self._stamps:
            return None
        self._stamps = stamps
        try:
            configuration = self.read()
        except StartupError as error:
            _log.error("certificates stay as they were: %s", error)
            return None
        _log.info("certificates were read again from %s", self._certificate)
        return configuration

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold.

        Raises:
            StartupError: one cannot be used.
        """
        chain, secret = _read(self._certificate, "--tls-cert"), _read(self._key, "--tls-key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise StartupError(
                f"cannot use --tls-cert {self._certificate} with --tls-key: {_reason(error)}; both have to be PEM, "
                "the key without a password and of the first certificate"
            ) from error
        authorities = None
        if self._client_authorities is not None:
            authorities = _read(self._client_authorities, "--tls-client-ca")
            try:
                context.load_verify_locations(self._client_authorities)
            except (ssl.SSLError, OSError) as error:
                raise StartupError(
                    f"cannot use --tls-client-ca {self._client_authorities}: {_reason(error)}; it has to hold the PEM "
                    "certificates of the authorities that sign callers' certificates"
                ) from error
        return grpc.ssl_server_certificate_configuration([(secret, chain)], root_certificates=authorities)

    def _look(self) -> list[tuple[int, ...]]:
        stamps: list[tuple[int, ...]] = []
        for path in (self._certificate, self._key, self._client_authorities):
            try:
                status = path.stat() if path is not None else None
            except OSError:
                status = None
            stamps.append((status.st_ino, status.st_mtime_ns, status.st_size) if status else ())
        return stamps


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {option} {path}: {error.strerror or error}; pass another file") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
