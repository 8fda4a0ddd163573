"""Multiply-adds worked out by hand, and against figures that others have counted."""

import pytest

from metanas.cost import multiply_adds
from metanas.errors import InvalidConfigError
from metanas.genotypes import GENOTYPES
from metanas.space import DEFAULT_OPERATIONS, NO_CELLS, ConvBlocks, EdgeOperation, Genotype, SearchSpace

FORWARD_AND_BACKWARD = 3 * 2
"""FLOP of a training step for each multiply-add of its forward pass."""


def _genotype(normal: str, reduction: str) -> Genotype:
    """One node that reads one input."""
    return Genotype(normal=((EdgeOperation(0, normal, 1.0),),), reduction=((EdgeOperation(0, reduction, 0.5),),))


@pytest.mark.parametrize(
    ("operation", "by_hand"),
    [
        ("max_pool_3x3", 0),
        ("skip_connect", 0),
        ("conv_1x5_5x1", 36 * (4 * 4 * 5 + 4 * 4 * 5)),
        ("conv_3x3", 36 * (4 * 9 + 4 * 4)),
        ("sep_conv_3x3", 36 * 2 * (4 * 9 + 4 * 4)),
        ("dil_conv_3x3", 36 * (4 * 9 + 4 * 4)),
        ("conv_5x5", 36 * (4 * 25 + 4 * 4)),
    ],
)
def test_a_network_of_one_normal_cell_costs_what_counting_by_hand_gives(operation: str, by_hand: int) -> None:
    space = SearchSpace(channels=4, image_size=6, in_channels=2, cells=1, reduction_cells=(), nodes=1)
    stem, projections, head = 36 * 2 * 12 * 9, 2 * 36 * 12 * 4, 4 * 3
    assert multiply_adds(space, _genotype(operation, operation), n_way=3) == stem + projections + by_hand + head


@pytest.mark.parametrize(
    ("operation", "by_hand"),
    [
        ("avg_pool_3x3", 0),
        ("skip_connect", 9 * 4 * 4),  # two 1x1 convolutions to 2 filters each
        ("conv_1x5_5x1", 18 * 4 * 4 * 5 + 9 * 4 * 4 * 5),  # halved after each of the two
        ("sep_conv_3x3", 9 * 2 * (4 * 9 + 4 * 4)),
        ("dil_conv_3x3", 9 * (4 * 9 + 4 * 4)),
    ],
)
def test_a_reduction_cell_is_counted_at_its_output_size(operation: str, by_hand: int) -> None:
    space = SearchSpace(channels=4, image_size=6, in_channels=2, cells=1, reduction_cells=(0,), nodes=1)
    stem, projections, head = 36 * 2 * 12 * 9, 2 * 36 * 12 * 4, 4 * 3
    assert multiply_adds(space, _genotype("skip_connect", operation), n_way=3) == stem + projections + by_hand + head


def test_the_one_shot_network_costs_all_its_operations() -> None:
    space = SearchSpace(channels=4, image_size=6, cells=1, reduction_cells=(), nodes=1)
    alone = [multiply_adds(space, _genotype(name, name), n_way=2) for name in DEFAULT_OPERATIONS]
    bare = min(alone)
    assert multiply_adds(space, None, n_way=2) == bare + 2 * sum(one - bare for one in alone)  # on both inputs


def test_reptiles_network_costs_what_counting_by_hand_gives() -> None:
    # Blocks at 28, 14, 7 and 3 pixels a side; the head has 64 features.
    blocks = 28**2 * 9 * 64 + (14**2 + 7**2 + 3**2) * 64 * 9 * 64
    assert multiply_adds(ConvBlocks(), NO_CELLS, n_way=20) == blocks + 64 * 20


def test_the_paper_sized_networks_are_within_6_percent_of_figures_counted_elsewhere() -> None:
    # 0.857 GFLOP one-shot and 0.161 with two operations a node, forward and backward, for one image.
    one_shot = FORWARD_AND_BACKWARD * multiply_adds(SearchSpace(), None, n_way=20) / 1e9
    pruned = FORWARD_AND_BACKWARD * multiply_adds(SearchSpace(), GENOTYPES["metanas_omniglot"], n_way=20) / 1e9
    assert one_shot == pytest.approx(0.857, rel=0.06)
    assert pruned == pytest.approx(0.161, rel=0.06)


def test_weights_of_a_genotype_do_not_change_its_cost_and_classes_change_only_the_head() -> None:
    space = SearchSpace(channels=4, image_size=6, cells=2, reduction_cells=(1,), nodes=1)
    light, heavy = (Genotype(*[((EdgeOperation(1, "conv_3x3", weight),),)] * 2) for weight in (0.01, 1.0))
    assert multiply_adds(space, light, n_way=5) == multiply_adds(space, heavy, n_way=5)
    assert multiply_adds(space, light, n_way=7) - multiply_adds(space, light, n_way=5) == 2 * space.features


def test_a_genotype_of_another_number_of_nodes_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="the genotype has 5 nodes, the space has 3"):
        multiply_adds(SearchSpace(), GENOTYPES["autometa"], n_way=5)
