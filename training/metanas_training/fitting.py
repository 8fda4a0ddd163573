"""What a finished meta-model still needs, found once its weights no longer move.

    fitted_prior        training images, validation tasks  ->  prior statistics for batch norm, or none
    honest_scale        validation tasks                   ->  scale of the head
    measured_variation  training classes                   ->  how features vary within a class
    known_similarity    validation tasks                   ->  threshold for what is known, after one shot

In this order: each is found with those before it in place.
"""

import logging
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from metanas.model import MetaModel
from metanas.preprocessing import scale
from metanas.statistics import PriorStatistics, measure_prior
from metanas.trust import KNOWN_QUANTILE, calibrate, length_of_rows, similarity
from metanas.variation import Variation, within_class
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for, sample_episode, sample_images
from metanas_training.evaluate import Start, draw_tasks, learned

logger = logging.getLogger("metanas_training")

FITTING, VARIATION = 10, 11
"""Places among the generators of a seed: of the images of ``fitted_prior``, of the tasks of ``measured_variation``."""

PRIOR_IMAGES = 256
"""Training images whose statistics are measured."""

FEW_WAYS = 5
"""Classes of the tasks that choose the count: it matters where the images are few."""

VARIATION_TASKS = 40
"""Tasks of training classes from which ``measured_variation`` comes."""

COUNTS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""How many images of a support set the prior statistics may count as."""


def fitted_prior(
    meta: MetaModel, training: ImageClasses, classes: ImageClasses, *, tasks: int, seed: int
) -> PriorStatistics | None:
    """Statistics of training images, counting as many as makes the labels of held-out images most probable.

    Of tasks of single shots, where it counts most, before any step, each count at its own best temperature.

    Args:
        training: whose images are measured.
        classes: of the validation split: the count is part of the meta-model.

    Returns:
        None if tasks do better on their own.
    """
    images, _ = sample_images(training, count=PRIOR_IMAGES, generator=generator_for(seed, FITTING))
    inputs = scale(images, meta.preprocessing).contiguous(memory_format=torch.channels_last)
    start = Start.of(meta)
    measured = measure_prior(start.network, start.weights, inputs, count_as=COUNTS[0])
    n_way = min(FEW_WAYS, len(classes))

    def surprise(prior: PriorStatistics | None) -> float:
        blended = replace(start, prior=prior)
        cosines, labels = [], []
        for episode in draw_tasks(classes, n_way=n_way, n_shot=1, n_query=15, tasks=tasks, seed=seed):
            cosines.append(blended.cosines(episode))
            labels.append(episode.query_labels)
        logits, right = meta.head_scale * torch.cat(cosines), torch.cat(labels)
        return float(cross_entropy(logits / calibrate(logits, right), right))

    found = {count: surprise(replace(measured, images=count)) for count in COUNTS}
    alone, best = surprise(None), min(found, key=found.__getitem__)
    logger.info("cross-entropy of single shots: %.4f nats an image without statistics of training images", alone)
    logger.info("where they count as so many images: %s", ", ".join(f"{one:g}: {found[one]:.4f}" for one in COUNTS))
    return replace(measured, images=best) if found[best] < alone else None


def honest_scale(meta: MetaModel, classes: ImageClasses, *, n_way: int, n_shot: int, tasks: int, seed: int) -> float:
    """The scale of the head under which prototypes give the right classes of held-out images the most probability.

    A scale that was learned by telling many training classes apart promises too much of few unseen ones, and
    single shots leave a task nothing to find its own temperature from.

    Args:
        classes: of the validation split: the scale is part of the meta-model.
    """
    start = replace(meta, schedule=replace(meta.schedule, architecture_steps=0, weight_steps=0))
    logits, labels = [], []
    for episode in draw_tasks(classes, n_way=n_way, n_shot=n_shot, n_query=15, tasks=tasks, seed=seed):
        logits.append(learned(start, episode, seed=seed).logits(episode.query_images))
        labels.append(episode.query_labels)
    return meta.head_scale / calibrate(torch.cat(logits), torch.cat(labels))


def measured_variation(
    meta: MetaModel,
    training: ImageClasses,
    *,
    n_way: int,
    n_shot: int,
    seed: int,
    strength: float,
    softening: float,
    head_rate: float,
) -> Variation:
    """How features vary within the classes that the meta-model was trained on, normalised as those of a task.

    Args:
        n_way, n_shot: of the tasks, whose images are normalised by their support set.
        strength, softening, head_rate: see ``Variation``.
    """
    start = Start.of(meta)
    sums, degrees = torch.zeros(meta.space.features, meta.space.features, dtype=torch.float64), 0
    for task in range(VARIATION_TASKS):
        generator = generator_for(seed, VARIATION, task)
        episode = sample_episode(training, n_way=n_way, n_shot=n_shot, n_query=15, generator=generator)
        products, free = within_class(
            torch.cat(start.features(episode)), torch.cat((episode.support.labels, episode.query_labels))
        )
        sums, degrees = sums + products, degrees + free
    return Variation((sums / degrees).float(), strength=strength, softening=softening, head_rate=head_rate)


@torch.no_grad()
def known_similarity(meta: MetaModel, classes: ImageClasses, *, n_way: int, tasks: int, seed: int) -> float:
    """The similarity to their class that all but ``KNOWN_QUANTILE`` of images exceed, after one shot of each class.

    Args:
        classes: of the validation split: the threshold is part of the meta-model.
    """
    found = []
    for episode in draw_tasks(classes, n_way=n_way, n_shot=1, n_query=15, tasks=tasks, seed=seed):
        with torch.enable_grad():
            task = learned(meta, episode, seed=seed)
        found.append(similarity(task.logits(episode.query_images), length_of_rows(task.network.head)))
    return float(torch.quantile(torch.cat(found), KNOWN_QUANTILE))
