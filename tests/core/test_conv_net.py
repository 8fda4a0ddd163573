"""REPTILE's CNN: its published sizes, a literal reference, and no company that matters once frozen."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metanas.backbone import build_backbone
from metanas.conv_net import ConvNet
from metanas.errors import InvalidConfigError
from metanas.network import channels_last, count_parameters
from metanas.space import NO_CELLS, ConvBlocks, space_from_dict, space_to_dict
from metanas.statistics import measuring
from metanas.task_network import TaskNetwork


@pytest.mark.parametrize(
    ("in_channels", "size", "n_way", "features", "count"),
    [(1, 28, 20, 64, 113_236), (3, 84, 5, 1_600, 121_093)],
    ids=["omniglot", "mini"],
)
def test_the_network_has_exactly_the_published_number_of_parameters_with_its_head(
    in_channels: int, size: int, n_way: int, features: int, count: int
) -> None:
    space = ConvBlocks(in_channels=in_channels, image_size=size)
    assert space.features == features
    assert count_parameters(TaskNetwork(space, NO_CELLS, n_way)) == count


def _network(space: ConvBlocks, *, seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    network = ConvNet(space)
    for norm in network.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    return network


def _literal(network: ConvNet, images: Tensor) -> Tensor:
    x = images
    for conv, norm in zip(network.convs, network.norms, strict=True):
        x = functional.conv2d(x, conv.weight, conv.bias, padding=1)
        mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
        x = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = x.clamp(min=0)
        half = x.shape[2] // 2  # a row or column that is left over is not pooled
        x = x[:, :, : 2 * half, : 2 * half].reshape(*x.shape[:2], half, 2, half, 2).amax(dim=(3, 5))
    return x.reshape(len(images), -1)


@pytest.mark.parametrize("size", [8, 13])
def test_features_equal_a_literal_network_in_value_and_gradients(size: int) -> None:
    space = ConvBlocks(filters=5, blocks=2, in_channels=3, image_size=size)
    network = _network(space).double()
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    found, literal = network(images), _literal(network, images)
    assert found.shape == (4, space.features)
    torch.testing.assert_close(found, literal)
    target = torch.randn_like(literal)
    parameters = list(network.parameters())
    for gradient, expected in zip(
        torch.autograd.grad((found * target).sum(), parameters),
        torch.autograd.grad((literal * target).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_the_order_of_the_features_is_channel_by_channel_whatever_the_memory_format() -> None:
    space = ConvBlocks(filters=6, blocks=2, in_channels=2, image_size=12)
    plain, other = _network(space), _network(space)
    channels_last(other)
    images = torch.randn(4, 2, 12, 12)
    expected = _literal(plain, images)
    for network in (plain, other):
        for layout in (torch.contiguous_format, torch.channels_last):
            features = network(images.contiguous(memory_format=layout))
            torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_an_image_scores_the_same_alone_in_a_batch_and_in_another_order_once_frozen() -> None:
    torch.manual_seed(0)
    network = TaskNetwork(ConvBlocks(filters=8, blocks=3, image_size=12), NO_CELLS, 4)
    torch.nn.init.normal_(network.head.weight, std=3.0)
    support, images = torch.randn(9, 1, 12, 12), torch.randn(7, 1, 12, 12)
    with torch.no_grad():
        together = network(support)
        network.freeze_statistics(support)
        torch.testing.assert_close(network(support), together, rtol=1e-4, atol=1e-5)
        scores = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(alone, scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(images.flip(0)).flip(0), scores, rtol=1e-4, atol=1e-5)
        # In training mode an image alone is another matter: that is what freezing is for.
        assert (network.train()(images[:1]) - scores[:1]).abs().max() > 1e-2


def test_measuring_keeps_the_statistics_of_each_block() -> None:
    network = _network(ConvBlocks(filters=4, blocks=1, image_size=6))
    images = torch.randn(5, 1, 6, 6)
    with torch.no_grad(), measuring(network):
        network(images)
    convolved = functional.conv2d(images, network.convs[0].weight, network.convs[0].bias, padding=1)
    torch.testing.assert_close(network.norms[0].mean, convolved.mean(dim=(0, 2, 3)).detach())
    torch.testing.assert_close(network.norms[0].variance, convolved.var(dim=(0, 2, 3), correction=0).detach())


def test_what_only_cells_need_changes_nothing() -> None:
    network = _network(ConvBlocks(filters=4, blocks=2, image_size=8))
    images = torch.randn(3, 1, 8, 8)
    given = network(images, {"normal": torch.ones(2)}, skip_below=0.5, run={"normal": [False]}, paths=torch.zeros(2))
    assert torch.equal(given, network(images))
    assert network.genotype == NO_CELLS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": 0}, "filters must be a whole number of at least 1, got 0"),
        ({"blocks": True}, "blocks must be a whole number of at least 1, got True"),
        ({"blocks": 5}, "5 blocks halve 28 pixels to nothing; take fewer blocks or larger images"),
        ({"image_size": 15}, "4 blocks halve 15 pixels to nothing"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        ConvBlocks(**values)


def test_blocks_survive_plain_values_and_build_their_network() -> None:
    space = ConvBlocks(filters=7, blocks=2, in_channels=3, image_size=9)
    values = space_to_dict(space)
    assert values["kind"] == "conv_blocks"
    assert space_from_dict(values) == space
    assert isinstance(build_backbone(space, NO_CELLS), ConvNet)
    with pytest.raises(InvalidConfigError, match="unknown kind of network 'resnet'; there are cells and conv_blocks"):
        space_from_dict({**values, "kind": "resnet"})
    with pytest.raises(InvalidConfigError, match="ConvBlocks has no setting nodes"):
        space_from_dict({**values, "nodes": 3})
