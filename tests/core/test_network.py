"""One-shot network and fixed genotypes: sizes, a cell held against a literal reference, DropPath."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metanas.errors import InvalidConfigError
from metanas.genotypes import GENOTYPES, named_genotype
from metanas.network import Cell, Network, PlanRow, channels_last, count_parameters, genotype_plan, one_shot_plan
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
from metanas.space import CELL_INPUTS, CELL_TYPES, EdgeOperation, Genotype, SearchSpace


@pytest.mark.parametrize(
    ("in_channels", "size", "n_way", "count"), [(1, 28, 20, 462_272), (3, 84, 5, 462_509)], ids=["omniglot", "mini"]
)
def test_the_one_shot_network_has_exactly_the_published_number_of_parameters(
    in_channels: int, size: int, n_way: int, count: int
) -> None:
    space = SearchSpace(in_channels=in_channels, image_size=size)
    assert count_parameters(Network(space)) + n_way * (84 + 1) == count


def test_row_e_times_operations_plus_o_of_the_plan_is_operation_o_of_edge_e(small_space: SearchSpace) -> None:
    plan = one_shot_plan(small_space)["normal"]
    assert len(plan) == 9 * 7
    for e, (node, source) in enumerate(small_space.edges):
        for o, name in enumerate(small_space.operations):
            assert plan[7 * e + o] == PlanRow(node, source, name, copy=0)


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

    output = cell(first, second, weights, [True] * len(plan), None)
    target = torch.randn_like(output)
    gradients = torch.autograd.grad((output * target).sum(), learned)
    expected = _reference_cell(cell, small_space, first, second, weights, reduces)
    expected_gradients = torch.autograd.grad((expected * target).sum(), learned)

    torch.testing.assert_close(output, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)


def test_operations_below_the_limit_are_not_run_and_others_are(small_space: SearchSpace) -> None:
    torch.manual_seed(0)
    network = Network(small_space)
    mixtures = relax(initial_architecture(small_space), small_space, temperature=1.0)
    weights = {name: mixture.rows.clone() for name, mixture in mixtures.items()}
    weights["normal"][3] = 5e-5
    calls: list[str] = []
    skipped = network.cells[0].operation(3)
    skipped.register_forward_hook(lambda *_: calls.append("skipped"))
    run = network.cells[0].operation(4)
    run.register_forward_hook(lambda *_: calls.append("run"))
    images = torch.randn(2, 1, 12, 12)
    nearly = network(images, weights, skip_below=1e-4, twice_differentiable=True)
    assert calls == ["run"]
    assert 0 < (nearly - network(images, weights, twice_differentiable=True)).abs().max() < 1e-2
    assert calls == ["run", "skipped", "run"]


def test_a_node_without_any_operation_is_an_error_and_not_a_zero(small_space: SearchSpace) -> None:
    network = Network(small_space)
    weights = {name: torch.full((63,), 1e-5) for name in ("normal", "reduction")}
    with pytest.raises(RuntimeError, match="no operation of node 0 is run; the largest of its weights must be"):
        network(torch.randn(2, 1, 12, 12), weights, skip_below=1e-4)


def test_reduction_cells_have_stride_2_on_the_cell_inputs_only(small_space: SearchSpace) -> None:
    network = Network(small_space)
    plan = network.cells[0].plan
    normal, reduction = network.cells[0], network.cells[1]
    assert isinstance(normal.operation(plan.index(PlanRow(0, 0, "skip_connect"))), Skip)
    assert isinstance(reduction.operation(plan.index(PlanRow(0, 0, "skip_connect"))), FactorizedReduction)
    assert isinstance(reduction.operation(plan.index(PlanRow(2, 2, "skip_connect"))), Skip)
    assert isinstance(network.cells[2].first_input, FactorizedReduction)
    assert isinstance(network.cells[3].first_input, Projection)
    pooling = reduction.operation(plan.index(PlanRow(0, 1, "max_pool_3x3")))
    separable = reduction.operation(plan.index(PlanRow(0, 1, "conv_3x3")))
    assert isinstance(pooling, Pooling)
    assert pooling.stride == 2
    assert isinstance(separable, SeparableConv)
    assert separable.depthwise[0].stride == (2, 2)


@pytest.mark.parametrize("size", [5, 12, 13])
def test_features_have_the_declared_length_at_any_size(size: int) -> None:
    space = SearchSpace(channels=4, image_size=size, cells=5, nodes=2, operations=("skip_connect", "conv_3x3"))
    network = Network(space)
    mixtures = relax(initial_architecture(space), space, temperature=1.0)
    features = network(torch.randn(3, 1, size, size), {name: mixture.rows for name, mixture in mixtures.items()})
    assert features.shape == (3, space.features) == (3, 8)


def test_all_gradients_in_channels_last_are_those_of_a_literal_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm written out, plain dilated convolutions, contiguous memory: the same to float64 rounding."""
    torch.manual_seed(0)
    space = SearchSpace(channels=8, image_size=16)
    fast = Network(space).double()
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


UNEVEN = Genotype(
    normal=(
        (EdgeOperation(0, "conv_3x3", 0.7), EdgeOperation(1, "max_pool_3x3", 0.2)),
        (EdgeOperation(1, "skip_connect", 0.9), EdgeOperation(2, "dil_conv_3x3", 1.3)),
        (EdgeOperation(1, "max_pool_3x3", 0.6), EdgeOperation(3, "conv_1x5_5x1", 0.4)),
    ),
    reduction=(
        (EdgeOperation(0, "skip_connect", 0.8),),
        (EdgeOperation(0, "sep_conv_3x3", 0.5), EdgeOperation(2, "avg_pool_3x3", 0.25)),
        (EdgeOperation(3, "conv_3x3", 1.1), EdgeOperation(0, "max_pool_3x3", 0.3), EdgeOperation(1, "conv_3x3", 0.1)),
    ),
)
"""Weights of all sizes, and unequal numbers of rows."""


def _twice_on_one_edge(first: float, second: float, *, operation: str = "conv_3x3") -> Genotype:
    node = (EdgeOperation(0, operation, first), EdgeOperation(1, "conv_3x3", 0.5), EdgeOperation(0, operation, second))
    return Genotype(normal=(node,), reduction=(node,))


def test_a_fixed_genotype_equals_the_one_shot_network_with_its_weights_and_0_elsewhere(
    small_space: SearchSpace,
) -> None:
    torch.manual_seed(0)
    one_shot, fixed = Network(small_space), Network(small_space, UNEVEN)
    fixed.load_state_dict({name: one_shot.state_dict()[name] for name in fixed.state_dict()})
    weights = {}
    for cell_type in CELL_TYPES:
        by_row = {
            (node, edge.source, edge.operation): edge.weight
            for node, edges in enumerate(UNEVEN.cell(cell_type))
            for edge in edges
        }
        rows = [by_row.get((row.node, row.source, row.operation), 0.0) for row in one_shot_plan(small_space)[cell_type]]
        assert sum(weight > 0 for weight in rows) == 6
        weights[cell_type] = torch.tensor(rows)
    images = torch.randn(3, 1, 12, 12)
    torch.testing.assert_close(fixed(images), one_shot(images, weights), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fixed(images), one_shot(images, weights, skip_below=1e-4), rtol=1e-4, atol=1e-5)


def test_without_weights_a_network_takes_the_constants_of_its_genotype(small_space: SearchSpace) -> None:
    torch.manual_seed(0)
    network = Network(small_space, UNEVEN)
    weights = {
        "normal": torch.tensor([0.7, 0.2, 0.9, 1.3, 0.6, 0.4]),
        "reduction": torch.tensor([0.8, 0.5, 0.25, 1.1, 0.3, 0.1]),
    }
    images = torch.randn(3, 1, 12, 12)
    assert torch.equal(network(images), network(images, weights))
    other = {**weights, "normal": weights["normal"].flip(0)}
    assert (network(images) - network(images, other)).abs().max() > 1e-2
    assert not any("_weights" in name for name in network.state_dict())


def test_a_genotype_of_another_number_of_nodes_is_refused(small_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfigError, match="the genotype has 5 nodes, the space has 3"):
        Network(small_space, named_genotype("autometa"))


def test_an_operation_twice_on_one_edge_has_weights_of_its_own_each_time() -> None:
    torch.manual_seed(0)
    space = SearchSpace(channels=4, image_size=12, cells=2, nodes=1, reduction_cells=(1,))
    genotype = _twice_on_one_edge(0.3, 0.6)
    plan = genotype_plan(genotype)["normal"]
    assert [row.copy for row in plan] == [0, 0, 1]
    network = Network(space, genotype)
    first, second = network.cells[0].operation(0), network.cells[0].operation(2)
    assert first is not second
    assert not torch.equal(first.pointwise[0].weight, second.pointwise[0].weight)
    once = Network(space, Genotype(normal=(genotype.normal[0][:2],), reduction=(genotype.normal[0][:2],)))
    assert count_parameters(network) - count_parameters(once) == 2 * (9 * 4 + 4 * 4)
    names = [name for name in dict(network.named_parameters()) if ".operations." in name]
    assert {name.split(".")[3] for name in names} == {
        "node0_from0_conv_3x3", "node0_from1_conv_3x3", "node0_from0_conv_3x3_2",
    }  # fmt: skip
    images = torch.randn(3, 1, 12, 12)
    network(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_weightless_operation_twice_on_one_edge_counts_with_both_weights() -> None:
    torch.manual_seed(0)
    space = SearchSpace(channels=4, image_size=12, cells=2, nodes=1, reduction_cells=(1,))
    twice = Network(space, _twice_on_one_edge(0.3, 0.6, operation="max_pool_3x3"))
    once = EdgeOperation(0, "max_pool_3x3", 0.9), EdgeOperation(1, "conv_3x3", 0.5)
    joined = Network(space, Genotype(normal=(once,), reduction=(once,)))
    joined.load_state_dict(twice.state_dict())
    images = torch.randn(3, 1, 12, 12)
    torch.testing.assert_close(twice(images), joined(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GENOTYPES)
@pytest.mark.parametrize("affine", [False, True])
def test_gradients_reach_all_parameters_of_a_named_genotype_that_an_output_needs(name: str, affine: bool) -> None:
    torch.manual_seed(0)
    genotype = named_genotype(name)
    space = SearchSpace(channels=4, image_size=12, nodes=len(genotype.normal), affine=affine)
    network = Network(space, genotype)
    network(torch.randn(4, 1, 12, 12)).square().sum().backward()
    without = {key for key, parameter in network.named_parameters() if parameter.grad is None}
    # AutoMeta's cells never read their input 0, and so nothing of what only leads there.
    expected = {key for key, _ in network.named_parameters() if name == "autometa" and ".first_input." in key}
    assert without == expected


def test_drop_path_keeps_the_mean_and_takes_only_two_values(small_space: SearchSpace) -> None:
    network = Network(small_space, UNEVEN)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([network.draw_paths(50, probability=0.2, generator=generator) for _ in range(40)])
    assert draws.shape == (40, 4, 6, 50)
    assert draws.unique().tolist() == pytest.approx([0.0, 1.25])
    # 48,000 draws of deviation 0.5: five standard errors of the mean are 0.0114.
    assert draws.double().mean().item() == pytest.approx(1.0, abs=0.0114)
    # Each cell, row and image has its own draws, 2,000 or more: five standard errors are 0.056.
    for kept in ((0, 2, 3), (0, 1, 3)):
        assert (draws.double().mean(dim=kept) - 1).abs().max() < 0.056
    assert network.draw_paths(3, probability=0.0, generator=generator).eq(1).all()


def test_drop_path_repeats_with_its_generator(small_space: SearchSpace) -> None:
    network = Network(small_space, UNEVEN)
    one, again, other = (
        network.draw_paths(9, probability=0.5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_without_paths_it_is_as_with_all_of_them(small_space: SearchSpace) -> None:
    torch.manual_seed(0)
    network, images = Network(small_space, UNEVEN), torch.randn(3, 1, 12, 12)
    torch.testing.assert_close(network(images), network(images, paths=torch.ones(4, 6, 3)))
    one_shot = Network(small_space)
    mixtures = relax(initial_architecture(small_space), small_space, temperature=1.0)
    weights = {name: mixture.rows for name, mixture in mixtures.items()}
    torch.testing.assert_close(one_shot(images, weights), one_shot(images, weights, paths=torch.ones(4, 63, 3)))


def test_a_skip_connection_is_never_dropped_and_everything_else_is() -> None:
    torch.manual_seed(0)
    space = SearchSpace(channels=4, image_size=12, cells=2, nodes=1, reduction_cells=(1,))
    images, nothing = torch.randn(3, 1, 12, 12), torch.zeros(2, 1, 3)
    for operation in space.operations:
        node = (EdgeOperation(0, operation, 0.7),)
        network = Network(space, Genotype(normal=(node,), reduction=(node,)))
        dropped = network(images, paths=nothing)
        if operation == "skip_connect":
            torch.testing.assert_close(dropped, network(images))
            assert dropped.abs().max() > 0
        else:
            assert dropped.abs().max() == 0


def test_a_dropped_operation_adds_nothing_for_that_image_and_the_same_for_the_others(
    small_space: SearchSpace,
) -> None:
    torch.manual_seed(0)
    space = SearchSpace(channels=4, image_size=12, nodes=1)
    plan = (PlanRow(0, 0, "conv_3x3"), PlanRow(0, 1, "max_pool_3x3"), PlanRow(0, 1, "skip_connect"))
    cell = Cell(space, plan, in_channels=(5, 6), reduces=False, halve_first=False)
    first, second, weights = torch.randn(3, 5, 6, 6), torch.randn(3, 6, 6, 6), torch.tensor([0.5, 0.3, 0.2])

    def output(paths: Tensor | None, *, run: tuple[bool, ...] = (True, True, True)) -> Tensor:
        return cell(first, second, weights, run, paths)

    for row in (0, 1):
        paths = torch.ones(3, 3)
        paths[row, 1] = 0.0
        without = output(None, run=tuple(index != row for index in range(3)))
        torch.testing.assert_close(output(paths)[1], without[1])
        assert torch.equal(output(paths)[[0, 2]], output(None)[[0, 2]])
        assert (output(paths)[1] - output(None)[1]).abs().max() > 1e-2
