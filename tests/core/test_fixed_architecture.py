"""Tasks of a meta-model whose architecture is fixed: a genotype, or REPTILE's CNN."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas.artifact import meta_from_bytes, meta_to_bytes, task_from_bytes, task_to_bytes
from metanas.conv_net import ConvNet
from metanas.errors import AdaptationCancelledError, InvalidConfigError
from metanas.head import balanced_cross_entropy
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.network import Network
from metanas.optimizer import Parameters
from metanas.preprocessing import scale
from metanas.progress import StepReport
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.snapshots import AdaptationTrace
from metanas.space import NO_CELLS, SearchSpace
from metanas.steps import start_head
from metanas.tasks import SupportSet

KINDS = ("cells", "affine", "blocks")
MINIBATCHES = Schedule(architecture_steps=4, weight_steps=3, batch_size=4)

pytestmark = pytest.mark.parametrize("kind", KINDS)


def _same_bits(one: TaskModel, other: TaskModel) -> bool:
    first, second = one.network.state_dict(), other.network.state_dict()
    return (
        one.genotype == other.genotype
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
    )


def _images(count: int, *, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (count, channels, 12, 12), generator=generator, dtype=torch.uint8)


def test_all_steps_go_to_the_weights_and_the_genotype_stays(make_fixed_meta: Any, make_support: Any, kind: str) -> None:
    meta: MetaModel = make_fixed_meta(kind)
    reports: list[StepReport] = []
    traces: list[AdaptationTrace] = []
    task = adapt(meta, make_support(), on_step=reports.append, on_trace=traces.append)
    assert not meta.searches
    assert [(report.phase, report.step, report.steps) for report in reports] == [
        ("weights", step, 7) for step in range(1, 8)
    ]
    assert (task.report.architecture_steps, task.report.weight_steps) == (0, 7)
    assert task.genotype == meta.genotype
    assert traces == []  # nothing is pruned
    assert task.report.parameter_count == task.report.one_shot_parameter_count
    assert task.report.parameter_count == sum(value.numel() for value in meta.weights.values()) + 3 * (
        meta.space.features + 1
    )
    for name, parameter in task.network.network.named_parameters():
        assert not torch.equal(parameter, meta.weights[name]), name
    assert not task.network.training
    assert not any(parameter.requires_grad for parameter in task.network.parameters())


def test_the_first_step_by_hand(make_fixed_meta: Any, make_support: Any, kind: str) -> None:
    meta: MetaModel = make_fixed_meta(kind, schedule=Schedule(architecture_steps=0, weight_steps=1, learning_rate=1e-2))
    support = make_support()
    images = scale(support.images, meta.preprocessing)
    network = meta.build_network()
    head, _ = start_head(
        network, weights=None, images=images, labels=support.labels, n_way=3, scale=10.0, skip_below=0.0
    )
    named = dict(Parameters(network, head).named())
    class_weights = 1 / torch.tensor(support.shots, dtype=torch.float32)
    loss = balanced_cross_entropy(head(network(images)), support.labels, class_weights)
    gradients = torch.autograd.grad(loss, list(named.values()))
    found = dict(adapt(meta, support).network.named_parameters())
    for (name, value), gradient in zip(named.items(), gradients, strict=True):
        # Adam's first step from zero with beta_1 = 0 is the rate times gradient / (|gradient| + epsilon). Where the
        # gradient is rounding noise, as of a shift or scale that a later batch norm takes away, its sign is anyone's.
        expected = value.detach() - 1e-2 * gradient / (gradient.abs() + 1e-8)
        certain = gradient.abs() > 1e-5
        torch.testing.assert_close(found[name][certain], expected[certain], rtol=0, atol=2e-4, msg=name)
        assert certain.any() or name.endswith((".bias", "norm.weight")), name


def test_adaptation_never_changes_the_meta_model(make_fixed_meta: Any, make_support: Any, kind: str) -> None:
    meta: MetaModel = make_fixed_meta(kind, moments=True, schedule=MINIBATCHES)
    before = meta_to_bytes(meta)
    adapt(meta, make_support())
    assert meta_to_bytes(meta) == before


def test_adaptation_repeats_to_the_same_bits_whatever_happened_before(
    make_fixed_meta: Any, make_support: Any, kind: str
) -> None:
    meta, support = make_fixed_meta(kind, moments=True, schedule=MINIBATCHES), make_support((3, 4, 2))
    first = adapt(meta, support, seed=5)
    torch.manual_seed(12345)
    assert not _same_bits(first, adapt(meta, support, seed=6))
    assert _same_bits(first, adapt(meta, support, seed=5))


def test_stored_moments_make_another_task_model_than_none(make_fixed_meta: Any, make_support: Any, kind: str) -> None:
    meta = make_fixed_meta(kind, moments=True)
    assert not _same_bits(adapt(meta, make_support()), adapt(replace(meta, moments={}), make_support()))


def test_relabelling_and_reordering_permute_the_answers_and_change_nothing_else(
    make_fixed_meta: Any, make_support: Any, kind: str
) -> None:
    meta, support = make_fixed_meta(kind, moments=True, schedule=MINIBATCHES), make_support((2, 3, 1, 3))
    generator = torch.Generator().manual_seed(0)
    rows, renumbered = torch.randperm(9, generator=generator), torch.randperm(4, generator=generator)
    other_support = SupportSet(support.images[rows], renumbered[support.labels[rows]], ("w", "x", "y", "z"))
    task, other = adapt(meta, support), adapt(meta, other_support)
    features, other_features = task.network.network.state_dict(), other.network.network.state_dict()
    assert all(torch.equal(features[name], other_features[name]) for name in features)
    assert torch.equal(other.logits(_images(6))[:, renumbered], task.logits(_images(6)))


def test_an_image_scores_the_same_alone_in_a_batch_and_in_another_order(
    make_fixed_meta: Any, make_support: Any, kind: str
) -> None:
    task, images = adapt(make_fixed_meta(kind), make_support()), _images(9)
    together = task.logits(images)
    alone = torch.cat([task.logits(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(task.logits(images.flip(0)).flip(0), together, rtol=0, atol=1e-5)


def test_enough_steps_learn_the_support_set(make_fixed_meta: Any, make_support: Any, kind: str) -> None:
    reports: list[StepReport] = []
    schedule = Schedule(architecture_steps=5, weight_steps=10, learning_rate=5e-3)
    support = make_support((4, 4, 4))
    task = adapt(make_fixed_meta(kind), support, schedule=schedule, on_step=reports.append)
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert (task.logits(support.images).argmax(dim=1) == support.labels).float().mean() > 0.9  # chance is 0.33


def test_cancelling_says_how_far_it_came(make_fixed_meta: Any, make_support: Any, kind: str) -> None:
    steps: list[StepReport] = []
    with pytest.raises(AdaptationCancelledError, match="adaptation was stopped after 5 of 7 steps"):
        adapt(make_fixed_meta(kind), make_support(), on_step=steps.append, should_stop=lambda: len(steps) >= 5)


def test_both_files_hold_everything_and_adapt_and_answer_to_the_same_bits(
    make_fixed_meta: Any, make_support: Any, kind: str
) -> None:
    meta: MetaModel = make_fixed_meta(kind, moments=True, in_channels=3)
    loaded = meta_from_bytes(meta_to_bytes(meta))
    assert (loaded.space, loaded.genotype, loaded.schedule) == (meta.space, meta.genotype, meta.schedule)
    assert loaded.weights.keys() == meta.weights.keys()
    assert all(torch.equal(loaded.weights[name], value) for name, value in meta.weights.items())
    assert loaded.moments.keys() == meta.moments.keys()
    assert dict(loaded.architecture) == {}
    task = adapt(meta, make_support(channels=3))
    assert _same_bits(task, adapt(loaded, make_support(channels=3)))

    task_loaded = task_from_bytes(task_to_bytes(task))
    assert (task_loaded.space, task_loaded.genotype, task_loaded.report) == (task.space, task.genotype, task.report)
    images = _images(5, channels=3)
    assert torch.equal(task_loaded.logits(images), task.logits(images))
    assert task_to_bytes(task_loaded) == task_to_bytes(task)


def test_every_network_built_from_a_meta_model_is_a_copy_of_its_kind(
    make_fixed_meta: Any, make_support: Any, kind: str
) -> None:
    meta: MetaModel = make_fixed_meta(kind)
    one, other = meta.build_network(), meta.build_network()
    assert isinstance(one, ConvNet if kind == "blocks" else Network)
    assert one.genotype == meta.genotype
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    images = torch.randn(3, 1, 12, 12)
    assert other(images).abs().max() > 0
    assert all(torch.equal(value, meta.weights[name]) for name, value in other.named_parameters())


def test_a_fixed_architecture_has_no_architecture_parameters(make_fixed_meta: Any, kind: str) -> None:
    meta: MetaModel = make_fixed_meta(kind)
    space = SearchSpace(nodes=2)
    with pytest.raises(InvalidConfigError, match=r"architecture do not fit the search space: normal\.alpha \(and 5"):
        replace(meta, architecture=initial_architecture(space))


def test_a_meta_model_without_its_genotype_is_refused(make_fixed_meta: Any, kind: str) -> None:
    message = {
        "cells": "weights do not fit the search space",
        "affine": "a search needs batch norms without scale and shift: set affine to false",
        "blocks": "plain blocks have no cells: the genotype of such a meta-model is NO_CELLS",
    }[kind]
    with pytest.raises(InvalidConfigError, match=message):
        replace(make_fixed_meta(kind), genotype=None)


def test_the_genotype_of_the_other_kind_is_refused(make_fixed_meta: Any, kind: str) -> None:
    if kind == "blocks":
        genotype, message = make_fixed_meta("cells").genotype, "the genotype of such a meta-model is NO_CELLS"
    else:
        genotype, message = NO_CELLS, "the genotype has 0 nodes, the space has 2"
    with pytest.raises(InvalidConfigError, match=message):
        replace(make_fixed_meta(kind), genotype=genotype)
