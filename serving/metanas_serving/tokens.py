"""Tokens that callers show, and the tenant that each of them stands for.

    new_token      a tenant                 ->  what its caller keeps, and the entry that the server keeps
    Tokens.read    a token file             ->  the tokens of a server
    Tokens.tenant  what a caller has shown  ->  its tenant, or UnauthenticatedError
    FileTokens     the same, of the file as it is now
    read_entries, write_entries             the file, for ``tokens_cli``

A token is ``metanas_ID_SECRET``: the id finds the entry, the secret is 256 random bits. The file holds
SHA-256 of salt and secret; a hash that is slow by design would protect secrets that people choose, these
cannot be guessed, and each call is checked. It knows nothing of gRPC.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from metanas_serving.errors import StartupError, UnauthenticatedError

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_PREFIX = "metanas"
_TENANT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_TOKEN = re.compile(_PREFIX + r"_([0-9a-f]{16})_([0-9a-f]{64})")
_HEXADECIMAL = {"id": 16, "salt": 32, "sha256": 64}

# One text for every reason, so that it does not tell which tokens there are.
_REFUSAL = (
    "no valid token; send the metadata `authorization: Bearer TOKEN` with a token that `metanas-tokens add` made "
    "for this server"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a server keeps of one token. Salt and hash are of no use to who reads them."""

    id: str
    tenant: str
    salt: str
    sha256: str


def new_token(tenant: str) -> tuple[str, Entry]:
    """Make a token.

    Args:
        tenant: 1 to 64 letters, digits, dots, hyphens or underscores; empty for the tenant that owns what a
            server without tokens has learnt.

    Raises:
        StartupError: it cannot be a tenant's name.
    """
    if not _TENANT.fullmatch(tenant):
        raise StartupError(
            f"{tenant[:80]!r} cannot be a tenant: take 1 to 64 letters, digits, dots, hyphens or underscores, the "
            "first a letter or digit; or the empty name"
        )
    identifier, secret, salt = secrets.token_hex(8), secrets.token_hex(32), secrets.token_hex(16)
    return f"{_PREFIX}_{identifier}_{secret}", Entry(identifier, tenant, salt, _hash(salt, secret))


class Tokens:
    """The tokens of one server; never changes."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.id: entry for entry in entries}
        # Compared where there is no such id, so that a wrong id takes as long as a wrong secret.
        self._nobody = Entry("", "", secrets.token_hex(16), secrets.token_hex(32))

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Read a token file.

        Raises:
            StartupError: it cannot be used, or holds no token.
        """
        entries = read_entries(path)
        if not entries:
            raise StartupError(f"{path} holds no token, so no call could pass; make one with `metanas-tokens add`")
        return cls(entries)

    def tenant(self, authorization: str | None) -> str:
        """The tenant of a caller.

        Args:
            authorization: the value of the metadata of that name; None: there was none.

        Raises:
            UnauthenticatedError: it is no token of this server.
        """
        kind, _, token = (authorization or "").partition(" ")
        found = _TOKEN.fullmatch(token)
        identifier, secret = found.groups() if found else ("", "")
        entry = self._entries.get(identifier, self._nobody)
        if not hmac.compare_digest(_hash(entry.salt, secret), entry.sha256) or kind.lower() != "bearer":
            raise UnauthenticatedError(_REFUSAL)
        return entry.tenant


class FileTokens:
    """The tokens of a file, read again within a second of its change; safe to share between threads.

    One that cannot be read any more leaves all as it was, which the log says.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            StartupError: it cannot be used, or holds no token.
        """
        self._path = path
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._stamp = _stamp(path)
        self._now = Tokens.read(path)

    def tenant(self, authorization: str | None) -> str:
        """The tenant of a caller, as of ``Tokens``."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECONDS and self._lock.acquire(blocking=False):
            try:
                self._look_again()
                self._looked_at = now
            finally:
                self._lock.release()
        return self._now.tenant(authorization)

    def _look_again(self) -> None:
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            entries = read_entries(self._path)  # perhaps none: the last one was taken away
        except StartupError as error:
            _log.error("the tokens stay as they were: %s", error)
            return
        self._now = Tokens(entries)
        _log.info("%s was read again: %d tokens", self._path, len(entries))


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file is written or replaced; None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_entries(path: Path) -> list[Entry]:
    """The entries of a token file.

    Raises:
        StartupError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text())
        entries = [Entry(**values) for values in found["tokens"]]
        for entry in entries:
            _check(entry)
        if len({entry.id for entry in entries}) < len(entries):
            raise ValueError("two tokens have one id")
    except OSError as error:
        raise StartupError(
            f"cannot read the token file {path}: {error.strerror or error}; pass another --tokens, or make it with "
            "`metanas-tokens add`"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise StartupError(
            f"{path} is not a token file ({type(error).__name__}: {error}); make one with `metanas-tokens add`"
        ) from error
    return entries


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Write a token file as a whole, readable by its owner only.

    Raises:
        StartupError: it cannot be written.
    """
    text = json.dumps({"tokens": [asdict(entry) for entry in entries]}, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StartupError(f"cannot write the token file {path}: {error.strerror or error}") from error


def _check(entry: Entry) -> None:
    for name, digits in _HEXADECIMAL.items():
        value = getattr(entry, name)
        if not (isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value)):
            raise ValueError(f"{name} of a token is not {digits} digits of 0-9, a-f")
    if not (isinstance(entry.tenant, str) and _TENANT.fullmatch(entry.tenant)):
        raise ValueError(f"{entry.tenant!r} cannot be a tenant")


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()
