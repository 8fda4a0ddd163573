"""What every call does on its way in and out, whichever protocol it came by.

    answering   with answering(gate, context): in through the gate, every error out through ``status``
    wanted      what raises once no one waits for the answer any more

It does not know what a call does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc

from metanas_serving import status
from metanas_serving.errors import CallerGoneError
from metanas_serving.gate import Gate

Check: TypeAlias = Callable[[], None]
"""Raises if the work is not wanted any more."""


@contextmanager
def answering(gate: Gate, context: grpc.ServicerContext) -> Iterator[None]:
    """Answer one call inside: it ends with the status of whatever is raised."""
    try:
        with gate.passing():
            yield
    except Exception as error:
        status.abort(context, error)


def wanted(gate: Gate, context: grpc.ServicerContext) -> Check:
    """What raises once the caller has gone or the server cuts its calls off."""

    def check() -> None:
        gate.check_inside()
        if not context.is_active():
            raise CallerGoneError("the caller has gone; its images are left undecoded")

    return check
