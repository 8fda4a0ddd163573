"""What every call does on its way in and out, whichever protocol it came by.

    answering   with answering(gate, context): in through the gate, every error out through ``status``
    wanted      what raises once no one waits for the answer any more

It does not know what a call does.
"""

from collections.abc import Callable
from typing import TypeAlias

import grpc

from metanas_serving import status
from metanas_serving.errors import CallerGoneError, NotServingError
from metanas_serving.gate import Gate

Check: TypeAlias = Callable[[], None]
"""Raises if the work is not wanted any more."""


class answering:  # noqa: N801  # a context manager; a generator, around every image, takes several times as long
    """Answer one call inside: it ends with the status of whatever is raised."""

    __slots__ = ("_context", "_gate")

    def __init__(self, gate: Gate, context: grpc.ServicerContext) -> None:
        self._gate, self._context = gate, context

    def __enter__(self) -> None:
        try:
            self._gate.enter()
        except NotServingError as error:
            status.abort(self._context, error)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._gate.leave()
        if isinstance(error, Exception):
            status.abort(self._context, error)


def wanted(gate: Gate, context: grpc.ServicerContext) -> Check:
    """What raises once the caller has gone or the server cuts its calls off."""

    def check() -> None:
        gate.check_inside()
        if not context.is_active():
            raise CallerGoneError("the caller has gone; what is left of its images is not looked at")

    return check
