"""Candidate operations: sizes, parameter counts, and the shortcuts that must change no result."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metanas.errors import InvalidConfigError
from metanas.network import channels_last, count_parameters
from metanas.operations import OPERATIONS, BatchNorm, DilatedDepthwise, Operation, build_operation

WEIGHTLESS = {"max_pool_3x3": 0, "avg_pool_3x3": 0, "skip_connect": 0}
WITH_WEIGHTS = {"conv_1x5_5x1": 7_840, "conv_3x3": 1_036, "sep_conv_3x3": 2_072, "dil_conv_3x3": 1_036}


# By hand for C = 28: a depthwise 5x5 has 25 * 28 = 700 weights, a pointwise 784.
WITH_5X5 = {"conv_5x5": 1_484, "sep_conv_5x5": 2_968, "dil_conv_5x5": 1_484}


@pytest.mark.parametrize(("name", "count"), {**WEIGHTLESS, **WITH_WEIGHTS, **WITH_5X5}.items())
def test_parameters_of_an_operation_at_stride_1_are_those_of_section_9(name: str, count: int) -> None:
    assert count_parameters(build_operation(name, 28, stride=1)) == count


@pytest.mark.parametrize(("name", "count"), {**WEIGHTLESS, **WITH_WEIGHTS, "skip_connect": 784}.items())
def test_parameters_of_an_operation_at_stride_2_are_those_of_section_9(name: str, count: int) -> None:
    assert count_parameters(build_operation(name, 28, stride=2)) == count


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("stride", "size", "expected"), [(1, 7, 7), (1, 8, 8), (2, 7, 4), (2, 8, 4)])
def test_every_operation_keeps_the_size_or_halves_it_rounding_up(
    name: str, stride: int, size: int, expected: int
) -> None:
    x = torch.randn(2, 6, size, size + 1)
    y = build_operation(name, 6, stride=stride)(x)
    assert y.shape == (2, 6, expected, -(-(size + 1) // stride))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_ends_in_a_batch_norm_without_affine_parameters(name: str) -> None:
    y = build_operation(name, 4, stride=2)(torch.randn(8, 4, 9, 9))
    assert y.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (y.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("name", OPERATIONS)
def test_scaling_an_operation_multiplies_its_result_and_takes_the_gradient_of_the_scale(name: str) -> None:
    torch.manual_seed(0)
    operation = build_operation(name, 4, stride=1)
    x, target = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6)
    scale = torch.tensor(0.3, requires_grad=True)
    torch.testing.assert_close(operation(x, scale), 0.3 * operation(x))
    (operation(x, scale) * target).sum().backward()
    torch.testing.assert_close(scale.grad, (operation(x) * target).sum().detach(), rtol=1e-4, atol=1e-4)


def test_an_unknown_operation_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(
        InvalidConfigError, match="unknown operation 'zero'; known are max_pool_3x3, avg_pool_3x3, skip"
    ):
        build_operation("zero", 4, stride=1)


@pytest.mark.parametrize(
    ("kernel", "stride", "height", "width", "layout"),
    list(itertools.product((3, 5), (1, 2), (1, 6, 7), (5, 8), (torch.contiguous_format, torch.channels_last))),
)
def test_the_fast_dilated_convolution_is_the_plain_one_forward_and_backward(
    kernel: int, stride: int, height: int, width: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    fast = DilatedDepthwise(4, stride, kernel=kernel).double()
    assert fast.weight.shape == (4, 1, kernel, kernel)
    x = torch.randn(3, 4, height, width, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    plain_x, plain_weight = x.detach().clone().requires_grad_(), fast.weight.detach().clone().requires_grad_()

    y = fast(x)
    plain_y = functional.conv2d(plain_x, plain_weight, stride=stride, padding=kernel - 1, dilation=2, groups=4)
    torch.testing.assert_close(y, plain_y)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain_y.detach())

    target = torch.randn_like(plain_y)
    (y * target).sum().backward()
    (plain_y * target).sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad)
    torch.testing.assert_close(fast.weight.grad, plain_weight.grad)


def test_batch_norm_in_training_uses_the_batch_and_keeps_nothing() -> None:
    norm = BatchNorm(2)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]]).view(2, 2, 1, 1)
    # Means 2 and 20, biased variances 1 and 100.
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([-1.0, -1.0, 1.0, 1.0]), rtol=1e-4, atol=1e-4)
    assert norm.mean.tolist() == [0.0, 0.0]
    assert norm.variance.tolist() == [1.0, 1.0]


def test_padding_never_counts_in_a_pooled_mean_or_maximum() -> None:
    def pooled(name: str) -> Tensor:
        operation = build_operation(name, 1, stride=1)
        operation.norm = _Pass()
        return operation(-torch.ones(1, 1, 4, 4))

    assert pooled("avg_pool_3x3").unique().tolist() == [-1.0]
    assert pooled("max_pool_3x3").unique().tolist() == [-1.0]


def test_the_factorized_reduction_sees_even_and_odd_pixels() -> None:
    operation = build_operation("skip_connect", 2, stride=2)
    operation.norm = _Pass()
    with torch.no_grad():
        operation.even.weight.fill_(1.0)
        operation.odd.weight.fill_(1.0)
    x = torch.arange(9.0).view(1, 1, 3, 3).repeat(1, 2, 1, 1)
    even, odd = operation(x)[0].tolist()
    assert even == [[0.0, 4.0], [12.0, 16.0]]  # twice 0, 2, 6, 8
    assert odd == [[8.0, 0.0], [0.0, 0.0]]  # twice 4; the rest is padding


class _Pass(Operation):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return x if scale is None else x * scale


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_a_scale_in_the_batch_norm_has_the_gradients_of_a_multiplication(
    layout: torch.memory_format, training: bool
) -> None:
    """torch 2.13 ignores the strides of the weight in its backward pass for channels_last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, 8, 8, generator=generator).contiguous(memory_format=layout)
    upstream = torch.randn(5, 6, 8, 8, generator=generator).contiguous(memory_format=layout)
    weights = torch.rand(63, generator=generator)
    norm = BatchNorm(6)
    norm.train(training)

    def gradients(literally: bool) -> tuple[torch.Tensor, torch.Tensor]:
        image, mixture = x.clone().requires_grad_(), weights.clone().requires_grad_()
        y = norm(image) * mixture[5] if literally else norm(image, mixture[5])
        y.backward(upstream)
        assert image.grad is not None
        assert mixture.grad is not None
        return image.grad, mixture.grad

    torch.testing.assert_close(gradients(False), gradients(True), rtol=1e-4, atol=1e-4)


def _normalised(x: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
    """Batch norm written out, with biased variance."""
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    y = (x - mean) / (variance + 1e-5).sqrt()
    if gain is None or shift is None:
        return y
    return y * gain[:, None, None] + shift[:, None, None]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "rounds", "kernel", "dilation"),
    [
        ("conv_3x3", 1, 3, 1),
        ("sep_conv_3x3", 2, 3, 1),
        ("dil_conv_3x3", 1, 3, 2),
        ("conv_5x5", 1, 5, 1),
        ("sep_conv_5x5", 2, 5, 1),
        ("dil_conv_5x5", 1, 5, 2),
    ],
)
def test_a_separable_operation_equals_literal_convolutions_in_value_and_all_gradients(
    name: str, rounds: int, kernel: int, dilation: int, stride: int, size: int, affine: bool
) -> None:
    """Rounds of ReLU, depthwise, pointwise, norm; a k x k kernel of dilation d has padding d (k - 1) / 2."""
    torch.manual_seed(0)
    operation = build_operation(name, 4, stride=stride, affine=affine).double()
    if affine:
        for norm in (module for module in operation.modules() if isinstance(module, BatchNorm)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    assert operation.rectified
    x = torch.randn(3, 4, size, size, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    learned = [x, scale, *operation.parameters()]

    y = x
    for index in range(rounds):
        depthwise, pointwise, norm = operation.depthwise[index], operation.pointwise[index], operation.norms[index]
        assert depthwise.weight.shape == (4, 1, kernel, kernel)
        y = functional.conv2d(
            y.clamp(min=0), depthwise.weight, stride=stride if index == 0 else 1,
            padding=dilation * (kernel - 1) // 2, dilation=dilation, groups=4,
        )  # fmt: skip
        y = _normalised(torch.einsum("oi,bihw->bohw", pointwise.weight[:, :, 0, 0], y), norm.weight, norm.bias)
    literal = y * scale
    target = torch.randn_like(literal)
    expected = torch.autograd.grad((literal * target).sum(), learned)

    found = operation(functional.relu(x), scale)
    torch.testing.assert_close(found, literal)
    for gradient, expected_gradient in zip(torch.autograd.grad((found * target).sum(), learned), expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_an_affine_batch_norm_with_a_scale_equals_the_formula_in_value_and_gradients(
    layout: torch.memory_format, training: bool
) -> None:
    """``scale * (gain * (x - mean) / sqrt(variance + epsilon) + shift)``: the scale reaches the shift too."""
    torch.manual_seed(0)
    norm = BatchNorm(6, affine=True).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    norm.mean.copy_(torch.randn(6))
    norm.variance.copy_(torch.rand(6) + 0.5)
    norm.train(training)
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    scale = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    learned = [x, scale, norm.weight, norm.bias]
    if training:
        literal = scale * _normalised(x, norm.weight, norm.bias)
    else:
        mean, deviation = norm.mean[:, None, None], (norm.variance + 1e-5).sqrt()[:, None, None]
        literal = scale * ((x - mean) / deviation * norm.weight[:, None, None] + norm.bias[:, None, None])
    target = torch.randn(5, 6, 4, 4, dtype=torch.float64).contiguous(memory_format=layout)
    expected = torch.autograd.grad((literal * target).sum(), learned)

    found = norm(x, scale)
    torch.testing.assert_close(found, literal)
    for gradient, expected_gradient in zip(torch.autograd.grad((found * target).sum(), learned), expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_an_affine_operation_has_two_parameters_more_a_channel_for_each_of_its_norms(name: str, stride: int) -> None:
    plain, affine = (build_operation(name, 4, stride=stride, affine=flag) for flag in (False, True))
    norms = 2 if name.startswith("sep") else 1
    assert count_parameters(affine) == count_parameters(plain) + norms * 2 * 4


def test_narrow_reductions_leave_the_heap_whole() -> None:
    # In a process of its own: what oneDNN writes out of bounds (uxlfoundation/oneDNN#6035) kills it.
    code = """
import torch
from metanas.operations import FactorizedReduction

for channels in (4, 8, 12, 15):
    reduction = FactorizedReduction(channels, 4).to(memory_format=torch.channels_last)
    for _ in range(20):
        x = torch.rand(3, channels, 84, 84).contiguous(memory_format=torch.channels_last).requires_grad_()
        reduction(x).sum().backward()
        others = [torch.rand(1000) for _ in range(50)]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_a_gpu_values_and_gradients_are_those_of_a_cpu(
    name: str, stride: int, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of networks, in which PyTorch's gradient of a padded mean is wrong (pytorch/pytorch#188344)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    operation = build_operation(name, 10, stride=stride, affine=affine)
    x, target = torch.randn(4, 10, 8, 8), torch.randn(4, 10, 8 // stride, 8 // stride)

    def run(device: str, dtype: torch.dtype) -> list[Tensor]:
        there = copy.deepcopy(operation).to(device, dtype)
        channels_last(there)
        images = x.to(device, dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        scale = torch.tensor(0.7, device=device, dtype=dtype, requires_grad=True)
        y = there(images, scale)
        y.backward(target.to(device, dtype))
        learned = [images, scale, *there.parameters()]
        return [value.detach().double().cpu() for value in (y, *(one.grad for one in learned if one.grad is not None))]

    for here, there in zip(run("cpu", torch.float64), run("cuda", torch.float32), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4 * here.abs().max().item())
