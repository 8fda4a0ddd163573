"""Everything that can go wrong in the client, with the gRPC status that it stands for.

    MetaNASClientError
    ├── InvalidRequestError       INVALID_ARGUMENT     a request that can never work
    ├── UnsupportedImageError     (never sent)         something that is not an image, or not a list of them
    ├── TaskNotFoundError         NOT_FOUND            no task of that id
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED   a message over the limit, or too many adaptations waiting
    ├── DeadlineExceededError     DEADLINE_EXCEEDED    no answer within timeout_seconds
    ├── RequestCancelledError     CANCELLED            the call was cancelled, here or by the server
    ├── ServerUnavailableError    UNAVAILABLE          nothing listens there, or the server is stopping
    ├── DataLossError             DATA_LOSS            the stored task does not match its checksum
    ├── ServerError               INTERNAL, UNKNOWN and every other status
    └── ClosedClientError         (never sent)         the client was closed before the call

A message says what was wrong with what was seen, then what to do. An error that came over the
wire is chained from its `grpc.RpcError`; `code` and `details` hold what the server said. Both are
empty where this side refused before anything was sent. Files that cannot be read or written are
plain `OSError`s, which already name the file.

`translate` is the only place that knows gRPC's errors.
"""

import grpc


class MetaNASClientError(Exception):
    """Root of all errors of the client.

    Attributes:
        code: the gRPC status; None where nothing was sent.
        details: the server's own words; empty where nothing was sent.
    """

    def __init__(self, message: str, *, code: grpc.StatusCode | None = None, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class InvalidRequestError(MetaNASClientError, ValueError):
    """The request can never work: correct it before sending it again."""


class UnsupportedImageError(MetaNASClientError, TypeError):
    """Something that cannot be sent as an image, or one image where a list of them belongs."""


class TaskNotFoundError(MetaNASClientError, LookupError):
    """The server has no task of that id."""


class ResourceExhaustedError(MetaNASClientError):
    """A message over the limit, or more adaptations waiting than the server takes."""


class DeadlineExceededError(MetaNASClientError, TimeoutError):
    """The server did not answer within ``timeout_seconds``."""


class RequestCancelledError(MetaNASClientError):
    """The call was cancelled before it finished."""


class ServerUnavailableError(MetaNASClientError, ConnectionError):
    """Nothing listens at the address, or the server is stopping."""


class DataLossError(MetaNASClientError):
    """The stored task does not match its checksum, or a file arrived empty."""


class ServerError(MetaNASClientError):
    """A fault of the server, or an answer that this client does not understand."""


class ClosedClientError(MetaNASClientError, RuntimeError):
    """The client was used after it was closed."""


_TYPES: dict[grpc.StatusCode, type[MetaNASClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: TaskNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
}

_REMEDIES: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.NOT_FOUND: "client.tasks() lists the tasks that the server has",
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        "if it is the size, send fewer or smaller images, PNG or JPEG files instead of arrays, or raise "
        "--max-message-mb at the server and max_message_bytes here; if it is the load, try again later"
    ),
    grpc.StatusCode.CANCELLED: "send the request again if it was not meant to stop",
    grpc.StatusCode.UNAVAILABLE: (
        "check the address and that the server runs; while it starts, client.wait_until_ready() waits for it"
    ),
    grpc.StatusCode.DATA_LOSS: "delete the task and adapt again",
    grpc.StatusCode.UNIMPLEMENTED: "check that it is a MetaNAS Edge server of this client's version",
    grpc.StatusCode.INTERNAL: "the server's log holds the reason",
    grpc.StatusCode.UNKNOWN: "the server's log holds the reason",
}


def translate(error: grpc.RpcError, *, action: str, address: str, timeout_seconds: float) -> MetaNASClientError:
    """Turn gRPC's error into one of ours.

    Args:
        error: what gRPC raised.
        action: what was asked, for the message, for example "classify".
        address: the server's ``host:port``.
        timeout_seconds: the deadline that the call had.

    Returns:
        The error to raise from ``error``.
    """
    # Every error of a synchronous call is a grpc.Call too, though the type does not promise it.
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else str(error)) or "no reason given"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        said = f"no answer within {timeout_seconds:g} s ({details})"
        remedy = "pass a larger timeout_seconds, or ask for less at once"
    else:
        said = details
        remedy = _REMEDIES.get(code, "")
    message = f"{action} at {address}: {said}" + (f"; {remedy}" if remedy else "")
    return _TYPES.get(code, ServerError)(message, code=code, details=details)
