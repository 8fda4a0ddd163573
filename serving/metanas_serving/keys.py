"""From a caller's idempotency key to the id of its task.

    Keys.open      a store's folder, or none  ->  keys
    Keys.task_id   a key  ->  the id; without a key, a new one

The id of a task that has a key is a keyed hash of it, so that the store alone tells whether there is
such a task: no index that a crash could leave behind. The secret keeps ids from being guessed by who
guesses keys; it lies in the store's folder, so that keys outlive the server.
"""

import hashlib
import hmac
import os
import secrets
import uuid
from pathlib import Path

from metanas.artifact import write_atomically
from metanas.errors import ArtifactError
from metanas_serving.errors import InvalidRequestError, StartupError

MAX_KEY_CHARACTERS = 256

_FILE_NAME = ".secret"
_SECRET_BYTES = 32


class Keys:
    """Keys of one store."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def open(cls, folder: Path | None) -> "Keys":
        """Read the secret of a store's folder, or make one; None: keys end with the server.

        Raises:
            StartupError: it cannot be read or written.
        """
        if folder is None:
            return cls(secrets.token_bytes(_SECRET_BYTES))
        path = folder / _FILE_NAME
        try:
            if not path.exists():
                write_atomically(path, secrets.token_bytes(_SECRET_BYTES))
                os.chmod(path, 0o600)
            secret = path.read_bytes()
        except (OSError, ArtifactError) as error:
            raise StartupError(
                f"cannot use {path}: {error}; allow reading and writing, or choose another --store"
            ) from error
        if len(secret) != _SECRET_BYTES:
            raise StartupError(
                f"{path} has {len(secret)} bytes, not {_SECRET_BYTES}; put the file back as it was, or remove it: "
                "then no idempotency key of the past is known any more"
            )
        return cls(secret)

    def task_id(self, key: str, *, tenant: str = "") -> str:
        """The id of the task of a tenant's key; a new one for the empty key.

        Raises:
            InvalidRequestError: the key is too long.
        """
        if not key:
            return uuid.uuid4().hex
        if len(key) > MAX_KEY_CHARACTERS:
            raise InvalidRequestError(
                f"the idempotency_key has {len(key)} characters, at most {MAX_KEY_CHARACTERS} are taken"
            )
        # Each tenant has a secret of its own, so that one key of two tenants names two tasks.
        secret = hmac.digest(self._secret, tenant.encode(), hashlib.sha256) if tenant else self._secret
        return hmac.digest(secret, key.encode(), hashlib.sha256)[:16].hex()
