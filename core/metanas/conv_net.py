"""REPTILE's CNN, the network that few-shot papers compare with.

    ConvNet    images  ->  features; no cells, nothing to search

It takes the arguments of ``Network.forward`` that a fixed architecture has no use for, so that
meta-learners, adaptation and evaluation treat both alike.

Source: Vinyals et al., NIPS 2016; Nichol et al., arXiv 1803.02999.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanas.operations import BatchNorm
from metanas.space import NO_CELLS, ConvBlocks


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution with bias, affine batch norm, ReLU and 2x2 max pooling, then flattened."""

    def __init__(self, space: ConvBlocks) -> None:
        super().__init__()
        self.space = space
        self.genotype = NO_CELLS
        channels = [space.in_channels, *[space.filters] * space.blocks]
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(channels))
        self.norms = nn.ModuleList(BatchNorm(space.filters, affine=True) for _ in self.convs)

    def forward(
        self,
        images: Tensor,
        weights: Mapping[str, Tensor] | None = None,
        *,
        skip_below: float = 0.0,
        run: Mapping[str, Sequence[bool]] | None = None,
        paths: Tensor | None = None,
        twice_differentiable: bool = False,
    ) -> Tensor:
        """``(batch, in_channels, H, W)`` float32 to ``(batch, space.features)``.

        There are no operation weights, so these options change nothing.
        """
        x = images.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.max_pool2d(functional.relu(norm(conv(x))), 2)
        # contiguous: channel by channel, whatever the memory format, as the exporter lays it out.
        return x.contiguous().flatten(1)
