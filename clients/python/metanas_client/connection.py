"""One connection to one server: the channel, the deadlines, the limits, the translated errors.

    Connection.calling   with connection.calling("classify", timeout_seconds=5) as call:
                             call.few_shot.Classify(request, timeout=call.timeout_seconds)
    Connection.close     ends it; calls that still run end as cancelled
    Call                 what a call needs: the stubs and its deadline

The channel is opened at the first call, not before, and anew in a forked child: a channel's
threads and sockets do not survive a fork. One lock guards it; calls run outside the lock, so one
connection serves many threads.

It knows gRPC, and nothing of few-shot learning.
"""

import math
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from metanas_client.errors import ClosedClientError, InvalidRequestError
from metanas_client.security import Security, open_channel
from metanas_client.translation import translate
from metanas_proto.v1.few_shot_pb2_grpc import FewShotStub

# Left alone, gRPC waits up to two minutes between attempts to connect; a server that starts
# should be noticed within a second. The least "backoff" is not one, in spite of its name: it is how long
# an attempt may take, and a busy server has been seen to need a second to shake hands.
_RECONNECT_MILLISECONDS = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 10_000,
    "grpc.max_reconnect_backoff_ms": 1000,
}


@dataclass(frozen=True)
class Wire:
    """An open channel and the stubs on it."""

    channel: grpc.Channel
    few_shot: FewShotStub
    # grpc.health.v1 comes in a package that the base install does without. On the wire its request
    # (one string) is a StringValue and its answer (one enumerator) an Int32Value.
    health: "grpc.UnaryUnaryMultiCallable[StringValue, Int32Value]"


@dataclass(frozen=True)
class Call:
    """What one call needs."""

    few_shot: FewShotStub
    health: "grpc.UnaryUnaryMultiCallable[StringValue, Int32Value]"
    timeout_seconds: float
    """Its deadline, to be passed on as ``timeout``."""


class Connection:
    """One connection to one server; safe to share between threads."""

    def __init__(
        self, address: str, *, timeout_seconds: float, max_message_bytes: int, security: Security | None = None
    ) -> None:
        self.address = address
        self._security = security or Security()
        self.timeout_seconds = positive_seconds(timeout_seconds)
        if not max_message_bytes > 0:
            raise InvalidRequestError(f"max_message_bytes must be above 0, got {max_message_bytes}")
        self.max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._closed = False
        self._inherited: list[Wire] = []
        _connections.add(self)

    @contextmanager
    def calling(self, action: str, *, timeout_seconds: float | None, of_a_job: bool = False) -> Iterator[Call]:
        """Lend the stubs for one call, and translate what gRPC raises in it.

        Args:
            action: what is asked, for messages.
            timeout_seconds: the deadline; None for the connection's own.
            of_a_job: whether what may not be found is a job, not a task.

        Raises:
            ClosedClientError: the connection is closed.
            InvalidRequestError: ``timeout_seconds`` is not above zero and finite.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        seconds = self.timeout_seconds if timeout_seconds is None else positive_seconds(timeout_seconds)
        wire = self._open()
        try:
            yield Call(few_shot=wire.few_shot, health=wire.health, timeout_seconds=seconds)
        except grpc.RpcError as error:
            raise translate(
                error, action=action, address=self.address, timeout_seconds=seconds, of_a_job=of_a_job
            ) from error
        except ValueError as error:
            # gRPC says it so when another thread closed the channel after _open gave it to us.
            if self._closed and not isinstance(error, InvalidRequestError):
                raise self._closed_error() from error
            raise

    def close(self) -> None:
        """End the connection; a second time does nothing."""
        with self._lock:
            wire, self._wire, self._closed = self._wire, None, True
        if wire is not None:
            wire.channel.close()

    def _open(self) -> Wire:
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if self._wire is None:
                self._wire = _connect(self.address, self._security, max_message_bytes=self.max_message_bytes)
            return self._wire

    def _closed_error(self) -> ClosedClientError:
        return ClosedClientError(f"the client of {self.address} is closed; make a new FewShotClient")

    def _start_over_in_child(self) -> None:
        # Kept, not dropped: the channel's destructor would reach for threads that the child lacks.
        if self._wire is not None:
            self._inherited.append(self._wire)
        self._wire = None
        # Another thread of the parent may have held the lock; nobody is left to release it.
        self._lock = threading.Lock()


def positive_seconds(timeout_seconds: float) -> float:
    """Return ``timeout_seconds``, or raise ``InvalidRequestError`` if it is not above zero and finite."""
    # Infinity would overflow in gRPC and expire at once; NaN fails both comparisons.
    if not 0 < timeout_seconds < math.inf:
        raise InvalidRequestError(f"timeout_seconds must be above 0 and finite, got {timeout_seconds}")
    return timeout_seconds


def _connect(address: str, security: Security, *, max_message_bytes: int) -> Wire:
    limits = {
        "grpc.max_send_message_length": max_message_bytes,
        "grpc.max_receive_message_length": max_message_bytes,
    }
    # gRPC's pool of sockets is one for the whole process unless told otherwise, and a forked child
    # would be handed its parent's dead socket ("Wrong file descriptor generation").
    own_sockets = {"grpc.use_local_subchannel_pool": 1}
    options = {**limits, **own_sockets, **_RECONNECT_MILLISECONDS}
    channel = open_channel(address, security, options=list(options.items()))
    return Wire(
        channel=channel,
        few_shot=FewShotStub(channel),
        health=channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        ),
    )


_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()


def _start_over_in_child() -> None:
    for connection in list(_connections):
        connection._start_over_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_start_over_in_child)
