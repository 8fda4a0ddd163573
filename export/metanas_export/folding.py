"""Frozen batch norm as plain numbers: what is left of it once a task is learned.

    affine     batch norm, mixture weight               ->  gain and offset of each channel
    fold       convolution, batch norm, mixture weight  ->  one convolution with a bias
    halving    factorized reduction, mixture weight     ->  one 2x2 convolution of stride 2

With frozen statistics, batch norm is ``gain * x + offset``, and the constant weight of the
mixture one more factor. Both go into the convolution before them. Calculated in float64 and
rounded once. Pure functions from modules to arrays; nothing here knows ONNX.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from metanas.operations import BatchNorm, FactorizedReduction

Array = NDArray[np.float64]


def to_array(tensor: Tensor) -> Array:
    """The values of a tensor as float64, wherever and however it is stored."""
    return tensor.detach().cpu().numpy().astype(np.float64)


def affine(norm: BatchNorm, weight: float = 1.0) -> tuple[Array, Array]:
    """What ``weight * norm(x)`` does with frozen statistics.

    Returns:
        Gain and offset, ``(channels,)`` each: the result is ``gain * x + offset``.
    """
    gain = weight / np.sqrt(to_array(norm.variance) + norm.epsilon)
    if norm.weight is not None:
        gain = gain * to_array(norm.weight)
    offset = -to_array(norm.mean) * gain
    if norm.bias is not None:
        offset = offset + weight * to_array(norm.bias)
    return gain, offset


def fold(conv: nn.Conv2d, norm: BatchNorm, *, weight: float = 1.0) -> tuple[Array, Array]:
    """Kernel and bias of the one convolution that gives ``weight * norm(conv(x))``; ``conv`` may have a bias.

    Returns:
        Kernel ``(out, in / groups, height, width)`` and bias ``(out,)``.
    """
    gain, offset = affine(norm, weight)
    if conv.bias is not None:
        offset = offset + gain * to_array(conv.bias)
    return to_array(conv.weight) * gain[:, None, None, None], offset


def halving(reduction: FactorizedReduction, weight: float = 1.0) -> tuple[Array, Array]:
    """Kernel and bias of the one 2x2 convolution of stride 2 that gives ``weight * reduction(x)``.

    The convolution of the even pixels sits in the upper left of the kernel, that of the odd
    ones in the lower right. It needs one row and column of zeros at the end: an odd size
    reads them as the module does, an even size never reaches them.

    Returns:
        Kernel ``(out, in, 2, 2)`` and bias ``(out,)``.
    """
    even, odd = to_array(reduction.even.weight), to_array(reduction.odd.weight)
    kernel = np.zeros((len(even) + len(odd), even.shape[1], 2, 2))
    kernel[: len(even), :, 0, 0] = even[:, :, 0, 0]
    kernel[len(even) :, :, 1, 1] = odd[:, :, 0, 0]
    gain, offset = affine(reduction.norm, weight)
    return kernel * gain[:, None, None, None], offset
