"""Networks of many tasks in one pass: every parameter has a leading dimension of tasks.

    forward_each        images of each task  ->  features, through each task's own parameters
    measure_statistics  adapted tasks, images  ->  each task's batch-norm statistics
    repeat              a tensor  ->  a copy for each task

``torch.func.vmap`` makes one grouped convolution of the convolutions of all tasks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from metanas.backbone import Backbone
from metanas.statistics import measuring, statistics_names
from metanas_training.config import Precision

_LOW: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_CONVOLUTION: Any = torch.conv2d
"""What ``nn.Conv2d`` and ``functional.conv2d`` call."""


def repeat(value: Tensor, tasks: int) -> Tensor:
    """``(tasks, ...)``, a copy for each task, in plain row-major order."""
    return value.detach().expand(tasks, *value.shape).clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def measure_statistics(
    network: Backbone,
    images: Tensor,
    *,
    weights: Mapping[str, Tensor] | None = None,
    skip_below: float = 0.0,
) -> dict[str, Tensor]:
    """The batch-norm statistics that ``statistics.measuring`` would find for each task alone.

    Args:
        network: of ``AdaptedTasks``; its own statistics stay as they are.
        images: ``(tasks, batch, channels, H, W)``.
        weights: for each cell type ``(tasks, rows)``; None: the genotype's own.
        skip_below: an operation under it in all tasks is not run; its statistics stay as they are.

    Returns:
        ``(tasks, channels)`` by the name of the buffer.
    """
    statistics = {name: repeat(network.get_buffer(name), len(images)) for name in statistics_names(network)}
    with measuring(network):
        forward_each(
            network, {**dict(network.named_parameters()), **statistics}, images, weights, skip_below=skip_below
        )
    return statistics


def forward_each(
    network: Backbone,
    values: Mapping[str, Tensor],
    images: Tensor,
    weights: Mapping[str, Tensor] | None,
    *,
    skip_below: float,
    precision: Precision = "float32",
    paths: Tensor | None = None,
) -> Tensor:
    """Each task's images through the network with each task's parameters and buffers, ``values``."""
    run: dict[str, list[bool]] | None = None
    if weights is not None:
        enough = {name: value.detach() >= skip_below for name, value in weights.items()}
        run = {name: value.any(dim=0).tolist() for name, value in enough.items()}
        weights = {name: torch.where(enough[name], value, 0.0) for name, value in weights.items()}

    def features(
        values: dict[str, Tensor], images: Tensor, weights: dict[str, Tensor] | None, paths: Tensor | None
    ) -> Tensor:
        options = {"skip_below": skip_below, "run": run, "paths": paths}
        result: Tensor = functional_call(network, values, (images, weights), options)
        return result

    dims = (0, 0, None if weights is None else 0, None if paths is None else 0)
    with _UnderVmap(precision):
        result: Tensor = vmap(features, in_dims=dims)(dict(values), images, weights, paths)
    return result


class _UnderVmap(TorchFunctionMode):
    """Inside, convolutions compute in another precision, and ``contiguous`` takes no memory format.

    In torch 2.13 autocast does not reach a convolution under vmap on a CPU, and vmap has no memory
    formats, which only change the speed.
    """

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._low = _LOW.get(precision)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.contiguous:
            return args[0].contiguous()
        if self._low is not None and func is _CONVOLUTION:
            low = [value.to(self._low) if isinstance(value, Tensor) else value for value in args]
            return func(*low, **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))
