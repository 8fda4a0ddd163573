"""Errors to gRPC status: the one translator at the border.

    status_of   any exception  ->  status code and the text that the caller reads
    abort       ends a call with it, and says when to try again where that helps

Faults of the server are logged here with their traceback; faults of a request are not, for the
caller is told.
"""

import logging
import math
from typing import NoReturn

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from metanas import errors as core
from metanas_serving import errors

_log = logging.getLogger(__name__)

# The first that fits decides, so a subclass comes before its base.
_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (errors.InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.TaskNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.JobNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.AliasNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.TaskInUseError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.CannotUpdateError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.KeyTakenError, grpc.StatusCode.ALREADY_EXISTS),
    (errors.QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.RateError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.SupportTooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UploadTooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.NotServingError, grpc.StatusCode.UNAVAILABLE),
    (errors.CallerGoneError, grpc.StatusCode.CANCELLED),
    (errors.StoreFaultError, grpc.StatusCode.UNAVAILABLE),
    (errors.TaskLostError, grpc.StatusCode.DATA_LOSS),
    (errors.ServingError, grpc.StatusCode.INTERNAL),
    (core.InvalidTaskError, grpc.StatusCode.INVALID_ARGUMENT),
    (core.InvalidImageError, grpc.StatusCode.INVALID_ARGUMENT),
    (core.InvalidConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (core.AdaptationCancelledError, grpc.StatusCode.CANCELLED),
    (core.DivergedError, grpc.StatusCode.FAILED_PRECONDITION),
    (core.WrongKindError, grpc.StatusCode.FAILED_PRECONDITION),
    (core.NewerVersionError, grpc.StatusCode.FAILED_PRECONDITION),
    (core.ArtifactError, grpc.StatusCode.DATA_LOSS),
)

_OURS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)

# gRPC drops trailers past 8 KiB, and the status text with them.
_MAX_TEXT_CHARACTERS = 2000

_DETAILS_KEY = "grpc-status-details-bin"
RETRY_KEY = "retry-after-ms"
"""Trailing metadata of a call that may be sent again: when, in milliseconds."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The gRPC status of an error; INTERNAL for whatever is not in the two trees."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, _shortened(str(error))
    return grpc.StatusCode.INTERNAL, _shortened(
        f"the server failed with {type(error).__name__}: {error}; its log holds the traceback"
    )


def is_ours(error: Exception) -> bool:
    """Whether an error is a fault of the server, and belongs into its log, and not one of the request."""
    return status_of(error)[0] in _OURS


def abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End the call with the status of ``error``."""
    code, text = status_of(error)
    if code in _OURS:
        # What is ours says itself what happened; of the rest the traceback is needed.
        _log.error("%s: %s", code.name, text, exc_info=None if isinstance(error, errors.ServingError) else error)
    if isinstance(error, errors.ServingError) and error.retry_after_seconds is not None:
        milliseconds = math.ceil(1000 * error.retry_after_seconds)  # not a moment too early
        context.set_trailing_metadata(
            (
                *(context.trailing_metadata() or ()),
                (RETRY_KEY, str(milliseconds)),
                (_DETAILS_KEY, _details(code, text, milliseconds=milliseconds)),
            )
        )
    context.abort(code, text)


def _details(code: grpc.StatusCode, text: str, *, milliseconds: int) -> bytes:
    """The status as google.rpc.Status with google.rpc.RetryInfo, which libraries of other languages read."""
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(milliseconds)
    status = Status(code=code.value[0], message=text)
    status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARACTERS else text[:_MAX_TEXT_CHARACTERS] + " ..."
