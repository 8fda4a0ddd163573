"""From a description to a network: the one place that knows both kinds.

Backbone          what turns images into features: cells (``Network``) or plain blocks (``ConvNet``)
build_backbone    sizes, genotype  ->  Backbone
"""

from metanas.conv_net import ConvNet
from metanas.network import Network
from metanas.space import ConvBlocks, Genotype, Space

Backbone = Network | ConvNet


def build_backbone(space: Space, genotype: Genotype | None) -> Backbone:
    """A network with random weights, in training mode.

    Args:
        genotype: of a fixed architecture; None: the one-shot network of the search space. Plain
            blocks have no genotype to choose.

    Raises:
        InvalidConfigError: a genotype of another number of nodes.
    """
    if isinstance(space, ConvBlocks):
        return ConvNet(space)
    return Network(space, genotype)
