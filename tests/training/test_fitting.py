"""What a finished meta-model is fitted with: each time against all other values that it might have had."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.schedule import Schedule
from metanas.statistics import PriorStatistics
from metanas.trust import calibrate
from metanas_training.evaluate import draw_tasks
from metanas_training.fitting import COUNTS, VARIATION_TASKS, fitted_prior, honest_scale, measured_variation

MakeMeta = Callable[..., MetaModel]
FIRST = Schedule(architecture_steps=0, weight_steps=0)


def surprise(meta: MetaModel, classes: Any, *, calibrated: bool, **sizes: int) -> float:
    """What the answers before any step lose of the labels, in nats an image."""
    logits, labels = [], []
    for one in draw_tasks(classes, n_query=15, **sizes):
        logits.append(adapt(replace(meta, schedule=FIRST), one.support, seed=sizes["seed"]).logits(one.query_images))
        labels.append(one.query_labels)
    scores, right = torch.cat(logits), torch.cat(labels)
    return float(cross_entropy(scores / (calibrate(scores, right) if calibrated else 1.0), right))


@pytest.mark.parametrize("kind", ["searched", "fixed", "conv_blocks"])
def test_the_prior_counts_as_many_images_as_make_labels_most_probable(
    make_meta: MakeMeta, make_classes: Any, kind: str
) -> None:
    meta, training, classes = make_meta(kind), make_classes(seed=1), make_classes(seed=2, noise=255)
    found = fitted_prior(meta, training, classes, tasks=3, seed=4)
    sizes = {"n_way": 5, "n_shot": 1, "tasks": 3, "seed": 4}

    def with_count(count: float) -> float:
        assert found is not None
        prior = PriorStatistics(images=count, values=found.values)
        return surprise(replace(meta, prior=prior), classes, calibrated=True, **sizes)

    assert found is not None, "of five noisy images the statistics are poor"
    assert found.images in COUNTS
    best = with_count(found.images)
    assert best < surprise(meta, classes, calibrated=True, **sizes)
    assert best == min(map(with_count, COUNTS))


def test_a_prior_that_only_harms_is_left_out(make_meta: MakeMeta, make_classes: Any) -> None:
    meta, classes = make_meta("conv_blocks"), make_classes(seed=2)
    black = replace(classes, images=tuple(torch.zeros_like(images) for images in classes.images))
    assert fitted_prior(meta, black, classes, tasks=3, seed=4) is None


def test_the_honest_scale_makes_the_labels_of_held_out_images_most_probable(
    make_meta: MakeMeta, make_classes: Any
) -> None:
    classes, meta = make_classes(), make_meta()
    sizes = {"n_way": 3, "n_shot": 1, "tasks": 3, "seed": 4}

    def with_scale(scale: float) -> float:
        return surprise(replace(meta, head_scale=scale), classes, calibrated=False, **sizes)

    for given in (0.5, 500.0):
        assert with_scale(honest_scale(replace(meta, head_scale=given), classes, **sizes)) < with_scale(given)


def test_variation_is_measured_on_tasks_of_training_classes(make_meta: MakeMeta, make_classes: Any) -> None:
    meta, alike, noisy = make_meta("conv_blocks"), make_classes(seed=1), make_classes(seed=1, noise=255)
    sizes = {"n_way": 3, "n_shot": 2, "seed": 4, "strength": 2.0, "softening": 3.0, "head_rate": 0.5}
    one, other = (measured_variation(meta, classes, **sizes) for classes in (alike, noisy))
    assert (one.strength, one.softening, one.head_rate) == (2.0, 3.0, 0.5)
    assert one.covariance.shape == (meta.space.features, meta.space.features)
    assert 0 <= one.covariance.trace() < 0.5 * other.covariance.trace()
    # Features have unit length: no class varies by more than 1, and a sample's variance by little more.
    assert other.covariance.trace() < 1 + 1 / VARIATION_TASKS
