"""Adaptation is a pure function, treats classes alike, and answers an image the same in any company."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas.batches import Batches
from metanas.errors import AdaptationCancelledError, DivergedError, InvalidTaskError
from metanas.head import balanced_cross_entropy
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.optimizer import Parameters, build_optimizer
from metanas.preprocessing import scale
from metanas.progress import StepReport
from metanas.relaxation import RELAXATIONS, STRATEGIES, Relaxation, Strategy, initial_architecture, relax
from metanas.schedule import Schedule
from metanas.snapshots import AdaptationTrace
from metanas.space import Genotype
from metanas.steps import gradient_step, operation_weights, start_head, step_temperature
from metanas.tasks import SupportSet

MINIBATCHES = Schedule(architecture_steps=4, weight_steps=3, batch_size=4, skip_below=0.0)


def _digest(meta: MetaModel) -> str:
    digest = hashlib.sha256()
    for part in (meta.weights, meta.architecture, meta.moments):
        for name in sorted(part):
            digest.update(name.encode() + str(part[name].stride()).encode() + part[name].numpy().tobytes())
    return digest.hexdigest()


def _same_bits(one: TaskModel, other: TaskModel) -> bool:
    first, second = one.network.state_dict(), other.network.state_dict()
    return (
        one.genotype == other.genotype
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
    )


def _images(count: int, *, seed: int = 9) -> Tensor:
    return torch.randint(0, 256, (count, 1, 12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adaptation_never_changes_the_meta_model(make_meta: Any, make_support: Any, strategy: Strategy) -> None:
    meta = make_meta(moments=True, schedule=replace(MINIBATCHES, strategy=strategy))
    before = _digest(meta)
    adapt(meta, make_support())
    assert _digest(meta) == before


def test_adaptation_repeats_to_the_same_bits_whatever_happened_before(make_meta: Any, make_support: Any) -> None:
    meta, support = make_meta(moments=True, schedule=MINIBATCHES), make_support((3, 4, 2))
    first = adapt(meta, support, seed=5)
    adapt(meta, make_support(seed=1), seed=6)
    torch.manual_seed(12345)
    second = adapt(meta, support, seed=5)
    assert _same_bits(first, second)
    assert torch.equal(first.logits(_images(5)), second.logits(_images(5)))


def test_another_seed_makes_another_task_model_where_images_do_not_fit_in_one_batch(
    make_meta: Any, make_support: Any
) -> None:
    meta, support = make_meta(schedule=MINIBATCHES), make_support((3, 4, 2))
    assert not _same_bits(adapt(meta, support, seed=0), adapt(meta, support, seed=1))


def test_the_seed_does_not_matter_where_all_images_fit_in_one_batch(make_meta: Any, make_support: Any) -> None:
    assert _same_bits(adapt(make_meta(), make_support(), seed=0), adapt(make_meta(), make_support(), seed=1))


def test_an_image_scores_the_same_alone_in_a_batch_and_in_another_order(make_meta: Any, make_support: Any) -> None:
    task = adapt(make_meta(), make_support())
    images = _images(9)
    together = task.logits(images)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    for scores in (
        torch.cat([task.logits(image[None]) for image in images]),
        task.logits(images[order])[order.argsort()],
    ):
        torch.testing.assert_close(scores, together, rtol=0, atol=1e-5)
        assert torch.equal(scores.argmax(dim=1), together.argmax(dim=1))


@pytest.mark.parametrize("seed", range(3))
def test_relabelling_and_reordering_permute_the_answers_and_change_nothing_else(
    make_meta: Any, make_support: Any, seed: int
) -> None:
    meta, support = make_meta(moments=True, schedule=MINIBATCHES), make_support((2, 3, 1, 3))
    generator = torch.Generator().manual_seed(seed)
    rows, renumbered = torch.randperm(9, generator=generator), torch.randperm(4, generator=generator)
    other_support = SupportSet(support.images[rows], renumbered[support.labels[rows]], ("w", "x", "y", "z"))
    task, other = adapt(meta, support), adapt(meta, other_support)

    assert other.class_names == ("w", "x", "y", "z")
    assert other.genotype == task.genotype
    features, other_features = task.network.network.state_dict(), other.network.network.state_dict()
    assert all(torch.equal(features[name], other_features[name]) for name in features)
    assert torch.equal(other.network.head.weight[renumbered], task.network.head.weight)
    assert torch.equal(other.network.head.bias[renumbered], task.network.head.bias)
    assert torch.equal(other.logits(_images(6))[:, renumbered], task.logits(_images(6)))
    assert other.report.support_accuracy == task.report.support_accuracy


@pytest.mark.parametrize("shots", [(1, 3), (1, 4, 2, 1, 5, 2, 3), tuple(1 + label % 3 for label in range(40))])
def test_2_7_and_40_classes_with_unequal_shots_work(make_meta: Any, make_support: Any, shots: tuple[int, ...]) -> None:
    schedule = Schedule(architecture_steps=3, weight_steps=3, batch_size=20, skip_below=0.0)
    support = make_support(shots)
    task = adapt(make_meta(schedule=schedule, sharp=True), support)
    scores = task.logits(support.images)
    assert scores.shape == (sum(shots), len(shots))
    accuracy = (scores.argmax(dim=1) == support.labels).float().mean().item()
    assert accuracy == pytest.approx(task.report.support_accuracy)
    assert accuracy > 0.6  # patterns that differ in half of all pixels, against chance of 0.5 to 0.025


def test_the_answers_come_in_the_order_of_the_callers_classes(make_meta: Any, make_support: Any) -> None:
    support = make_support((3, 3, 3, 3, 3))
    task = adapt(make_meta(sharp=True), support)
    assert task.class_names == support.class_names
    assert (task.logits(support.images).argmax(dim=1) == support.labels).float().mean() > 0.8  # chance is 0.2


def _trace(meta: MetaModel, support: SupportSet, schedule: Schedule) -> tuple[AdaptationTrace, TaskModel]:
    traces: list[AdaptationTrace] = []
    task = adapt(meta, support, schedule=schedule, on_trace=traces.append)
    return traces[0], task


def test_weights_and_architecture_move_together_and_weights_move_on_after_pruning(
    make_meta: Any, make_support: Any
) -> None:
    meta, support = make_meta(), make_support()
    trace, task = _trace(meta, support, meta.schedule)
    for name, parameter in trace.one_shot.named_parameters():
        assert not torch.equal(parameter, meta.weights[name]), name
    start = relax(meta.architecture, meta.space, temperature=0.05)
    for cell_type, mixture in trace.mixtures.items():
        assert not torch.equal(mixture.operations, start[cell_type].operations)
        assert not torch.equal(mixture.inputs, start[cell_type].inputs)
    one_shot = dict(trace.one_shot.named_parameters())
    for name, parameter in trace.pruned.network.named_parameters():
        assert torch.equal(parameter, one_shot[name])
        assert not torch.equal(parameter, dict(task.network.network.named_parameters())[name]), name


def test_the_weight_steps_leave_the_architecture_as_pruning_left_it(make_meta: Any, make_support: Any) -> None:
    trace, task = _trace(make_meta(), make_support(), make_meta().schedule)
    assert trace.pruned.genotype == task.genotype


def test_one_step_takes_weights_and_architecture_from_one_gradient_by_hand(make_meta: Any, make_support: Any) -> None:
    meta, support = make_meta(), make_support()
    images = scale(support.images, meta.preprocessing)
    class_weights = 1 / torch.tensor(support.shots, dtype=torch.float32)
    network = meta.build_network()
    architecture = {name: value.clone().requires_grad_() for name, value in meta.architecture.items()}
    schedule = Schedule(
        learning_rate=1e-3, architecture_learning_rate=1e-2, architecture_weight_decay=0.0, skip_below=0.0
    )
    weights = operation_weights(network, architecture, schedule=schedule, temperature=0.5)
    head, _ = start_head(
        network, weights=weights, images=images, labels=support.labels, n_way=3, scale=10.0, skip_below=0.0
    )
    parameters = Parameters(network, head, architecture)
    mixtures = relax(architecture, meta.space, temperature=0.5)
    logits = head(network(images, {name: mixture.rows for name, mixture in mixtures.items()}))
    named = dict(parameters.named())
    gradients = torch.autograd.grad(
        balanced_cross_entropy(logits, support.labels, class_weights), list(named.values()), allow_unused=True
    )
    before = {name: value.detach().clone() for name, value in named.items()}
    optimizer = build_optimizer(parameters, {}, schedule=schedule)
    gradient_step(
        network, head, optimizer, weights=weights, images=images, labels=support.labels, class_weights=class_weights,
        skip_below=0.0,
    )  # fmt: skip
    for (name, value), gradient in zip(named.items(), gradients, strict=True):
        rate = 1e-2 if name.startswith("architecture") else 1e-3
        # Adam's first step from zero with beta_1 = 0 is the rate times gradient / (|gradient| + epsilon).
        step = rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(value.detach(), before[name] - step, rtol=1e-4, atol=rate / 50, msg=name)


def test_stored_moments_make_another_task_model_than_none(make_meta: Any, make_support: Any) -> None:
    meta = make_meta(moments=True)
    assert not _same_bits(adapt(meta, make_support()), adapt(replace(meta, moments={}), make_support()))


def test_adaptation_does_not_depend_on_the_memory_layout_of_what_is_stored(make_meta: Any, make_support: Any) -> None:
    def laid_out(values: Any, layout: torch.memory_format) -> dict[str, Tensor]:
        return {
            name: value.contiguous(memory_format=layout) if value.ndim == 4 else value for name, value in values.items()
        }

    meta = make_meta(moments=True, in_channels=3)
    tasks = [
        adapt(
            replace(meta, weights=laid_out(meta.weights, layout), moments=laid_out(meta.moments, layout)),
            make_support(channels=3),
        )
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert _same_bits(*tasks)


@pytest.mark.parametrize("allowed", range(7))
def test_cancelling_stops_before_the_next_step_and_says_how_far_it_came(
    make_meta: Any, make_support: Any, allowed: int
) -> None:
    steps: list[StepReport] = []
    with pytest.raises(AdaptationCancelledError, match=f"adaptation was stopped after {allowed} of 7 steps"):
        adapt(make_meta(), make_support(), on_step=steps.append, should_stop=lambda: len(steps) >= allowed)
    assert len(steps) == allowed


def test_steps_that_diverge_are_an_error_that_says_where_and_what_to_do(make_meta: Any, make_support: Any) -> None:
    meta = replace(make_meta(), head_scale=float(torch.finfo(torch.float32).max))
    with pytest.raises(
        DivergedError, match=r"^the loss .* no numbers after step \d of 7 of .*; take lower learning rates"
    ):
        adapt(meta, make_support())


def test_an_architecture_that_is_no_number_is_named_before_it_is_run(make_meta: Any, make_support: Any) -> None:
    meta = make_meta()
    broken = {name: torch.full_like(value, torch.nan) for name, value in meta.architecture.items()}
    with pytest.raises(DivergedError, match=r"^the weights of operations are infinite or no numbers after step 0 of 7"):
        adapt(replace(meta, architecture=broken), make_support())


def test_images_of_another_size_are_refused_with_both_sizes(make_meta: Any) -> None:
    support = SupportSet(torch.zeros(2, 3, 12, 11, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(
        InvalidTaskError, match=r"are \(channels, height, width\) \(3, 12, 11\), the meta-model takes \(1, 12, 12\)"
    ):
        adapt(make_meta(), support)


def test_every_step_is_reported_from_1_with_a_falling_temperature(make_meta: Any, make_support: Any) -> None:
    reports: list[StepReport] = []
    adapt(make_meta(), make_support(), on_step=reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6, 7]
    assert {report.steps for report in reports} == {7}
    assert [report.phase for report in reports] == ["architecture"] * 4 + ["weights"] * 3
    temperatures = [report.temperature for report in reports]
    assert temperatures[:4] == pytest.approx([1.0, 1.0 - 0.95 / 3, 1.0 - 1.9 / 3, 0.05])
    assert temperatures[4:] == [0.05] * 3
    assert all(report.loss > 0 for report in reports)


def test_the_loss_falls_over_enough_steps(make_meta: Any, make_support: Any) -> None:
    reports: list[StepReport] = []
    schedule = Schedule(architecture_steps=6, weight_steps=6)
    adapt(make_meta(sharp=True), make_support((2, 2, 2, 2)), schedule=schedule, on_step=reports.append)
    assert reports[5].loss < reports[0].loss
    assert reports[-1].loss < 0.7 * reports[0].loss


@pytest.mark.parametrize(("architecture_steps", "weight_steps"), [(0, 0), (0, 2), (2, 0)])
def test_either_phase_may_have_no_steps(
    make_meta: Any, make_support: Any, architecture_steps: int, weight_steps: int
) -> None:
    schedule = Schedule(architecture_steps=architecture_steps, weight_steps=weight_steps)
    task = adapt(make_meta(), make_support(), schedule=schedule)
    assert (task.report.architecture_steps, task.report.weight_steps) == (architecture_steps, weight_steps)


def test_the_first_temperature_is_the_start_and_the_last_the_end() -> None:
    schedule = Schedule(temperature_start=1.0, temperature_end=0.1)
    assert [step_temperature(step, 4, schedule) for step in range(4)] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert step_temperature(0, 1, schedule) == pytest.approx(0.1)


def test_annealed_and_separated_architecture_loses_nothing_by_pruning_in_adaptation(
    make_meta: Any, make_support: Any
) -> None:
    meta = make_meta()
    sharp = {name: torch.zeros_like(value) for name, value in meta.architecture.items()}
    for value in sharp.values():
        value.view(-1, value.shape[-1])[:, 0] = 1.0
    trace, task = _trace(replace(meta, architecture=sharp), make_support(), meta.schedule)
    images = scale(make_support((4, 4, 4), seed=3).images, meta.preprocessing)
    weights = {name: mixture.rows for name, mixture in trace.mixtures.items()}
    with torch.no_grad():  # both in training mode: normalised with these images
        before = trace.head(trace.one_shot(images, weights))
        after = trace.pruned.train()(images)
    assert (before - after).abs().max() < 1e-3
    structure: Genotype = task.genotype
    assert all(len(node) == 2 for node in (*structure.normal, *structure.reduction))


def test_the_report_counts_what_was_done(make_meta: Any, make_support: Any) -> None:
    task = adapt(make_meta(), make_support(), seed=3)
    assert task.report.seed == 3
    assert task.report.parameter_count == sum(parameter.numel() for parameter in task.network.parameters())
    one_shot = sum(value.numel() for value in make_meta().weights.values()) + 3 * (8 + 1)
    assert task.report.one_shot_parameter_count == one_shot
    assert task.provenance["meta_model"] == {"data": "random"}
    assert Schedule.from_dict(task.provenance["schedule"]) == make_meta().schedule
    assert not task.network.training
    assert not any(parameter.requires_grad for parameter in task.network.parameters())


def test_batches_go_through_all_images_before_any_comes_again() -> None:
    batches = Batches(7, batch_size=3, generator=torch.Generator().manual_seed(0))
    stream = torch.cat([batches.next() for _ in range(14)]).tolist()
    assert all(sorted(stream[7 * start : 7 * start + 7]) == list(range(7)) for start in range(6))
    assert stream[:7] != stream[7:14]


def test_a_support_set_that_fits_goes_in_whole_and_in_order() -> None:
    batches = Batches(5, batch_size=20, generator=torch.Generator().manual_seed(0))
    assert batches.next().tolist() == batches.next().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("relaxation", ["gumbel", "gumbel_hard"])
def test_gumbel_noise_repeats_with_the_seed_and_differs_with_another(
    make_meta: Any, make_support: Any, relaxation: Relaxation
) -> None:
    """All images fit in one batch, so that nothing but the noise depends on the seed."""
    meta, support = make_meta(schedule=replace(make_meta().schedule, relaxation=relaxation)), make_support()
    first = adapt(meta, support, seed=5)
    torch.manual_seed(12345)
    assert _same_bits(first, adapt(meta, support, seed=5))
    assert not _same_bits(first, adapt(meta, support, seed=6))
    assert not _same_bits(first, adapt(meta, support, schedule=replace(meta.schedule, relaxation="softmax"), seed=5))


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_every_relaxation_learns_the_weights_of_what_it_gives_weight(
    make_meta: Any, make_support: Any, relaxation: Relaxation
) -> None:
    meta: MetaModel = make_meta(schedule=replace(make_meta().schedule, relaxation=relaxation, strategy="operations"))
    trace, task = _trace(meta, make_support(), meta.schedule)
    assert torch.isfinite(task.logits(_images(4))).all()
    moved = {name for name, value in trace.one_shot.named_parameters() if not torch.equal(value, meta.weights[name])}
    if relaxation == "gumbel_hard":  # four draws reach some operations only
        assert {name for name in meta.weights if ".operations." not in name} < moved < meta.weights.keys()
    else:
        assert moved == meta.weights.keys()
    for mixture in trace.mixtures.values():
        torch.testing.assert_close(mixture.operations.sum(dim=1), torch.ones(5))


def test_a_hard_choice_is_pruned_without_any_loss(make_meta: Any, make_support: Any) -> None:
    meta = make_meta(schedule=replace(make_meta().schedule, relaxation="gumbel_hard"))
    trace, task = _trace(meta, make_support(), meta.schedule)
    assert {edge.weight for node in (*task.genotype.normal, *task.genotype.reduction) for edge in node} == {1.0}
    images = scale(_images(12), meta.preprocessing)
    weights = {name: mixture.rows for name, mixture in trace.mixtures.items()}
    with torch.no_grad():
        before = trace.head(trace.one_shot(images, weights))
        torch.testing.assert_close(trace.pruned.train()(images), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_another_number_of_inputs_a_node_adapts_and_keeps_that_many(make_support: Any, make_meta: Any, k: int) -> None:
    meta: MetaModel = make_meta()
    space = replace(meta.space, inputs_per_node=k)
    architecture = {**meta.architecture}
    generator = torch.Generator().manual_seed(0)
    for name, value in initial_architecture(space).items():
        if ".beta." in name:
            architecture[name] = torch.randn(value.shape, generator=generator)
    schedule = replace(meta.schedule, relaxation="gumbel_hard")
    task = adapt(replace(meta, space=space, architecture=architecture), make_support(), schedule=schedule)
    for cell in (task.genotype.normal, task.genotype.reduction):
        assert [len(node) for node in cell] == [min(k, 2), min(k, 3)]


def test_a_task_of_noise_promises_nothing_though_it_has_learned_its_images_by_heart(make_meta: Any) -> None:
    steps = Schedule(architecture_steps=10, weight_steps=90, learning_rate=0.02, skip_below=0.0)
    noise = SupportSet(_images(24), torch.arange(24) % 3, ("a", "b", "c"))
    task = adapt(make_meta(schedule=steps), noise)
    assert task.report.support_accuracy > 0.9
    assert task.trust.leave_one_out_accuracy is not None
    assert task.trust.leave_one_out_accuracy < 0.6
