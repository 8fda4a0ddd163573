"""A name for each call, by which its lines in the log and in its caller's can be brought together.

    named     what ``AroundCalls`` puts around calls: takes the caller's ``x-request-id`` or makes one, and
              sends it back in the trailing metadata
    current   the id of the call that is answered here

A caller's id goes into the log as it is, so only short ones of harmless characters are taken.
"""

import random
import re
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

import grpc

KEY = "x-request-id"

_ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """The id of the call that is answered here; None where none is."""
    return _current.get()


def named(call: str, context: grpc.ServicerContext) -> AbstractContextManager[None]:
    """Answer a call under its id."""
    request_id = _asked(context) or f"{random.getrandbits(128):032x}"
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), (KEY, request_id)))
    _current.set(request_id)  # never reset: gRPC runs each call in a context of its own
    return nullcontext()


def _asked(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata():
        if key == KEY and isinstance(value, str) and _ACCEPTED.fullmatch(value):
            return value
    return None
