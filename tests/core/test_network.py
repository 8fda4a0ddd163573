"""The one-shot network: sizes, and a cell held against a literal reference written out here."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metanas.network import Cell, Network, channels_last, count_parameters, one_shot_plan
from metanas.operations import (
    BatchNorm,
    DilatedDepthwise,
    FactorizedReduction,
    Pooling,
    Projection,
    SeparableConv,
    Skip,
)
from metanas.relaxation import initial_architecture, relax
from metanas.space import CELL_INPUTS, CELL_TYPES, SearchSpace


@pytest.mark.parametrize(
    ("in_channels", "size", "n_way", "count"), [(1, 28, 20, 462_272), (3, 84, 5, 462_509)], ids=["omniglot", "mini"]
)
def test_the_one_shot_network_has_exactly_the_published_number_of_parameters(
    in_channels: int, size: int, n_way: int, count: int
) -> None:
    space = SearchSpace(in_channels=in_channels, image_size=size)
    assert count_parameters(Network(space, one_shot_plan(space))) + n_way * (84 + 1) == count


def test_row_e_times_operations_plus_o_of_the_plan_is_operation_o_of_edge_e(small_space: SearchSpace) -> None:
    plan = one_shot_plan(small_space)["normal"]
    assert len(plan) == 9 * 7
    for e, (node, source) in enumerate(small_space.edges):
        for o, name in enumerate(small_space.operations):
            assert plan[7 * e + o] == (node, source, name)


def _norm(x: Tensor) -> Tensor:
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


def _factorized(module: FactorizedReduction, x: Tensor) -> Tensor:
    x = functional.relu(x)
    x = functional.pad(x, (0, 1, 0, 1))  # never read where the size is even
    height, width = x.shape[2] - 1, x.shape[3] - 1
    even = functional.conv2d(x[:, :, :height:2, :width:2], module.even.weight)
    odd = functional.conv2d(x[:, :, 1 : height + 1 : 2, 1 : width + 1 : 2], module.odd.weight)
    return _norm(torch.cat((even, odd), dim=1))


def _reference_operation(name: str, module: torch.nn.Module, x: Tensor, stride: int) -> Tensor:
    """What the paper says the operation is, from its weights alone."""
    if name == "max_pool_3x3":
        return _norm(functional.max_pool2d(x, 3, stride, 1))
    if name == "avg_pool_3x3":
        ones = functional.avg_pool2d(torch.ones_like(x), 3, stride, 1)  # what padding took away
        return _norm(functional.avg_pool2d(x, 3, stride, 1) / ones)
    if name == "skip_connect":
        return _norm(x) if stride == 1 else _factorized(module, x)
    if name == "conv_1x5_5x1":
        x = functional.conv2d(functional.relu(x), module.row.weight, stride=(1, stride), padding=(0, 2))
        return _norm(functional.conv2d(x, module.column.weight, stride=(stride, 1), padding=(2, 0)))
    dilation = 2 if name == "dil_conv_3x3" else 1
    for depthwise, pointwise in zip(module.depthwise, module.pointwise, strict=True):
        x = functional.relu(x)
        x = functional.conv2d(
            x, depthwise.weight, stride=stride, padding=dilation, dilation=dilation, groups=x.shape[1]
        )
        x = _norm(functional.conv2d(x, pointwise.weight))
        stride = 1
    return x


def _reference_cell(
    cell: Cell, space: SearchSpace, first: Tensor, second: Tensor, weights: Tensor, reduces: bool
) -> Tensor:
    """Equation 1 with equation 7's weights, edge by edge, nothing shared."""

    def prepared(module: torch.nn.Module, x: Tensor) -> Tensor:
        if isinstance(module, FactorizedReduction):
            return _factorized(module, x)
        return _norm(functional.conv2d(functional.relu(x), module.conv.weight))

    states = [prepared(cell.first_input, first), prepared(cell.second_input, second)]
    for node in range(space.nodes):
        total = torch.zeros(())
        for index, row in enumerate(cell.plan):
            if row.node == node:
                stride = 2 if reduces and row.source < CELL_INPUTS else 1
                module = cell.operation(index)
                total = total + weights[index] * _reference_operation(row.operation, module, states[row.source], stride)
        states.append(total)
    return torch.cat(states[CELL_INPUTS:], dim=1)


@pytest.mark.parametrize("reduces", [False, True])
@pytest.mark.parametrize("halve_first", [False, True])
@pytest.mark.parametrize("size", [6, 7])
def test_a_cell_equals_a_literal_reference_in_outputs_and_all_gradients(
    small_space: SearchSpace, reduces: bool, halve_first: bool, size: int
) -> None:
    torch.manual_seed(1)
    plan = one_shot_plan(small_space)["normal"]
    cell = Cell(small_space, plan, in_channels=(5, 6), reduces=reduces, halve_first=halve_first).double()
    first_size = 2 * size - 1 if halve_first else size
    first = torch.randn(3, 5, first_size, first_size, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 6, size, size, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(len(plan), dtype=torch.float64, requires_grad=True)
    learned = [first, second, weights, *cell.parameters()]

    output = cell(first, second, weights, 0.0)
    target = torch.randn_like(output)
    gradients = torch.autograd.grad((output * target).sum(), learned)
    expected = _reference_cell(cell, small_space, first, second, weights, reduces)
    expected_gradients = torch.autograd.grad((expected * target).sum(), learned)

    torch.testing.assert_close(output, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)


def test_operations_below_the_limit_are_not_run_and_others_are(small_space: SearchSpace) -> None:
    torch.manual_seed(0)
    network = Network(small_space, one_shot_plan(small_space))
    mixtures = relax(initial_architecture(small_space), small_space, temperature=1.0)
    weights = {name: mixture.rows.clone() for name, mixture in mixtures.items()}
    weights["normal"][3] = 5e-5
    calls: list[str] = []
    skipped = network.cells[0].operation(3)
    skipped.register_forward_hook(lambda *_: calls.append("skipped"))
    run = network.cells[0].operation(4)
    run.register_forward_hook(lambda *_: calls.append("run"))
    images = torch.randn(2, 1, 12, 12)
    nearly = network(images, weights, skip_below=1e-4)
    assert calls == ["run"]
    assert 0 < (nearly - network(images, weights)).abs().max() < 1e-2
    assert calls == ["run", "skipped", "run"]


def test_a_node_without_any_operation_is_an_error_and_not_a_zero(small_space: SearchSpace) -> None:
    network = Network(small_space, one_shot_plan(small_space))
    weights = {name: torch.full((63,), 1e-5) for name in ("normal", "reduction")}
    with pytest.raises(RuntimeError, match=r"node 0 has no operation of weight 0\.0001 or more"):
        network(torch.randn(2, 1, 12, 12), weights, skip_below=1e-4)


def test_reduction_cells_have_stride_2_on_the_cell_inputs_only(small_space: SearchSpace) -> None:
    network = Network(small_space, one_shot_plan(small_space))
    plan = network.cells[0].plan
    normal, reduction = network.cells[0], network.cells[1]
    assert isinstance(normal.operation(plan.index((0, 0, "skip_connect"))), Skip)
    assert isinstance(reduction.operation(plan.index((0, 0, "skip_connect"))), FactorizedReduction)
    assert isinstance(reduction.operation(plan.index((2, 2, "skip_connect"))), Skip)
    assert isinstance(network.cells[2].first_input, FactorizedReduction)
    assert isinstance(network.cells[3].first_input, Projection)
    pooling = reduction.operation(plan.index((0, 1, "max_pool_3x3")))
    separable = reduction.operation(plan.index((0, 1, "conv_3x3")))
    assert isinstance(pooling, Pooling)
    assert pooling.stride == 2
    assert isinstance(separable, SeparableConv)
    assert separable.depthwise[0].stride == (2, 2)


@pytest.mark.parametrize("size", [5, 12, 13])
def test_features_have_the_declared_length_at_any_size(size: int) -> None:
    space = SearchSpace(channels=4, image_size=size, cells=5, nodes=2, operations=("skip_connect", "conv_3x3"))
    network = Network(space, one_shot_plan(space))
    mixtures = relax(initial_architecture(space), space, temperature=1.0)
    features = network(torch.randn(3, 1, size, size), {name: mixture.rows for name, mixture in mixtures.items()})
    assert features.shape == (3, space.features) == (3, 8)


def test_all_gradients_in_channels_last_are_those_of_a_literal_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm written out, plain dilated convolutions, contiguous memory: the same to float64 rounding."""
    torch.manual_seed(0)
    space = SearchSpace(channels=8, image_size=16)
    fast = Network(space, one_shot_plan(space)).double()
    literal = copy.deepcopy(fast)
    channels_last(fast)
    images = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    direction = torch.randn(4, space.features, dtype=torch.float64)
    weights = {name: torch.rand(63, dtype=torch.float64) / 20 for name in CELL_TYPES}

    def gradients(network: Network) -> dict[str, torch.Tensor]:
        mixture = {name: value.clone().requires_grad_() for name, value in weights.items()}
        (network(images, mixture) * direction).sum().backward()
        found = {**dict(network.named_parameters()), **mixture}
        return {name: value.grad for name, value in found.items() if value.grad is not None}

    def batch_norm(norm: BatchNorm, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        x = x.contiguous()
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        y = (x - mean) / (variance + norm.epsilon).sqrt()
        if norm.weight is not None and norm.bias is not None:
            y = y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        return y if scale is None else y * scale

    of_fast = gradients(fast)
    monkeypatch.setattr(BatchNorm, "forward", batch_norm)
    monkeypatch.setattr(DilatedDepthwise, "forward", torch.nn.Conv2d.forward)
    of_literal = gradients(literal)
    assert of_fast.keys() == of_literal.keys()
    for name, value in of_literal.items():
        torch.testing.assert_close(of_fast[name], value, rtol=1e-9, atol=1e-9, msg=name)
