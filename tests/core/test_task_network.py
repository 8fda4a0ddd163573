"""The pruned module: it holds the survivors and nothing else, and normalises with its support set."""

import pytest
import torch

from metanas.genotypes import named_genotype
from metanas.head import Head
from metanas.network import Network, PlanRow, count_parameters
from metanas.space import EdgeOperation, Genotype, SearchSpace
from metanas.task_network import extract

OMNIGLOT = named_genotype("metanas_omniglot")


@pytest.fixture
def one_shot(small_space: SearchSpace) -> tuple[Network, Head]:
    torch.manual_seed(0)
    head = Head(small_space.features, 3)
    torch.nn.init.normal_(head.weight, std=3.0)
    return Network(small_space), head


def test_the_pruned_module_holds_only_the_surviving_operations(one_shot: tuple[Network, Head]) -> None:
    pruned = extract(*one_shot, OMNIGLOT)
    for index, cell_type in enumerate(pruned.space.cell_types):
        cell = pruned.network.cells[index]
        kept = [(node, edge) for node, edges in enumerate(OMNIGLOT.cell(cell_type)) for edge in edges]
        assert list(cell.plan) == [PlanRow(node, edge.source, edge.operation) for node, edge in kept]
        assert len(cell.operations) == len(kept) == 6
        for index_of_row, name in enumerate(cell.keys):
            assert name.endswith(f"from{kept[index_of_row][1].source}_{kept[index_of_row][1].operation}")
    assert {
        name.split(".")[4].split("_", 1)[1] for name in dict(pruned.named_parameters()) if ".operations." in name
    } <= {
        f"from{edge.source}_{edge.operation}"
        for cell in (OMNIGLOT.normal, OMNIGLOT.reduction)
        for node in cell
        for edge in node
    }
    # C = 4: stem 3x3 to 12 channels and its norm, eight projections of 12 channels, the cells, the head.
    depthwise, pointwise, factorized = 9 * 4, 4 * 4, 2 * 5 * 4 * 4
    small, separable = depthwise + pointwise, 2 * (depthwise + pointwise)
    normal = small + separable + separable + factorized + small
    reduction = 16 + separable + small + small + small + factorized
    expected = 9 * 12 + 2 * 12 + 8 * 12 * 4 + 2 * (normal + reduction) + 3 * (12 + 1)
    assert count_parameters(pruned) == expected
    assert count_parameters(pruned) < count_parameters(one_shot[0]) / 3


def test_the_pruned_module_has_copies_of_the_weights_and_shares_none(one_shot: tuple[Network, Head]) -> None:
    network, head = one_shot
    pruned = extract(network, head, OMNIGLOT)
    source = dict(network.named_parameters())
    for name, parameter in pruned.network.named_parameters():
        assert torch.equal(parameter, source[name])
        assert parameter.data_ptr() != source[name].data_ptr()
    assert torch.equal(pruned.head.weight, head.weight)
    assert pruned.head.weight.data_ptr() != head.weight.data_ptr()


def test_the_mixture_weights_are_constants_and_count(one_shot: tuple[Network, Head]) -> None:
    def logits(weight: float) -> torch.Tensor:
        changed = EdgeOperation(0, "conv_1x5_5x1", weight)
        normal = (*OMNIGLOT.normal[:2], (changed, OMNIGLOT.normal[2][1]))
        network = extract(*one_shot, Genotype(normal=normal, reduction=OMNIGLOT.reduction))
        assert not any("_weights" in name for name, _ in network.named_parameters())
        with torch.no_grad():
            return network(images)

    images = torch.randn(4, 1, 12, 12)
    assert torch.equal(logits(1.0), logits(1.0))
    assert (logits(1.0) - logits(0.2)).abs().max() > 1e-2


def test_frozen_statistics_give_the_support_set_the_logits_of_training_mode(one_shot: tuple[Network, Head]) -> None:
    network = extract(*one_shot, OMNIGLOT)
    support = torch.randn(7, 1, 12, 12)
    network.train()
    with torch.no_grad():
        together = network(support)
        network.freeze_statistics(support)
        assert not network.training
        torch.testing.assert_close(network(support), together, rtol=1e-4, atol=1e-5)
        alone = torch.cat([network(image[None]) for image in support])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
        # In training mode an image alone is another matter: that is what freezing is for.
        assert (network.train()(support[:1]) - together[:1]).abs().max() > 1e-2
