"""Int8, written into the graph: QuantizeLinear and DequantizeLinear around every convolution.

    calibration_images   task                        ->  its support images, and distorted ones
    calibrate            float32 graph, images       ->  scale of every input of a convolution
    quantise             float32 graph, scales, keep ->  the graph with Q/DQ pairs

Activations have one scale for a tensor and zero point 0, weights one for each output channel,
biases stay float32 and the head too: what TensorRT takes. The scale of an activation is the one
that loses least on the calibration images, in squared error: rare large values may be cut off.

Source: Jacob et al., arXiv 1712.05877; choosing the range by squared error: Banner et al., arXiv 1810.05723.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from metanas.augmentation import distort
from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export.casting import unit_of
from metanas_export.running import observe

LIMIT = 127
"""Of an int8 with a zero point of 0; -128 is not used, so that the range is symmetric."""
UNSIGNED_LIMIT = 255
MAX_IMAGES = 96
STRENGTH = 0.5
"""Of the distortions: about 6 degrees, 7 % of stretch."""
_BINS = 1024
_FRACTIONS = np.linspace(0.2, 1.0, 33)
"""Of the largest value: the ranges that are tried."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which whole numbers are used."""

    unsigned_after_relu: bool = False
    """Whether what cannot be negative is stored as uint8, zero point 0, with half the step."""
    weight_limit: int = LIMIT
    """Largest absolute value of a weight."""


SYMMETRIC = Scheme()
"""Int8 everywhere: what TensorRT takes, and every other runtime too."""


def calibration_images(task: TaskModel) -> NDArray[np.float32]:
    """Support images, as they are and distorted, ``(images, channels, height, width)``; at most ``MAX_IMAGES``.

    The same task gives the same images. More classes than that share the places evenly.
    """
    images = scale(task.support.images, task.preprocessing)
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES // 2)).round().astype(int)]
    again = chosen.repeat(max(1, (MAX_IMAGES - len(chosen)) // len(chosen)), 1, 1, 1)
    distorted = distort(again, strength=STRENGTH, generator=torch.Generator().manual_seed(0))
    return torch.cat([chosen, distorted]).contiguous().numpy()


def calibrate(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, float]:
    """The scale of every tensor that a convolution reads: a step of its int8."""
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    largest = dict.fromkeys(names, 0.0)
    for values in observe(model, names, images=images):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
    counts = {name: np.zeros(_BINS, dtype=np.int64) for name in names}
    for values in observe(model, names, images=images):
        for name, value in values.items():
            if largest[name] > 0:
                bins = (np.abs(value).ravel() * (_BINS / largest[name])).astype(np.int32)
                counts[name] += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)
    return {name: _step(largest[name], counts[name]) for name in names}


def _step(largest: float, counts: NDArray[np.int64]) -> float:
    """The step that loses least; ``counts`` are of absolute values, over equal bins of 0 to ``largest``."""
    if largest == 0:
        return 1.0 / LIMIT  # always zero: any step will do
    centres = (np.arange(_BINS) + 0.5) / _BINS
    # A value of zero is exact, and after a ReLU half of all are.
    weights = np.where(np.arange(_BINS) == 0, 0, counts)
    steps = _FRACTIONS[:, None] / LIMIT
    rounded = np.minimum(np.rint(centres / steps), LIMIT) * steps
    losses = ((rounded - centres) ** 2 * weights).sum(axis=1)
    return float(largest * _FRACTIONS[losses.argmin()] / LIMIT)


def quantise(
    model: onnx.ModelProto, steps: Mapping[str, float], *, keep: Iterable[str] = (), scheme: Scheme = SYMMETRIC
) -> onnx.ModelProto:
    """Put Q/DQ pairs before the convolutions.

    Args:
        model: float32, as ``graph.build_graph`` makes it.
        steps: as ``calibrate`` gives them.
        keep: units whose convolutions stay float32.
        scheme: which whole numbers are used.

    Returns:
        A new model. Weights are stored as int8; a convolution gets what ``DequantizeLinear`` makes of them.
    """
    kept = set(keep)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {value.name: value for value in model.graph.initializer}
    added: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []
    done: set[str] = set()
    rectified = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}

    def constant(name: str, values: NDArray[np.generic]) -> str:
        added[name] = numpy_helper.from_array(values, name)
        return name

    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        if node.op_type == "Conv" and unit_of(node.name) not in kept:
            x, weight = node.input[0], node.input[1]
            if x not in done:
                done.add(x)
                unsigned = scheme.unsigned_after_relu and x in rectified
                factor = LIMIT / UNSIGNED_LIMIT if unsigned else 1.0
                step = constant(f"{x}/step", np.array(steps[x] * factor, dtype=np.float32))
                zero = constant(f"{x}/zero", np.array(0, dtype=np.uint8 if unsigned else np.int8))
                nodes += [
                    helper.make_node("QuantizeLinear", [x, step, zero], [f"{x}/int8"], name=f"{x}/quantise"),
                    helper.make_node(
                        "DequantizeLinear", [f"{x}/int8", step, zero], [f"{x}/float"], name=f"{x}/dequantise"
                    ),
                ]
            whole, channel_steps = _whole_weights(numpy_helper.to_array(constants[weight]), scheme.weight_limit)
            inputs = [
                constant(f"{weight}/int8", whole),
                constant(f"{weight}/step", channel_steps),
                constant(f"{weight}/zero", np.zeros(len(whole), dtype=np.int8)),
            ]
            nodes.append(
                helper.make_node("DequantizeLinear", inputs, [f"{weight}/float"], name=f"{weight}/dequantise", axis=0)
            )
            node.input[0], node.input[1] = f"{x}/float", f"{weight}/float"
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    result.graph.ClearField("node")
    result.graph.ClearField("initializer")
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*(value for name, value in constants.items() if name in read), *added.values()])
    return result


def _whole_weights(values: NDArray[np.float32], limit: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A kernel in whole numbers up to ``limit``, and the step of each output channel."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    steps = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(limit)
    whole = np.rint(values / steps[:, None, None, None]).clip(-limit, limit)
    return whole.astype(np.int8), steps
