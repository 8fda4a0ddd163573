"""Everything that can go wrong in serving, with the gRPC status that ``status`` gives it.

    MetaNASError (of the core)
    └── ServingError                INTERNAL
        ├── StartupError            (exit code 1)        the server cannot start
        ├── InvalidRequestError     INVALID_ARGUMENT     a request that can never work
        ├── UnauthenticatedError    UNAUTHENTICATED      no token, or none of this server
        ├── TaskNotFoundError       NOT_FOUND            no task of that id
        ├── JobNotFoundError        NOT_FOUND            no job of that id
        ├── AliasNotFoundError      NOT_FOUND            no alias of that name
        ├── TaskInUseError          FAILED_PRECONDITION  a task to be deleted that has an alias
        ├── CannotUpdateError       FAILED_PRECONDITION  a task to be updated that is of another kind of image
        ├── KeyTakenError           ALREADY_EXISTS       an idempotency key of another request
        ├── QueueFullError          RESOURCE_EXHAUSTED   more adaptations, joined calls or streams than taken
        │   └── TenantBusyError     RESOURCE_EXHAUSTED   as many adaptations of a tenant as it may have at a time
        ├── RateError               RESOURCE_EXHAUSTED   more calls or adaptations of a tenant than it may have
        ├── QuotaError              RESOURCE_EXHAUSTED   as many tasks of a tenant as it may keep
        ├── SupportTooLargeError    RESOURCE_EXHAUSTED   more images than an adaptation process has memory for
        ├── UploadTooLargeError     RESOURCE_EXHAUSTED   an upload over the limit
        ├── DeadlineError           DEADLINE_EXCEEDED    the deadline came before the task was learnt
        ├── NotServingError         UNAVAILABLE          starting, or draining before the stop
        ├── CallerGoneError         CANCELLED            the caller cancelled, or its deadline passed
        ├── TaskLostError           DATA_LOSS            a stored task that cannot be read any more
        ├── StoreWriteError         INTERNAL             a task that cannot be kept: disk full, no rights
        ├── StoreFaultError         UNAVAILABLE          a store that cannot be read just now
        └── WorkerError             INTERNAL             the adaptation process failed
            └── WorkerDiedError     INTERNAL             it died; sent again, the request may succeed

A message says what was wrong with the numbers seen, then what to do. ``retry_after_seconds`` of an error, where
it has one, goes with it as trailing metadata.
"""

from metanas.errors import MetaNASError


class ServingError(MetaNASError):
    """Root of all errors of this package."""

    retry_after_seconds: float | None = None
    """When the same request may pass; None: that is not a matter of time."""


class StartupError(ServingError):
    """The server cannot start: a bad file, a port in use, a store that another server holds."""


class InvalidRequestError(ServingError, ValueError):
    """The request can never work; the caller has to change it."""


class UnauthenticatedError(ServingError):
    """The caller has shown no token of this server."""


class TaskNotFoundError(ServingError, LookupError):
    """There is no task of that id."""


class JobNotFoundError(ServingError, LookupError):
    """There is no job of that id, or it is forgotten."""


class AliasNotFoundError(ServingError, LookupError):
    """There is no alias of that name."""


class TaskInUseError(ServingError):
    """The task has an alias."""


class CannotUpdateError(ServingError):
    """The task was learnt from images that this server's meta-model does not take."""


class KeyTakenError(ServingError):
    """The idempotency key was used for another support set, seed or options."""


class QueueFullError(ServingError):
    """As many adaptations wait, calls are joined to one, or streams are open as the server takes."""

    retry_after_seconds = 5.0
    """When to try again. A guess: a place is free as soon as an adaptation is over."""


class TenantBusyError(QueueFullError):
    """A tenant has as many adaptations as it may have at a time."""


class RateError(ServingError):
    """A tenant calls more often than it may."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QuotaError(ServingError):
    """A tenant has as many tasks as it may keep; waiting does not help."""


class SupportTooLargeError(ServingError):
    """Learning so many images would take more memory than an adaptation process may have."""


class UploadTooLargeError(ServingError):
    """An upload has more bytes than the server takes."""


class DeadlineError(ServingError):
    """The caller's deadline came before its task was learnt."""


class NotServingError(ServingError):
    """The server is not ready yet, or not any more."""


class CallerGoneError(ServingError):
    """No one waits for the answer any more."""


class TaskLostError(ServingError):
    """The file of a task has gone or changed since it was written."""


class StoreWriteError(ServingError):
    """The store cannot be written."""


class StoreFaultError(ServingError):
    """The place of the store fails: a disk, or a network on the way to it."""


class WorkerError(ServingError):
    """The adaptation process failed in a way that is no fault of the request."""


class WorkerDiedError(WorkerError):
    """The adaptation process ended while it worked; another one takes its place."""

    retry_after_seconds = 1.0
    """When to try again: a request that comes before the new process is there waits for it."""
