"""The small network of one task: only the operations that survived, and the task's head.

    TaskNetwork    images  ->  logits
    extract        one-shot network, genotype  ->  a new TaskNetwork with copies of the survivors

The mixture weights that were left are constants. In evaluation mode it normalises with the
statistics of its own support set, which ``freeze_statistics`` measures once: an image then
scores the same alone, in a batch and in any order.
"""

from typing import cast

import torch
from torch import Tensor, nn

from metanas.backbone import Backbone, build_backbone
from metanas.head import Head
from metanas.network import channels_last
from metanas.space import Genotype, Space
from metanas.statistics import PriorStatistics, measuring


class TaskNetwork(nn.Module):
    """A network of one fixed architecture with its head.

    Args:
        space: sizes.
        genotype: the surviving operations and their constant weights; ``NO_CELLS`` for plain blocks.
        n_way: number of classes.
    """

    def __init__(self, space: Space, genotype: Genotype, n_way: int) -> None:
        super().__init__()
        self.space = space
        self.genotype = genotype
        self.network = build_backbone(space, genotype)
        self.head = Head(space.features, n_way)
        channels_last(self)

    def features(self, images: Tensor) -> Tensor:
        """``(batch, in_channels, H, W)`` float32 to ``(batch, features)``."""
        return cast(Tensor, self.network(images))

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, in_channels, H, W)`` float32, as ``preprocessing.scale`` makes it, to logits ``(batch, n_way)``."""
        return cast(Tensor, self.head(self.features(images)))

    @torch.no_grad()
    def freeze_statistics(self, images: Tensor, *, prior: PriorStatistics | None = None) -> None:
        """Keep the batch-norm statistics of ``images``, the whole support set, and go to evaluation mode.

        Args:
            prior: the meta-model's, which are blended in.
        """
        with measuring(self.network, prior):
            self(images)
        self.eval()


def extract(network: Backbone, head: Head, genotype: Genotype) -> TaskNetwork:
    """Build the task network: copies of the surviving operations and of the head, nothing else."""
    task_network = TaskNetwork(network.space, genotype, len(head.bias))
    source = network.state_dict()
    task_network.network.load_state_dict({name: source[name] for name in task_network.network.state_dict()})
    task_network.head.load_state_dict(head.state_dict())
    return task_network
