"""From gRPC's errors to ours: the one translator.

    translate     a grpc.RpcError and what was asked  ->  an error of the tree in ``errors``
    job_failure   what a job ended with               ->  the same

Every message ends with what to do.
"""

from collections.abc import Iterable

import grpc

from metanas_client.errors import (
    AuthenticationError,
    DataLossError,
    DeadlineExceededError,
    InvalidRequestError,
    JobNotFoundError,
    KeyTakenError,
    MetaNASClientError,
    PreconditionError,
    RequestCancelledError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    TaskNotFoundError,
)

_TYPES: dict[grpc.StatusCode, type[MetaNASClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: TaskNotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.ALREADY_EXISTS: KeyTakenError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
}

_REMEDIES: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAUTHENTICATED: "pass token to the client, or set METANAS_TOKEN",
    grpc.StatusCode.NOT_FOUND: "client.tasks() lists the tasks that the server has",
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        "if it is the size, send fewer or smaller images, PNG or JPEG files instead of arrays, or raise "
        "--max-message-mb at the server and max_message_bytes here; if it is the load, try again later"
    ),
    grpc.StatusCode.CANCELLED: "send the request again if it was not meant to stop",
    grpc.StatusCode.UNAVAILABLE: (
        "check the address and that the server runs, and whether it speaks TLS (root_certificate); while it starts, "
        "client.wait_until_ready() waits for it"
    ),
    grpc.StatusCode.DATA_LOSS: "delete the task and adapt again",
    grpc.StatusCode.UNIMPLEMENTED: "check that it is a MetaNAS Edge server of this client's version",
    grpc.StatusCode.INTERNAL: "the server's log holds the reason",
    grpc.StatusCode.UNKNOWN: "the server's log holds the reason",
}


_RETRY_KEY = "retry-after-ms"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def translate(
    error: grpc.RpcError, *, action: str, address: str, timeout_seconds: float, of_a_job: bool = False
) -> MetaNASClientError:
    """Turn gRPC's error into one of ours.

    Args:
        error: what gRPC raised.
        action: what was asked, for the message, for example "classify".
        address: the server's ``host:port``.
        timeout_seconds: the deadline that the call had.
        of_a_job: whether what was not found is a job, not a task.

    Returns:
        The error to raise from ``error``.
    """
    # Every error of a synchronous call is a grpc.Call too, though the type does not promise it.
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else str(error)) or "no reason given"
    if code is grpc.StatusCode.NOT_FOUND and of_a_job:
        return JobNotFoundError(f"{action} at {address}: {details}", code=code, details=details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        said = f"no answer within {timeout_seconds:g} s ({details})"
        remedy = "pass a larger timeout_seconds, or ask for less at once"
    else:
        said = details
        remedy = _REMEDIES.get(code, "")
    message = f"{action} at {address}: {said}" + (f"; {remedy}" if remedy else "")
    return _TYPES.get(code, ServerError)(
        message, code=code, details=details, retry_after_seconds=_retry_after_seconds(error)
    )


def _retry_after_seconds(error: grpc.RpcError) -> float | None:
    metadata: Iterable[tuple[str, str | bytes]] = ()
    if isinstance(error, grpc.Call):
        metadata = error.trailing_metadata() or ()
    value = next((value for key, value in metadata if key == _RETRY_KEY), None)
    return int(value) / 1000 if isinstance(value, str) and value.isascii() and value.isdigit() else None


def job_failure(number: int, message: str, *, job_id: str) -> MetaNASClientError:
    """The error of a job that ended without a task.

    Args:
        number: its google.rpc code.
        message: the server's own words.
    """
    code = _CODES.get(number, grpc.StatusCode.UNKNOWN)
    remedy = _REMEDIES.get(code, "")
    text = f"job {job_id}: {message}" + (f"; {remedy}" if remedy else "")
    return _TYPES.get(code, ServerError)(text, code=code, details=message)
