"""Everything that can go wrong in serving, with the gRPC status that ``status`` gives it.

    MetaNASError (of the core)
    └── ServingError                INTERNAL
        ├── StartupError            (exit code 1)        the server cannot start
        ├── InvalidRequestError     INVALID_ARGUMENT     a request that can never work
        ├── TaskNotFoundError       NOT_FOUND            no task of that id
        ├── QueueFullError          RESOURCE_EXHAUSTED   more adaptations waiting than taken
        ├── NotServingError         UNAVAILABLE          starting, or draining before the stop
        ├── CallerGoneError         CANCELLED            the caller cancelled, or its deadline passed
        ├── TaskLostError           DATA_LOSS            a stored task that cannot be read any more
        ├── StoreWriteError         INTERNAL             a task that cannot be kept: disk full, no rights
        └── WorkerError             INTERNAL             the adaptation process died or failed

A message says what was wrong with the numbers seen, then what to do.
"""

from metanas.errors import MetaNASError


class ServingError(MetaNASError):
    """Root of all errors of this package."""


class StartupError(ServingError):
    """The server cannot start: a bad file, a port in use, a store that another server holds."""


class InvalidRequestError(ServingError, ValueError):
    """The request can never work; the caller has to change it."""


class TaskNotFoundError(ServingError, LookupError):
    """There is no task of that id."""


class QueueFullError(ServingError):
    """As many adaptations wait as the server takes."""


class NotServingError(ServingError):
    """The server is not ready yet, or not any more."""


class CallerGoneError(ServingError):
    """No one waits for the answer any more."""


class TaskLostError(ServingError):
    """The file of a task has gone or changed since it was written."""


class StoreWriteError(ServingError):
    """The store cannot be written."""


class WorkerError(ServingError):
    """The adaptation process died, or failed in a way that is no fault of the request."""
