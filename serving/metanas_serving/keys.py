"""From a caller's idempotency key to the id of its task.

    Keys           the secret of a store  ->  keys
    Keys.task_id   a key  ->  the id; without a key, a new one

The id of a task that has a key is a keyed hash of it, so that the store alone tells whether there is
such a task: no index that a crash could leave behind. The secret keeps ids from being guessed by who
guesses keys; it lies in the store, so that keys outlive the server.
"""

import hashlib
import hmac
import uuid

from metanas_serving.errors import InvalidRequestError

MAX_KEY_CHARACTERS = 256


class Keys:
    """Keys of one store."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

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
