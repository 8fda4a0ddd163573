"""Everything that can go wrong in the client, with the gRPC status that it stands for.

    MetaNASClientError
    ├── InvalidRequestError       INVALID_ARGUMENT     a request that can never work
    ├── UnsupportedImageError     (never sent)         something that is not an image, or not a list of them
    ├── TaskNotFoundError         NOT_FOUND            no task of that id
    ├── JobNotFoundError          NOT_FOUND            no job of that id, or it is forgotten
    ├── AuthenticationError       UNAUTHENTICATED      no token, or none that the server knows
    ├── KeyTakenError             ALREADY_EXISTS       an idempotency key of another request
    ├── PreconditionError         FAILED_PRECONDITION  something else has to be so first: the message says what
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED   a message over the limit, or too many adaptations waiting
    ├── DeadlineExceededError     DEADLINE_EXCEEDED    no answer within timeout_seconds
    ├── RequestCancelledError     CANCELLED            the call was cancelled, here or by the server
    ├── ServerUnavailableError    UNAVAILABLE          nothing listens there, or the server is starting or stopping
    ├── DataLossError             DATA_LOSS            the stored task does not match its checksum
    ├── ServerError               INTERNAL, UNKNOWN and every other status
    ├── ClosedClientError         (never sent)         the client was closed before the call
    ├── ModelFileError            (never sent)         an exported file that cannot be used, or answers no number
    └── RuntimeMissingError       (never sent)         nothing here can run the exported file

A message says what was wrong with what was seen, then what to do. An error that came over the
wire is chained from its `grpc.RpcError`; `code` and `details` hold what the server said. Both are
empty where this side refused before anything was sent. Files that cannot be read or written are
plain `OSError`s, which already name the file.

`translation` is the only place that knows gRPC's errors: the tree can be imported where gRPC is not
installed.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


class MetaNASClientError(Exception):
    """Root of all errors of the client.

    Attributes:
        code: the gRPC status; None where nothing was sent.
        details: the server's own words; empty where nothing was sent.
        retry_after_seconds: when the server says that the same request may pass; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        code: "grpc.StatusCode | None" = None,
        details: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = details
        self.retry_after_seconds = retry_after_seconds


class InvalidRequestError(MetaNASClientError, ValueError):
    """The request can never work: correct it before sending it again."""


class UnsupportedImageError(MetaNASClientError, TypeError):
    """Something that cannot be sent as an image, or one image where a list of them belongs."""


class TaskNotFoundError(MetaNASClientError, LookupError):
    """The server has no task of that id."""


class JobNotFoundError(MetaNASClientError, LookupError):
    """The server never had a job of that id, or has forgotten it."""


class AuthenticationError(MetaNASClientError, PermissionError):
    """The server wants a token that it knows, and was shown none."""


class PreconditionError(MetaNASClientError, ValueError):
    """The request does not fit the state that the task is in: an alias points at it, or its kind cannot do that."""


class KeyTakenError(MetaNASClientError, ValueError):
    """The idempotency key was used for another support set, seed or options."""


class ResourceExhaustedError(MetaNASClientError):
    """A message over the limit, or more than the server has room for or allows its caller.

    Where waiting helps, ``retry_after_seconds`` says for how long.
    """


class DeadlineExceededError(MetaNASClientError, TimeoutError):
    """The server did not answer within ``timeout_seconds``."""


class RequestCancelledError(MetaNASClientError):
    """The call was cancelled before it finished."""


class ServerUnavailableError(MetaNASClientError, ConnectionError):
    """Nothing listens at the address, or the server is starting or stopping."""


class DataLossError(MetaNASClientError):
    """The stored task does not match its checksum, or a file arrived empty."""


class ServerError(MetaNASClientError):
    """A fault of the server, or an answer that this client does not understand."""


class ClosedClientError(MetaNASClientError, RuntimeError):
    """The client was used after it was closed."""


class ModelFileError(MetaNASClientError, ValueError):
    """An exported file is damaged, says too little about itself, or is of a later version."""


class RuntimeMissingError(MetaNASClientError, RuntimeError):
    """The runtime that the exported file needs, or its GPU, is missing."""
