"""Whether a search has decided: how many operations its fallen temperature has left.

The weights of a search go on in the mixture that the fall ended with. A task, whose temperature falls further, keeps as
many operations as its network has; what the mixture had beyond them is taken away from weights that count on it.
"""

import logging
from dataclasses import replace

from metanas.steps import operation_weights
from metanas_training.config import TrainingConfig
from metanas_training.state import State

logger = logging.getLogger(__name__)


def warn_if_undecided(config: TrainingConfig, state: State, *, temperature: float) -> None:
    """Log a warning if more operations than a task network has are at least at the threshold.

    A strategy that does not choose among inputs leaves more by design, and is not warned of.

    Args:
        temperature: that the fall has ended at.
    """
    if config.task.strategy != "operations_and_inputs":
        return
    weights = operation_weights(
        state.network, state.architecture, schedule=replace(config.task, relaxation="softmax"), temperature=temperature
    )
    assert weights is not None, "only what searches has a fall"
    left = sum(int((rows >= config.task.threshold).sum()) for rows in weights.values())
    kept = len(weights) * config.network.nodes * config.network.inputs_per_node
    if left > kept:
        logger.warning(
            "the architecture is not decided: after the fall of the temperature %d operations are left where task "
            "networks keep %d, so tasks will lose some that the weights count on; raise plan.fall or "
            "search_architecture_travel",
            left,
            kept,
        )
