"""Concurrent calls for one task, computed together.

    Batcher.run   a network and a call's inputs  ->  Computed: its logits, and how it went

As many computations run at a time as there are processors. A call that finds one free computes at once:
none ever waits for company. One that finds none waits in line; when a processor becomes free, the call
that has waited longest computes for all that wait for the same network, up to the images that are run
together. So what a call waits is bounded by the computations before it, and a large call, which comes
back to the line after every few of its images, does not hold up small ones.

An image scores the same in any company, to the bit (``network``), so no answer depends on who else asked.
Knows networks, and nothing of tasks or calls.
"""

import os
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from metanas_serving.network import Network
from metanas_serving.widening import Floats

_PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    __slots__ = ("batch_images", "error", "inputs", "logits", "mates", "network", "woken")

    def __init__(self, network: Network, inputs: Floats) -> None:
        self.network = network
        self.inputs = inputs
        self.woken = threading.Lock()
        self.mates: list[_Part] | None = None
        """Whom it computes for, itself included; None: another computes for it."""
        self.logits: Floats | None = None
        self.error: Exception | None = None
        self.batch_images = 0


class Batcher:
    """The line in front of the processors; safe to share between threads."""

    def __init__(self, *, max_batch: int, at_once: int = _PROCESSORS) -> None:
        """Set the limits.

        Args:
            max_batch: images that calls may bring together into one run; 1: each is run by itself.
            at_once: computations at a time.
        """
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._free = at_once
        self._line: deque[_Part] = deque()

    @property
    def waiting_count(self) -> int:
        """Parts of calls that are in line."""
        return len(self._line)

    def run(self, network: Network, inputs: Floats) -> Computed:
        """Score the images of one call.

        Args:
            inputs: ``(images, channels, height, width)``, at least one.

        Raises:
            Exception: what the network raised, for each call of the batch.
        """
        size = min(network.batch, self._max_batch)
        logits: list[Floats] = []
        led: list[int] = []
        waited, largest = 0.0, 0
        for first in range(0, len(inputs), size):
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
        with self._lock:
            if self._free:
                self._free -= 1
                part.mates = [part]
            else:
                part.woken.acquire()
                self._line.append(part)
        if part.mates is not None:
            self._lead(part)
            return 0.0
        begin = time.perf_counter()
        part.woken.acquire()  # whoever computes for it, or hands on to it, lets it go
        waited = time.perf_counter() - begin
        if part.mates is not None:
            self._lead(part)
        return waited

    def _lead(self, part: _Part) -> None:
        mates = part.mates
        assert mates is not None
        try:
            inputs = part.inputs if len(mates) == 1 else np.concatenate([mate.inputs for mate in mates])
            logits = part.network.run(inputs)
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
                self._hand_on()
            for mate in mates:
                if mate is not part:
                    mate.woken.release()

    def _hand_on(self) -> None:
        """Let the longest waiting part compute, for all that fit beside it."""
        if not self._line:
            self._free += 1
            return
        leader = self._line.popleft()
        leader.mates = [leader]
        room = min(leader.network.batch, self._max_batch) - len(leader.inputs)
        left: deque[_Part] = deque()
        for part in self._line:
            if part.network is leader.network and len(part.inputs) <= room:
                leader.mates.append(part)
                room -= len(part.inputs)
            else:
                left.append(part)
        self._line = left
        leader.woken.release()
