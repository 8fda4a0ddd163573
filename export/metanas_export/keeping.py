"""Which parts of a network stay in float32: found by what they cost, measured on the task's images.

    Trial      units to keep  ->  the scores of a network that keeps them
    choose     trial, reference scores, units, limit  ->  the units to keep

First nothing is kept. Only where that errs too much, each unit is kept alone once, and of those that
help most as many are kept as bring the error within the limit, by bisection. Mostly that is none.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Trial = Callable[[frozenset[str]], Scores]


def choose(
    trial: Trial, reference: Scores, *, units: Sequence[str], limit: float, always: Iterable[str] = ()
) -> tuple[str, ...]:
    """Choose the units to keep.

    Args:
        reference: ``(images, classes)`` logits in float32.
        units: in the order of the graph.
        limit: largest difference of a logit, as a fraction of the largest logit (at least of 1).
        always: units that are kept in any case.

    Returns:
        In the order of ``units``. All of them, if nothing less is within the limit.
    """
    kept = frozenset(always)
    if error(trial(kept), reference) > limit:
        alone = {unit: error(trial(kept | {unit}), reference) for unit in units if unit not in kept}
        ranked = sorted(alone, key=alone.__getitem__)
        too_few, enough = 0, len(ranked)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if error(trial(kept.union(ranked[:middle])), reference) <= limit:
                enough = middle
            else:
                too_few = middle
        kept = kept.union(ranked[:enough])
    return tuple(unit for unit in units if unit in kept)


def error(scores: Scores, reference: Scores) -> float:
    """Largest difference of a logit as a fraction of the largest logit (at least of 1); infinite for NaN."""
    if not np.isfinite(scores).all():
        return float("inf")
    return float(np.abs(scores - reference).max() / max(1.0, np.abs(reference).max()))
