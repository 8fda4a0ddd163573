"""How a user stops a run: once, and it stops after the step it is in; twice, and it stops at once.

stop_flag   while it is open, Ctrl-C and SIGTERM are only noted
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm


@contextmanager
def stop_flag() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM append their number to; the second one raises KeyboardInterrupt."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        tqdm.write("stopping after this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
