"""Who reads what callers send: gRPC's own threads, or the thread that waits for it.

    poll_directly   has the latter from now on, in a process that has not imported gRPC

Since its version 1.80 gRPC for Python has threads of its own that read and write sockets (its "event engine") and then
wake the thread that waits. The older way spares an answer those turns. gRPC means to drop it; where it has, or is too
new to be known here, all is as it is by default, and the log says so. Imports no gRPC, which looks once.
"""

import os
import sys
from importlib.metadata import version

_VARIABLE = "GRPC_EXPERIMENTS"
_DIRECTLY = "-event_engine_listener"
# gRPC would complain about a name that it does not know.
_LAST_KNOWN = (1, 85)


def poll_directly() -> str:
    """Ask gRPC for the older way, unless the environment says what gRPC is to do.

    Returns:
        Who reads now, for the log.
    """
    grpc = f"gRPC {version('grpcio')}"
    if _VARIABLE in os.environ:
        return f"{grpc} goes by {_VARIABLE}={os.environ[_VARIABLE]}"
    if "grpc" in sys.modules:
        return f"{grpc} was imported before: threads of its own read what callers send"
    if tuple(map(int, version("grpcio").split(".")[:2])) > _LAST_KNOWN:
        return f"{grpc} is newer than {'.'.join(map(str, _LAST_KNOWN))}: threads of its own read what callers send"
    os.environ[_VARIABLE] = _DIRECTLY
    return f"{grpc}: the thread that waits reads what callers send ({_VARIABLE}={_DIRECTLY})"
