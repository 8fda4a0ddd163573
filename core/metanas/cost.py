"""What a network costs to run, from shapes alone.

    multiply_adds   sizes, architecture, classes  ->  multiply-adds of one image

Counted: the convolutions (stem, projections, operations) and the linear head, one multiply-add
for each weight that meets an output pixel, taps on the padding included. Not counted: batch
norm, which export folds into the convolutions, ReLU, pooling, additions of a node and the mean
over pixels. One multiply-add is two FLOP; a backward pass costs about twice the forward pass.

The network is built and run on torch's meta device: no memory, no arithmetic, nothing random.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from metanas.backbone import build_backbone
from metanas.head import Head
from metanas.network import Network, genotype_plan, one_shot_plan
from metanas.space import Genotype, Space


def multiply_adds(space: Space, genotype: Genotype | None, *, n_way: int) -> int:
    """Multiply-adds of convolutions and head in the forward pass of one image.

    Args:
        genotype: of a task network or another fixed architecture, its weights do not matter;
            None: the one-shot network with all operations run.
        n_way: classes of the head.

    Raises:
        InvalidConfigError: a genotype of another number of nodes.
    """
    with torch.device("meta"), torch.no_grad():
        network = build_backbone(space, genotype).eval()
        head = Head(space.features, n_way)
        images = torch.empty(1, space.in_channels, space.image_size, space.image_size)
        weights, run = None, None
        if isinstance(network, Network):
            plans = one_shot_plan(network.space) if genotype is None else genotype_plan(genotype)
            # Given, as the forward pass cannot look at weights on the meta device to see which to run.
            weights = {cell_type: torch.empty(len(plan)) for cell_type, plan in plans.items()}
            run = {cell_type: [True] * len(plan) for cell_type, plan in plans.items()}
        with FlopCounterMode(display=False) as counter:
            head(network(images, weights, run=run))
    return int(counter.get_total_flops()) // 2
