"""What pruning costs after a single-task search: the rows of Table 3.

After the search the batch-norm statistics are measured and frozen. The pruned network keeps
weights and statistics of what survives, as in DARTS; nothing is trained again. A third number
says how much of the loss comes from statistics that no longer fit: they are measured anew.

Source: Elsken et al., CVPR 2020, appendix A.1.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metanas.network import count_parameters
from metanas.preprocessing import Preprocessing, scale
from metanas.pruning import prune
from metanas.relaxation import Strategy
from metanas.space import Genotype
from metanas.statistics import measuring
from metanas.task_network import extract
from metanas_training.single_task import fixed_mixtures, run_mixture
from metanas_training.single_task_images import Labelled
from metanas_training.single_task_state import SearchState

EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True)
class PruningResult:
    """Fractions of test images classified right, and what was compared."""

    before: float
    """One-shot network at the last temperature, statistics measured on training images."""
    after: float
    """Pruned; weights and statistics of the survivors as they were."""
    after_remeasured: float
    """Pruned; statistics measured anew in the pruned network."""
    genotype: Genotype
    parameters_before: int
    parameters_after: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files; with the points that were lost."""
        return {
            **asdict(self),
            "genotype": self.genotype.to_dict(),
            "lost_points": 100 * (self.before - self.after),
            "lost_points_remeasured": 100 * (self.before - self.after_remeasured),
        }


@torch.no_grad()
def evaluate(
    state: SearchState,
    *,
    test: Labelled,
    examples: Labelled,
    preprocessing: Preprocessing,
    temperature: float,
    strategy: Strategy,
    threshold: float,
) -> PruningResult:
    """Prune, and measure what it costs. The network is in evaluation mode afterwards.

    Args:
        test: what accuracy is measured on.
        examples: training images, not augmented, that statistics are measured on, in one batch.
        temperature: the last one of the search.
        threshold: of "operations_and_inputs".
    """
    mixtures = fixed_mixtures(state, temperature=temperature, strategy=strategy)
    inputs = scale(examples.images, preprocessing)
    with measuring(state.network):
        run_mixture(state, inputs, mixtures=mixtures, skip_below=0.0)
    state.network.eval()
    before = _accuracy(
        lambda images: run_mixture(state, images, mixtures=mixtures, skip_below=0.0), test, preprocessing=preprocessing
    )
    genotype = prune(mixtures, state.network.space, strategy=strategy, threshold=threshold)
    pruned = extract(state.network, state.head, genotype).eval()
    after = _accuracy(pruned, test, preprocessing=preprocessing)
    parameters_after = count_parameters(pruned)
    pruned.freeze_statistics(inputs)
    return PruningResult(
        before=before,
        after=after,
        after_remeasured=_accuracy(pruned, test, preprocessing=preprocessing),
        genotype=genotype,
        parameters_before=count_parameters(state.network) + count_parameters(state.head),
        parameters_after=parameters_after,
    )


def _accuracy(classify: Callable[[Tensor], Tensor], test: Labelled, *, preprocessing: Preprocessing) -> float:
    right = 0
    for first in range(0, len(test), EVALUATION_BATCH):
        part = slice(first, first + EVALUATION_BATCH)
        answers = classify(scale(test.images[part], preprocessing)).argmax(dim=1)
        right += int((answers == test.labels[part]).sum())
    return right / len(test)
