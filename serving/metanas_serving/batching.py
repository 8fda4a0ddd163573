"""Concurrent calls for one task, computed together.

    Batcher.run   a network and a call's inputs  ->  Computed: its logits, and how it went

A call that finds a processor free computes at once, and the first in line computes for all that wait for the
same network, up to the images that are run together. There is one exception. Where half of the processors compute,
for its network too, and an image of it takes less time than reading a request and writing an answer, a call waits for
so many: the other processors meanwhile read and write. So what a call waits is bounded by the computations before it,
and a large call, which comes back to the line after every few of its images, does not hold up small ones.

Such short computations leave Python's processor to it (``processors``) where calls have met; full batches of single
calls may have it too.

An image scores the same in any company, to the bit (``network``), so no answer depends on who else asked.
Knows networks, and nothing of tasks or calls.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from metanas_serving.blocks import Floats
from metanas_serving.network import Network
from metanas_serving.processors import PROCESSORS

# Of an image; what a call takes beside it, on the same processor.
_QUICK_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Computed:
    """Logits of one call, and how they came about."""

    logits: Floats
    """``(images, classes)``."""
    waited_seconds: float
    """In line."""
    batch_images: int
    """The most images that were run together with some of the call's, its own included."""
    led: tuple[int, ...]
    """Images of each batch that this call computed; another call computed the batches that are missing."""


class _Part:
    """Some images of one call."""

    __slots__ = ("batch_images", "error", "inputs", "is_away", "logits", "mates", "network", "woken")

    def __init__(self, network: Network, inputs: Floats) -> None:
        self.network = network
        self.inputs = inputs
        self.woken = threading.Lock()
        self.woken.acquire()
        self.mates: list[_Part] | None = None
        """Whom it computes for, itself included; None: another computes for it."""
        self.logits: Floats | None = None
        self.error: Exception | None = None
        self.batch_images = 0
        self.is_away = False
        """Whether it computes on other processors than it runs on."""


class Batcher:
    """The line in front of the processors; safe to share between threads."""

    def __init__(self, *, max_batch: int, at_once: int = PROCESSORS) -> None:
        """Set the limits.

        Args:
            max_batch: images that calls may bring together into one run; 1: each is run by itself.
            at_once: processors that compute; a network may take several.
        """
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._at_once, self._eager = at_once, max(1, at_once // 2)
        self._busy = self._away = 0
        # Whether calls have met since the last one that found no other.
        self._have_met = False
        self._running: list[Network] = []
        self._least_seconds: WeakKeyDictionary[Network, float] = WeakKeyDictionary()
        self._line: deque[_Part] = deque()

    @property
    def waiting_count(self) -> int:
        """Parts of calls that are in line."""
        return len(self._line)

    def run(self, network: Network, inputs: Floats, *, check: Callable[[], None] = lambda: None) -> Computed:
        """Score the images of one call.

        Args:
            inputs: ``(images, channels, height, width)``, at least one.
            check: called each time before the call goes into the line; raises if its answer is not wanted any more.

        Raises:
            Exception: what the network raised, for each call of the batch; what ``check`` raised.
        """
        size = self._size(network)
        logits: list[Floats] = []
        led: list[int] = []
        waited, largest = 0.0, 0
        for first in range(0, len(inputs), size):
            check()
            part = _Part(network, inputs[first : first + size])
            waited += self._pass(part)
            if part.mates is not None:
                led.append(part.batch_images)
            if part.error is not None:
                raise part.error
            assert part.logits is not None
            logits.append(part.logits)
            largest = max(largest, part.batch_images)
        return Computed(np.concatenate(logits) if len(logits) > 1 else logits[0], waited, largest, tuple(led))

    def _pass(self, part: _Part) -> float:
        """Have a part computed, by this thread or by another; return the seconds in line."""
        waited = self._wait(part)
        if part.mates is not None:
            self._lead(part)
        return waited

    def _wait(self, part: _Part) -> float:
        """Return, with the seconds in line, when a part is computed or this thread is to compute it."""
        with self._lock:
            if not (self._busy or self._line):
                part.is_away = self._have_met and self._is_short(part.network)
                self._have_met = False
                self._enter([part])
                return 0.0
            begin = time.perf_counter()
            self._have_met = True
            self._line.append(part)
            self._start()
        part.woken.acquire()  # whoever computes for it, or lets it compute, lets it go
        return time.perf_counter() - begin

    def _lead(self, part: _Part) -> None:
        mates = part.mates
        assert mates is not None
        try:
            inputs = part.inputs if len(mates) == 1 else np.concatenate([mate.inputs for mate in mates])
            begin = time.perf_counter()
            logits = part.network.run(inputs, is_away=part.is_away)
            seconds = (time.perf_counter() - begin) / len(inputs)
            if seconds < self._least_seconds.get(part.network, math.inf):  # the least: all else is what disturbs it
                self._least_seconds[part.network] = seconds
        except Exception as error:
            for mate in mates:
                mate.error = error
        else:
            first = 0
            for mate in mates:
                mate.logits = logits[first : first + len(mate.inputs)]
                mate.batch_images = len(inputs)
                first += len(mate.inputs)
        finally:
            with self._lock:
                self._busy -= self._needs(part)
                self._away -= part.is_away
                self._running.remove(part.network)
                self._start()
            for mate in mates:
                if mate is not part:
                    mate.woken.release()

    def _start(self) -> None:
        """Let those of the line compute for whom there are processors."""
        while mates := self._next():
            leader = mates[0]
            if len(mates) == len(self._line):
                self._line.clear()
            else:
                for part in mates:
                    self._line.remove(part)
            # Full batches of one call leave Python little to do: its processor computes too.
            is_large = len(leader.inputs) == self._size(leader.network)
            has_room = self._away < self._at_once - 1
            leader.is_away = self._is_short(leader.network) and (has_room or not is_large)
            self._enter(mates)
            leader.woken.release()

    def _enter(self, mates: list[_Part]) -> None:
        """Have the first compute for all."""
        leader = mates[0]
        self._busy += self._needs(leader)
        self._away += leader.is_away
        self._running.append(leader.network)
        leader.mates = mates

    def _next(self) -> list[_Part]:
        """Who is to compute next, and for whom; none if all have to wait."""
        waiting: list[Network] = []
        for leader in self._line:
            if leader.network in waiting:
                continue
            if self._busy and self._busy + self._needs(leader) > self._at_once:
                return []  # no one passes it, or it might wait for ever
            mates, room = list[_Part](), self._size(leader.network)
            for part in self._line:
                if part.network is leader.network and len(part.inputs) <= room:
                    mates.append(part)
                    room -= len(part.inputs)
                    if not room:
                        break
            if not (room and self._busy >= self._eager and self._is_quick(leader.network)):
                return mates
            waiting.append(leader.network)
        return []

    def _is_quick(self, network: Network) -> bool:
        """Whether a network that computes now takes so little time an image that it is better to wait for company."""
        return network in self._running and self._is_short(network)

    def _is_short(self, network: Network) -> bool:
        """Whether one processor has time for all images that Python, on another, can read and answer."""
        return network.threads == 1 and self._least_seconds.get(network, math.inf) < _QUICK_SECONDS

    def _needs(self, part: _Part) -> int:
        return min(part.network.threads, self._at_once)

    def _size(self, network: Network) -> int:
        return min(network.batch, self._max_batch)
