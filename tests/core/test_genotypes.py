"""The architectures that papers report: read from section 9 once more, and their sizes."""

import pytest

from metanas.errors import InvalidConfigError
from metanas.genotypes import GENOTYPES, named_genotype, random_genotype
from metanas.network import count_parameters
from metanas.space import CellGenotype, EdgeOperation, Genotype, SearchSpace
from metanas.task_network import TaskNetwork

SHORT = {
    "avg": "avg_pool_3x3", "max": "max_pool_3x3", "skip": "skip_connect", "conv5": "conv_1x5_5x1", "conv": "conv_3x3",
    "sep": "sep_conv_3x3", "dil": "dil_conv_3x3",
}  # fmt: skip

OMNIGLOT, MINI = (1, 28, 20), (3, 84, 5)
"""Channels, size and classes of the two data sets' tasks."""


def _cell(*nodes: str) -> CellGenotype:
    """Nodes written "operation source, operation source"."""
    return tuple(
        tuple(EdgeOperation(int(edge.split()[1]), SHORT[edge.split()[0]], 1.0) for edge in node.split(", "))
        for node in nodes
    )


def _parameters(name: str, data: tuple[int, int, int], *, channels: int, cells: int, affine: bool) -> int:
    in_channels, size, n_way = data
    genotype = named_genotype(name)
    space = SearchSpace(
        channels=channels, in_channels=in_channels, image_size=size, cells=cells, reduction_cells=(1, 3),
        nodes=len(genotype.normal), affine=affine,
    )  # fmt: skip
    return count_parameters(TaskNetwork(space, genotype, n_way))


def test_the_named_genotypes_are_those_of_the_papers() -> None:
    autometa = _cell("conv 1, max 1", "conv5 2, max 2", "conv 2, conv5 3", "conv 3, conv 3", "conv5 3, conv 2")
    expected = {
        "metanas_omniglot": Genotype(
            normal=_cell("dil 0, sep 1", "avg 0, sep 1", "conv5 0, conv 2"),
            reduction=_cell("skip 0, sep 1", "conv 0, dil 1", "dil 0, conv5 2"),
        ),
        "metanas_miniimagenet": Genotype(
            normal=_cell("conv5 0, conv 1", "conv 0, sep 2", "dil 1, conv5 3"),
            reduction=_cell("sep 0, conv 1", "conv 0, sep 2", "conv 0, dil 1"),
        ),
        "autometa": Genotype(normal=autometa, reduction=autometa),
    }
    assert expected == GENOTYPES


def test_an_unknown_genotype_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        InvalidConfigError, match="unknown genotype 'darts'; known are metanas_omniglot, metanas_miniimagenet, autometa"
    ):
        named_genotype("darts")


@pytest.mark.parametrize(
    ("name", "data", "affine_free", "affine"),
    [("metanas_omniglot", OMNIGLOT, 77_160, 79_288), ("metanas_miniimagenet", MINI, 79_973, 82_101)],
)
def test_the_papers_cells_have_the_parameters_of_section_9(
    name: str, data: tuple[int, int, int], affine_free: int, affine: int
) -> None:
    """79,288 and 82,101 are with a scale and a shift in every norm; a search has them in the stem only."""
    assert _parameters(name, data, channels=28, cells=4, affine=False) == affine_free
    assert _parameters(name, data, channels=28, cells=4, affine=True) == affine


@pytest.mark.parametrize(
    ("name", "data", "count"), [("metanas_omniglot", OMNIGLOT, 1_056_116), ("metanas_miniimagenet", MINI, 1_160_741)]
)
def test_the_papers_cells_scaled_up_have_the_parameters_of_section_9(
    name: str, data: tuple[int, int, int], count: int
) -> None:
    assert _parameters(name, data, channels=96, cells=5, affine=True) == count


def _autometa_by_hand(data: tuple[int, int, int], c: int, *, affine: bool) -> int:
    """Stem, cell inputs, operations, head; norms where they are affine."""
    in_channels, _, n_way = data
    stem = 9 * in_channels * 3 * c + 2 * 3 * c
    # Cell 0 sees the stem twice, cell 1 the stem and 5 nodes, cells 2 and 3 two times 5 nodes.
    inputs = (3 + 3 + 3 + 5 + 5 + 5 + 5 + 5) * c * c
    small, factorized = 9 * c + c * c, 2 * 5 * c * c
    cell = 5 * small + 3 * factorized
    norms = 2 * c * (2 + 5 + 3 + 2) if affine else 0
    return stem + inputs + 4 * (cell + norms) + n_way * (5 * c + 1)


@pytest.mark.parametrize(
    ("data", "affine_free", "affine"),
    [(OMNIGLOT, 145_200, 147_888), (MINI, 144_597, 147_285)],
    ids=["omniglot", "mini"],
)
def test_autometas_cells_have_these_parameters_at_the_same_number_of_filters(
    data: tuple[int, int, int], affine_free: int, affine: int
) -> None:
    assert _parameters("autometa", data, channels=28, cells=4, affine=False) == affine_free
    assert _parameters("autometa", data, channels=28, cells=4, affine=True) == affine
    for channels in (25, 28):
        for with_affine in (False, True):
            found = _parameters("autometa", data, channels=channels, cells=4, affine=with_affine)
            assert found == _autometa_by_hand(data, channels, affine=with_affine)


def test_autometa_comes_nearest_to_the_sizes_of_table_1_with_25_and_27_filters() -> None:
    """116k and 137k; MetaNAS takes one number of filters for both, the table's sizes say otherwise."""

    def nearest(data: tuple[int, int, int], size: int, affine: bool) -> int:
        return min(
            range(20, 34),
            key=lambda c: abs(_parameters("autometa", data, channels=c, cells=4, affine=affine) - size),
        )

    assert [nearest(OMNIGLOT, 116_000, affine) for affine in (False, True)] == [25, 25]
    assert [nearest(MINI, 137_000, affine) for affine in (False, True)] == [27, 27]


def test_a_random_genotype_is_of_its_space_its_seed_alone_decides_and_all_edges_and_operations_come() -> None:
    drawn = [random_genotype(seed, nodes=3, inputs_per_node=2, operations=("sep", "max")) for seed in range(200)]
    assert drawn[7] == random_genotype(7, nodes=3, inputs_per_node=2, operations=("sep", "max"))
    seen = set()
    for genotype in drawn:
        for cell in (genotype.normal, genotype.reduction):
            for node, kept in enumerate(cell):
                sources = [edge.source for edge in kept]
                assert sources == sorted(set(sources))
                assert len(sources) == 2
                assert all(edge.weight == 1.0 for edge in kept)
                seen |= {(node, edge.source, edge.operation) for edge in kept}
    assert seen == {(node, source, one) for node in range(3) for source in range(node + 2) for one in ("sep", "max")}
    [node] = random_genotype(0, nodes=1, inputs_per_node=5, operations=("sep",)).normal
    assert [edge.source for edge in node] == [0, 1]
