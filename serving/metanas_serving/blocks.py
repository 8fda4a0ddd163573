"""Channels in blocks of a register's width, as ONNX Runtime's kernels keep them.

    padded            real channels, and others that fill their blocks
    spread            values of real channels at their places
    pixels_of_halves  what the halves of a factorized reduction read

Knows numpy alone.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

BLOCK_CHANNELS = 16
"""float32 values of the widest register (AVX-512); a multiple of the others."""

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

Pixel: TypeAlias = tuple[int, int, slice]
"""Row and column in a window, and the channels that read it."""


def padded(channels: int) -> Mask:
    """So many real channels and as many others as fill the last block, or that of each half if it takes no more."""
    halves = channels // 2, channels - channels // 2
    parts = halves if sum(map(_blocks, halves)) == _blocks(channels) else (channels,)
    mask = np.zeros(_blocks(channels) * BLOCK_CHANNELS, dtype=np.bool_)
    first = 0
    for part in parts:
        mask[first : first + part] = True
        first += _blocks(part) * BLOCK_CHANNELS
    return mask


def _blocks(channels: int) -> int:
    return -(-channels // BLOCK_CHANNELS)


def pixels_of_halves(weight: Floats) -> list[Pixel]:
    """The one pixel that each half of a convolution's channels reads of a larger window, if these are two.

    Args:
        weight: ``(channels, source channels, height, width)``.
    """
    half = len(weight) // 2
    if weight.shape[2] * weight.shape[3] == 1 or not half:
        return []
    found: list[Pixel] = []
    for channels in (slice(0, half), slice(half, len(weight))):
        places = np.argwhere(weight[channels].any(axis=(0, 1)))
        if len(places) != 1:
            return []
        row, column = places[0].tolist()
        found.append((row, column, channels))
    if found[0][:2] == found[1][:2]:
        return []
    whole = padded(len(weight))
    fits = np.array_equal(whole, np.concatenate([padded(one.stop - one.start) for _, _, one in found]))
    return found if fits else []


def spread(values: Floats, mask: Mask) -> Floats:
    """Values of the real channels at their places, zeros between them."""
    spread = np.zeros((len(mask), *values.shape[1:]), dtype=np.float32)
    spread[mask] = values
    return spread
