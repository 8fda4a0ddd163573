"""How images and weights lie in memory: what each device is fastest with.

fast_layout   device  ->  memory format of images and convolution weights
lay_out       brings the weights of a module into it
"""

import torch
from torch import nn


def fast_layout(device: torch.device) -> torch.memory_format:
    """The memory format for ``device``.

    On a CPU channels_last is several times faster; on CUDA PyTorch's kernels for depthwise
    convolutions in float32 want the channels first.
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def lay_out(module: nn.Module) -> None:
    """Lay the weights of ``module`` out for speed, in place."""
    module.to(memory_format=fast_layout(next(module.parameters()).device))  # type: ignore[call-overload]
