"""Networks on the compiled engine: weights of a task, in a program that others may have too.

    Programmed   a task's network on it
    Rooms        memory that programs work in

Images are calculated one by one, so one scores the same in any company, to the bit. Knows no graph: ``compiling`` makes
programs of them.
"""

import numpy as np

from metanas.native.inference import Program, aligned
from metanas_serving.blocks import Floats
from metanas_serving.network import Network
from metanas_serving.processors import PROCESSORS, away

ENGINE = "MetaNASEngine"
"""The compiled engine, among ONNX Runtime's execution providers."""

# What a task takes beside its weights, a program that it has for itself included: an estimate to evict by.
_PROGRAM_BYTES = 32 * 1024


class Rooms:
    """Memory that programs work in: as much as run at a time, whatever their number; safe to share between threads."""

    def __init__(self) -> None:
        self._idle: list[Floats] = []

    def take(self, floats: int) -> Floats:
        """At least so many."""
        try:
            room = self._idle.pop()
        except IndexError:
            return aligned(floats)
        return room if len(room) >= floats else aligned(floats)

    def give_back(self, room: Floats) -> None:
        """Keep it for the next."""
        if len(self._idle) < PROCESSORS:
            self._idle.append(room)


class Programmed(Network):
    """Weights of its own for a program that others have too."""

    def __init__(self, program: Program, weights: Floats, *, batch: int, rooms: Rooms) -> None:
        self._program, self._weights, self._batch, self._rooms = program, weights, batch, rooms

    @property
    def providers(self) -> list[str]:
        return [ENGINE]

    @property
    def memory_bytes(self) -> int:
        return self._weights.nbytes + _PROGRAM_BYTES

    @property
    def batch(self) -> int:
        return self._batch

    @property
    def threads(self) -> int:
        return self._program.threads

    def run(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        room = self._rooms.take(self._program.work_floats)
        logits = np.empty((len(inputs), self._program.classes), dtype=np.float32)
        if is_away:
            away(self._program.run, self._weights, room, inputs, logits)
        else:
            self._program.run(self._weights, room, inputs, logits)
        self._rooms.give_back(room)
        return logits
