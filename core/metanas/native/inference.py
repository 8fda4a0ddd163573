"""Networks with fixed statistics on the compiled engine: programs of steps, run on one image at a time.

    Tables    what a program is made of, as ``inference.c`` reads it
    Program   tables that are ready to run: weights and inputs  ->  logits

A program knows no weights: tasks of one architecture and as many classes share it.
"""

import mmap
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from metanas.native.library import library

ALIGNED_FLOATS = 16
"""In a line of the cache."""
LANES = 32
"""Channels are padded to a multiple of this: what two registers of the widest kind hold."""
# As inference.c and kernels.h have them.
MOST_PHASES = 128
MOST_TAPS = 32
MOST_LINE_FLOATS = 65_536
"""Of an image: a line of it lies on the stack for a while."""

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


def packed_columns() -> int:
    """Columns of a matrix that lie together: two registers of this processor hold them. The engine has to be there."""
    engine = library()
    assert engine is not None
    return int(engine.metanas_columns())


def aligned(floats: int) -> Floats:
    """Memory that begins where a line of the cache begins, as the engine likes it."""
    # Not from the heap, which keeps what is freed between other things.
    return np.frombuffer(mmap.mmap(-1, 4 * max(1, floats)), dtype=np.float32)


class Kind(IntEnum):
    """What a step does."""

    INPUT = 0
    CONVOLUTION = 1
    DEPTHWISE = 2
    MAXIMUM = 3
    MEAN = 4
    AFFINE = 5


@dataclass(frozen=True, slots=True)
class Tables:
    """A program; each table is int64, ``(entries, fields)``, with the fields of the structure in ``inference.c``."""

    sizes: Numbers
    images: Numbers
    steps: Numbers
    places: Numbers
    phases: Numbers
    parts: Numbers
    shared_floats: int
    band_floats: int
    classes: int

    @property
    def key(self) -> bytes:
        """Equal for programs that are the same."""
        tables = (self.sizes, self.images, self.steps, self.places, self.phases, self.parts)
        return b"".join(table.tobytes() for table in tables)


class Program:
    """Safe to share between threads; runs at the same time need workspaces of their own."""

    def __init__(self, tables: Tables, *, threads: int, images: int = 1) -> None:
        """Make tables ready to run; the engine has to be there.

        Args:
            threads: for one image, at most four: that which runs it, and helpers that all programs share.
            images: at a time, for which there are helpers; further ones are run by one thread.
        """
        engine = library()
        assert engine is not None
        self._engine, self._tables, self._threads = engine, tables, threads
        height, width, channels, *_ = tables.images[tables.steps[0][1]].tolist()
        self._input_shape = (channels, height, width)
        given = (tables.sizes, tables.images, tables.steps, tables.places, tables.phases, tables.parts)
        self._handle = engine.metanas_program(*(table.ctypes.data for table in given), threads - 1, images)

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._engine.metanas_program_free(handle)

    @property
    def threads(self) -> int:
        """That an image is run with."""
        return self._threads

    @property
    def work_floats(self) -> int:
        """That a run needs to work in; what is left there from before does not matter."""
        return self._tables.shared_floats + self._threads * self._tables.band_floats

    @property
    def classes(self) -> int:
        """That are scored."""
        return self._tables.classes

    def run(self, weights: Floats, room: Floats, inputs: Floats, logits: Floats) -> None:
        """Score images, one after another: to the bit the same in any company and with any number of threads.

        Args:
            weights: as the tables place them.
            room: ``work_floats``, of ``aligned``, for this run alone.
            inputs: float32 ``(images, channels, height, width)``, contiguous.
            logits: float32 ``(images, classes)``; gets them.

        Raises:
            ValueError: the inputs are of another size or type.
        """
        if inputs.shape[1:] != self._input_shape or inputs.dtype != np.float32 or not inputs.flags.c_contiguous:
            raise ValueError(
                f"inputs are {inputs.dtype} of {inputs.shape}; the network takes contiguous float32 of "
                f"{('images', *self._input_shape)}"
            )
        self._engine.metanas_classify(
            self._handle,
            weights.ctypes.data,
            room.ctypes.data,
            inputs.ctypes.data,
            logits.ctypes.data,
            len(inputs),
            self._threads,
        )
