"""The candidate operations of an edge, and the pieces that every network here is made of.

    BatchNorm            normalises with the statistics of the batch, or with frozen ones (``statistics``)
    build_operation      name, channels, stride  ->  module
    Operation            what all operations have in common

Every operation of a search ends in a batch norm without affine parameters, so that the weights
of the mixture are comparable between operations. "conv_3x3" is a depthwise 3x3 and a pointwise
1x1 convolution, "sep_conv_3x3" is that twice, "dil_conv_3x3" is that with dilation 2; the same
with 5x5. Networks of one fixed genotype may have affine batch norms.

Two things save time and change no result. An operation that starts with a ReLU says so
(``rectified``) and is given the rectified input, which the edges that leave one input share.
And the weight of the mixture goes in as the scale of the last batch norm, whose backward
pass sums its gradient anyway.

Source: Elsken et al., CVPR 2020, section 5.1; batch statistics: TaskNorm, arXiv 2003.03284.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanas.errors import InvalidConfigError


@dataclass(frozen=True, slots=True)
class Prior:
    """Mean and variance, ``(channels,)``, that count as if ``images`` more had been in a batch."""

    mean: Tensor
    variance: Tensor
    images: float

    def blend(self, mean: Tensor, variance: Tensor, *, images: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of both together, of as many pixels an image."""
        share = images / (images + self.images)
        old_mean, old_variance = self.mean.to(mean.device), self.variance.to(mean.device)
        both = share * mean + (1.0 - share) * old_mean
        spread = share * (variance + (mean - both).square())
        return both, spread + (1.0 - share) * (old_variance + (old_mean - both).square())


class BatchNorm(nn.Module):
    """Batch norm for few-shot tasks: no running average.

    In training mode each batch is normalised with its own mean and (biased) variance. In
    evaluation mode it is normalised with the frozen ``mean`` and ``variance``, which
    ``statistics.measuring`` fills from one batch: the whole support set of a task.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, *, affine: bool = False, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.measuring = False
        self.prior: Prior | None = None
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Normalise ``(batch, channels, height, width)`` per channel.

        Args:
            x: float32, any layout.
            scale: 0-dimensional; multiplies the result.
        """
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if scale is not None and weight is not None and bias is not None:
            weight, bias = weight * scale, bias * scale
        elif scale is not None:
            # contiguous: the backward pass of torch 2.13 for channels_last ignores the strides of the weight.
            weight = scale.expand(x.shape[1]).contiguous()
        if self.measuring:
            with torch.no_grad():
                variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
                if self.prior is not None:
                    mean, variance = self.prior.blend(mean, variance, images=len(x))
                self.mean.copy_(mean)
                self.variance.copy_(variance)
        if (self.training or self.measuring) and self.prior is None:
            return functional.batch_norm(x, None, None, weight, bias, training=True, eps=self.epsilon)
        return functional.batch_norm(x, self.mean, self.variance, weight, bias, eps=self.epsilon)


class Operation(nn.Module):
    """A candidate operation: ``(batch, C, H, W)`` to ``(batch, C, ceil(H/stride), ceil(W/stride))``.

    ``forward(x, scale)`` takes the rectified input where ``rectified`` is true and multiplies
    the result by ``scale``, a 0-dimensional tensor, where one is given.
    """

    rectified = False
    """Whether the operation begins with a ReLU, which the caller applies."""


class FactorizedReduction(Operation):
    """Two 1x1 convolutions of stride 2, one of them a pixel further, then batch norm."""

    rectified = True

    def __init__(self, in_channels: int, channels: int, *, affine: bool = False) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, channels - channels // 2, 1, stride=2, bias=False)
        self.norm = BatchNorm(channels, affine=affine)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Halve height and width, rounding up."""
        height, width = x.shape[-2:]
        shifted = functional.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return cast(Tensor, self.norm(torch.cat((_pick(self.even, x), _pick(self.odd, shifted)), dim=1), scale))


def _pick(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Run a 1x1 convolution of stride 2."""
    if conv.in_channels < 16:
        # oneDNN (torch 2.13, uxlfoundation/oneDNN#6035) writes out of bounds in its backward pass of these, where a
        # register holds more channels than there are: the heap is corrupt, the process dies.
        return functional.conv2d(x[:, :, ::2, ::2], conv.weight)
    return cast(Tensor, conv(x))


class Projection(Operation):
    """A 1x1 convolution, then batch norm: brings a cell's input to C channels."""

    rectified = True

    def __init__(self, in_channels: int, channels: int, *, affine: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm = BatchNorm(channels, affine=affine)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Mix the channels."""
        return cast(Tensor, self.norm(self.conv(x), scale))


class Pooling(Operation):
    """3x3 pooling with padding 1, then batch norm. Padding never counts, in maximum or mean."""

    def __init__(self, kind: str, channels: int, stride: int, *, affine: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.stride = stride
        self.norm = BatchNorm(channels, affine=affine)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Pool each channel."""
        if self.kind == "max":
            pooled = functional.max_pool2d(x, 3, self.stride, 1)
        else:
            # PyTorch's gradient for channels_last on CUDA is wrong (pytorch/pytorch#188344; seen with 2.11).
            x = x.contiguous() if x.is_cuda else x
            pooled = functional.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
        return cast(Tensor, self.norm(pooled, scale))


class Skip(Operation):
    """The input itself, batch-normalised; at stride 2 a ``FactorizedReduction`` takes its place."""

    def __init__(self, channels: int, *, affine: bool = False) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, affine=affine)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Pass the input on."""
        return cast(Tensor, self.norm(x, scale))


class Factorized5x5(Operation):
    """A 1x5 and a 5x1 convolution, then batch norm; the stride is split between the two."""

    rectified = True

    def __init__(self, channels: int, stride: int, *, affine: bool = False) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels, channels, (1, 5), stride=(1, stride), padding=(0, 2), bias=False)
        self.column = nn.Conv2d(channels, channels, (5, 1), stride=(stride, 1), padding=(2, 0), bias=False)
        self.norm = BatchNorm(channels, affine=affine)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Convolve along the rows, then along the columns."""
        return cast(Tensor, self.norm(self.column(self.row(x)), scale))


class DilatedDepthwise(nn.Conv2d):
    """Depthwise convolution of dilation 2, with a backward pass several times as fast.

    The sum is the same: a dilated kernel never mixes even with odd pixels, so the four phases
    of the image go through a plain kernel as images of their own. At stride 2 only one
    phase is left. PyTorch's own backward pass of a dilated depthwise convolution is slow on a CPU;
    on CUDA it is used.
    """

    def __init__(self, channels: int, stride: int, *, kernel: int = 3) -> None:
        super().__init__(channels, channels, kernel, stride, kernel - 1, dilation=2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(batch, channels, H, W)``; on a CPU channels_last is fastest."""
        if not torch.is_grad_enabled() or x.is_cuda:
            return super().forward(x)
        if self.stride[0] == 2:
            return self._plain(x[:, :, ::2, ::2])
        batch, channels, height, width = x.shape
        x = functional.pad(x, (0, width % 2, 0, height % 2))
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        phases = x.permute(0, 2, 3, 1).reshape(batch, rows, 2, columns, 2, channels).permute(2, 4, 0, 1, 3, 5)
        y = self._plain(phases.reshape(4 * batch, rows, columns, channels).permute(0, 3, 1, 2))
        y = y.permute(0, 2, 3, 1).reshape(2, 2, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
        return y.reshape(batch, 2 * rows, 2 * columns, channels).permute(0, 3, 1, 2)[:, :, :height, :width]

    def _plain(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, padding=self.kernel_size[0] // 2, groups=self.groups)


def depthwise(channels: int, stride: int, dilation: int, *, kernel: int = 3) -> nn.Conv2d:
    """A depthwise convolution that keeps the size at stride 1; ``dilation`` is 1 or 2."""
    if dilation == 2:
        return DilatedDepthwise(channels, stride, kernel=kernel)
    return nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False)


class SeparableConv(Operation):
    """One to several rounds of ReLU, depthwise, pointwise 1x1, batch norm; the first has the stride."""

    rectified = True

    def __init__(
        self, channels: int, stride: int, *, rounds: int = 1, dilation: int = 1, kernel: int = 3, affine: bool = False
    ) -> None:
        super().__init__()
        strides = [stride, *[1] * (rounds - 1)]
        self.depthwise = nn.ModuleList(depthwise(channels, s, dilation, kernel=kernel) for s in strides)
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in strides)
        self.norms = nn.ModuleList(BatchNorm(channels, affine=affine) for _ in strides)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Convolve, round by round."""
        last = len(self.norms) - 1
        for index, norm in enumerate(self.norms):
            x = norm(self.pointwise[index](self.depthwise[index](x)), scale if index == last else None)
            if index < last:
                x = functional.relu(x)
        return x


def _skip(channels: int, stride: int, *, affine: bool) -> Operation:
    if stride == 1:
        return Skip(channels, affine=affine)
    return FactorizedReduction(channels, channels, affine=affine)


class Builder(Protocol):
    """Makes one candidate operation."""

    def __call__(self, channels: int, stride: int, /, *, affine: bool) -> Operation: ...


OPERATIONS: dict[str, Builder] = {
    "max_pool_3x3": partial(Pooling, "max"),
    "avg_pool_3x3": partial(Pooling, "avg"),
    "skip_connect": _skip,
    "conv_1x5_5x1": Factorized5x5,
    "conv_3x3": SeparableConv,
    "sep_conv_3x3": partial(SeparableConv, rounds=2),
    "dil_conv_3x3": partial(SeparableConv, dilation=2),
    "conv_5x5": partial(SeparableConv, kernel=5),
    "sep_conv_5x5": partial(SeparableConv, rounds=2, kernel=5),
    "dil_conv_5x5": partial(SeparableConv, dilation=2, kernel=5),
}


def build_operation(name: str, channels: int, *, stride: int, affine: bool = False) -> Operation:
    """Build one candidate operation.

    Args:
        affine: whether its batch norms have a scale and a shift.

    Returns:
        A module from ``(batch, channels, H, W)`` to ``(batch, channels, ceil(H/stride), ceil(W/stride))``.

    Raises:
        InvalidConfigError: there is no operation of that name.
    """
    if name not in OPERATIONS:
        raise InvalidConfigError(f"unknown operation {name!r}; known are {', '.join(OPERATIONS)}")
    return OPERATIONS[name](channels, stride, affine=affine)
