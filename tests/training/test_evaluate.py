"""Both protocols on data that are easy to tell apart, what is reported of each task, and intervals by hand."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from metanas.cost import multiply_adds
from metanas.genotypes import GENOTYPES
from metanas.head import Head
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.space import NO_CELLS, EdgeOperation, Genotype, SearchSpace
from metanas.task_network import TaskNetwork
from metanas_training.architectures import most_common, most_common_cell
from metanas_training.episodes import Episode
from metanas_training.errors import EvaluationError, NonFiniteError
from metanas_training.evaluate import (
    accuracy,
    draw_tasks,
    evaluate,
    evaluate_task,
    inductive_accuracy,
    sample_tasks,
    scale_episode,
)
from metanas_training.evaluation_pool import EvaluationPool
from metanas_training.journal import Journal
from metanas_training.report import over_runs, summary
from metanas_training.run_files import RunFile
from metanas_training.scores import TaskScore, estimate, summarise
from metanas_training.trajectory import follow, mean_curve
from metanas_training.trust_scores import BINS, TrustScore

FIXED = GENOTYPES["metanas_omniglot"]
KINDS = ("searched", "fixed", "conv_blocks")
"""Of ``make_meta``."""

MakeMeta = Callable[..., MetaModel]


ALL_SURE = ((0.0, 0.0, 0.0),) * (BINS - 1) + ((10.0, 10.0, 10.0),)
TRUST = TrustScore(
    leave_one_out_accuracy=1.0, temperature=1.0, confidence=ALL_SURE, calibrated_confidence=ALL_SURE,
    auroc=0.9, known_refused=None, unknown_refused=None,
)  # fmt: skip


def _score(value: float, *, count: int = 10, genotype: Genotype = FIXED, pruning_loss: float | None = 0.0) -> TaskScore:
    return TaskScore(
        inductive=value, transductive=1.0, prototype=0.5, support_accuracy=1.0, pruning_loss=pruning_loss,
        parameter_count=count, multiply_adds=100 * count, adapt_seconds=2.0, genotype=genotype, trust=TRUST,
    )  # fmt: skip


def test_a_mean_and_its_95_percent_interval_by_hand() -> None:
    # Deviations -0.1, 0, 0.1: standard deviation 0.1 with n - 1, standard error 0.1 / sqrt 3.
    found = estimate([0.4, 0.5, 0.6])
    assert found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(1.96 * 0.1 / 3**0.5)
    assert str(found) == "50.00 % ± 11.32"
    assert estimate([0.25]).half_width == 0.0


def test_runs_are_reported_with_twice_the_standard_error_of_their_mean() -> None:
    found = over_runs([0.90, 0.92, 0.94])
    assert found.mean == pytest.approx(0.92)
    assert found.half_width == pytest.approx(2 * 0.02 / 3**0.5)
    assert over_runs([0.9]).half_width == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_both_protocols_are_far_above_chance_on_data_that_are_easy_to_tell_apart(
    make_meta: MakeMeta, make_classes: Any, kind: str
) -> None:
    seen: list[TaskScore] = []
    scores = evaluate(
        make_meta(kind), make_classes(noise=60), n_way=4, n_shot=2, n_query=3, tasks=3, seed=0, on_task=seen.append
    )
    assert scores.tasks == len(seen) == 3
    assert scores.inductive.mean > 0.6  # chance is 0.25
    assert scores.transductive.mean > 0.6
    assert scores.prototype.mean > 0.5
    assert scores.inductive.mean == pytest.approx(sum(one.inductive for one in seen) / 3)
    assert json.loads(json.dumps(scores.to_dict()))["inductive"]["mean"] == scores.inductive.mean
    assert (scores.pruning_loss is None) == (kind != "searched")
    assert ("nothing is pruned" in summary(scores)) == (kind != "searched")


BROKEN = "the network's answers are not finite: the meta-model is broken"


@pytest.mark.parametrize("kind", KINDS)
def test_a_meta_model_of_absurd_weights_is_an_error_not_chance(
    make_meta: MakeMeta, make_classes: Any, kind: str
) -> None:
    meta = make_meta(kind)
    meta = dataclasses.replace(
        meta, weights={name: torch.full_like(value, 3e38) for name, value in meta.weights.items()}
    )
    episode = sample_tasks(make_classes(noise=60), n_way=4, n_shot=1, n_query=1, tasks=1, seed=0)[0]
    with pytest.raises(NonFiniteError, match=BROKEN):
        evaluate_task(meta, episode)


def test_adaptation_that_ends_in_no_numbers_is_an_error_not_chance(make_meta: MakeMeta, make_classes: Any) -> None:
    meta = dataclasses.replace(make_meta("fixed"), head_scale=float(torch.finfo(torch.float32).max))
    episode = sample_tasks(make_classes(noise=60), n_way=4, n_shot=1, n_query=1, tasks=1, seed=0)[0]
    with pytest.raises(NonFiniteError, match=r"the meta-model is broken: the loss .* after step \d of 8 of adaptation"):
        evaluate_task(meta, episode)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_logit_that_is_not_finite_is_an_error_in_both_protocols(
    make_meta: MakeMeta, make_classes: Any, value: float
) -> None:
    meta = make_meta("conv_blocks")
    episode = sample_tasks(make_classes(), n_way=2, n_shot=1, n_query=2, tasks=1, seed=0)[0]
    scaled = scale_episode(episode, meta.preprocessing)
    network = TaskNetwork(meta.space, NO_CELLS, 2)
    head: Head = network.head
    head.bias.data[1] = value
    with pytest.raises(NonFiniteError, match=BROKEN):
        accuracy(network, scaled.queries, scaled.labels)
    with pytest.raises(NonFiniteError, match=BROKEN):
        inductive_accuracy(network.network, head, None, scaled)


@pytest.mark.parametrize("kind", ["fixed", "conv_blocks"])
def test_without_a_step_a_fixed_architecture_answers_as_its_prototypes_do(
    make_meta: MakeMeta, make_classes: Any, kind: str
) -> None:
    meta = make_meta(kind, architecture_steps=0, weight_steps=0)
    for episode in sample_tasks(make_classes(noise=255), n_way=5, n_shot=1, n_query=4, tasks=4, seed=1):
        score = evaluate_task(meta, episode)
        assert score.inductive == score.prototype < 1.0


def test_a_score_holds_what_the_task_network_consists_of_and_costs(make_meta: MakeMeta, make_classes: Any) -> None:
    meta = make_meta()
    episode = sample_tasks(make_classes(), n_way=3, n_shot=2, n_query=2, tasks=1, seed=0)[0]
    score, task = evaluate_task(meta, episode, seed=3), adapt(meta, episode.support, seed=3)
    assert score.genotype == task.genotype
    assert score.parameter_count == sum(parameter.numel() for parameter in task.network.parameters())
    assert score.multiply_adds == multiply_adds(meta.space, task.genotype, n_way=3)
    assert score.support_accuracy == task.report.support_accuracy
    assert TaskScore.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_every_meta_model_is_measured_on_the_same_tasks_however_many_there_are(make_classes: Any) -> None:
    some = sample_tasks(make_classes(), n_way=3, n_shot=1, n_query=2, tasks=2, seed=5)
    more = draw_tasks(make_classes(), n_way=3, n_shot=1, n_query=2, tasks=9, seed=5)
    assert all(torch.equal(a.query_images, b.query_images) for a, b in zip(some, more, strict=False))
    assert not torch.equal(some[0].query_images, some[1].query_images)


def test_a_summary_counts_architectures_by_hand() -> None:
    other = Genotype(normal=FIXED.reduction, reduction=FIXED.reduction)
    scores = [_score(0.5, count=10), _score(0.7, count=20, genotype=other), _score(0.9, count=30, pruning_loss=None)]
    found = summarise("data", 5, 1, scores)
    assert found.structures == 2
    assert found.most_common_share == pytest.approx(2 / 3)
    assert found.parameter_count == 20
    assert found.multiply_adds == 2000
    assert found.inductive.mean == pytest.approx(0.7)
    assert "multiply-adds of one image       0.00 million" in summary(found)
    assert "3 tasks, chance 20.0 %, mean with 95 % interval:" in summary(found)
    alone = summary(summarise("data", 5, 1, scores[:1]))
    assert "1 task, chance 20.0 %, too few for an interval:" in alone
    assert "±" not in alone


def _genotype(normal: Sequence[tuple[str, float]], reduction: str = "conv_3x3") -> Genotype:
    """One node that reads inputs 0, 1 of the normal cell, and input 0 of the reduction cell."""
    return Genotype(
        normal=(tuple(EdgeOperation(source, *one) for source, one in enumerate(normal)),),
        reduction=((EdgeOperation(0, reduction, 1.0),),),
    )


def test_the_most_common_architecture_has_the_mean_weights_of_the_tasks_that_have_it() -> None:
    alike = [
        _genotype([("conv_3x3", 0.8), ("skip_connect", 1.0)]),
        _genotype([("conv_3x3", 0.6), ("skip_connect", 0.5)]),
    ]
    rare = _genotype([("conv_3x3", 0.1), ("conv_3x3", 0.1)])
    found = most_common([alike[0], rare, alike[1]])
    assert found.share == pytest.approx(2 / 3)
    assert [edge.weight for edge in found.genotype.normal[0]] == pytest.approx([0.7, 0.75])
    assert found.genotype.structure() == alike[0].structure()


def test_of_equally_common_architectures_the_order_of_the_tasks_does_not_decide() -> None:
    one, other = _genotype([("conv_3x3", 1.0)]), _genotype([("avg_pool_3x3", 1.0)])
    assert most_common([one, other]) == most_common([other, one])
    assert most_common([one, other]).genotype == other  # its operation comes first in the alphabet
    assert most_common([one, other]).share == 0.5


def test_the_most_common_cell_of_a_type_may_be_of_several_architectures() -> None:
    one, other = _genotype([("conv_3x3", 1.0)]), _genotype([("conv_3x3", 0.5)], reduction="skip_connect")
    third = _genotype([("skip_connect", 1.0)])
    found = most_common_cell([one, other, third], "normal")
    assert found.share == pytest.approx(2 / 3)
    assert found.cell == ((EdgeOperation(0, "conv_3x3", 0.75),),)


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_starts_at_the_prototypes_and_ends_where_the_finished_task_stands(
    make_meta: MakeMeta, make_classes: Any, kind: str
) -> None:
    meta = make_meta(kind, architecture_steps=4, weight_steps=3)
    for episode in sample_tasks(make_classes(noise=255), n_way=5, n_shot=1, n_query=4, tasks=2, seed=2):
        score, followed = evaluate_task(meta, episode, seed=1), follow(meta, episode, seed=1, every=5)
        assert followed.points[0].accuracy == score.prototype
        assert followed.points[-1].accuracy == score.inductive
        steps = [(point.step, point.pruned) for point in followed.points]
        searched = [(0, False), (4, False), (4, True), (5, True), (7, True)]
        assert steps == (searched if kind == "searched" else [(0, True), (5, True), (7, True)])
        if score.pruning_loss is not None:
            assert followed.points[1].accuracy - followed.points[2].accuracy == pytest.approx(score.pruning_loss)


def test_frames_go_from_the_meta_architecture_to_the_weights_that_decide_what_is_pruned(
    make_meta: MakeMeta, make_classes: Any
) -> None:
    meta = make_meta(architecture_steps=4, weight_steps=0)
    episode = sample_tasks(make_classes(), n_way=3, n_shot=1, n_query=2, tasks=1, seed=0)[0]
    frames = follow(meta, episode).frames
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.temperature for frame in frames] == pytest.approx([1.0, 1.0 - 0.95 / 3, 1.0 - 1.9 / 3, 0.05, 0.05])
    start = torch.softmax(meta.architecture["normal.alpha"], dim=-1)
    assert torch.tensor(frames[0].operations["normal"]) == pytest.approx(start, abs=1e-6)
    last = frames[-1]
    for node, kept in enumerate(adapt(meta, episode.support).genotype.normal):
        assert isinstance(meta.space, SearchSpace)
        for edge in kept:
            row = meta.space.edges.index((node, edge.source))
            column = meta.space.operations.index(edge.operation)
            weight = last.operations["normal"][row][column] * last.inputs["normal"][row]
            assert weight == pytest.approx(edge.weight)
    assert follow(make_meta("fixed"), episode).frames == ()


def test_following_a_task_does_not_change_what_is_learned(make_meta: MakeMeta, make_classes: Any) -> None:
    meta = make_meta(architecture_steps=2, weight_steps=2)
    before = {name: value.clone() for name, value in meta.weights.items()}
    episode = sample_tasks(make_classes(), n_way=3, n_shot=1, n_query=2, tasks=1, seed=0)[0]
    plain = evaluate_task(meta, episode, seed=4)
    follow(meta, episode, seed=4, every=1)
    assert all(torch.equal(before[name], value) for name, value in meta.weights.items())
    again = evaluate_task(meta, episode, seed=4)
    assert (again.inductive, again.genotype) == (plain.inductive, plain.genotype)
    assert follow(meta, episode, seed=4, every=1).points[-1].accuracy == plain.inductive


def test_a_mean_curve_is_the_mean_over_tasks_at_each_step(make_meta: MakeMeta, make_classes: Any) -> None:
    meta = make_meta(architecture_steps=2, weight_steps=2)
    episodes = sample_tasks(make_classes(noise=255), n_way=5, n_shot=1, n_query=4, tasks=3, seed=2)
    followed = [follow(meta, episode, every=2) for episode in episodes]
    curve = mean_curve(followed)
    assert [(point.step, point.pruned) for point in curve] == [(0, False), (2, False), (2, True), (4, True)]
    for index, point in enumerate(curve):
        assert point.accuracy == estimate([one.points[index].accuracy for one in followed])


def test_a_process_that_dies_ends_the_evaluation_with_a_message(
    make_meta: MakeMeta, make_classes: Any, tmp_path: Path
) -> None:
    meta = make_meta("conv_blocks")
    tasks = sample_tasks(make_classes(), n_way=2, n_shot=1, n_query=1, tasks=2, seed=0)
    file = RunFile("seed 0", "meta.pt", "0" * 64, meta)

    def episodes() -> Iterator[Episode]:
        yield tasks[0]
        for worker in active_children():
            worker.kill()
        yield tasks[1]

    with (
        Journal(tmp_path, file, data="made-up", settings={}) as journal,
        pytest.raises(EvaluationError, match="a process of the evaluation died"),
        EvaluationPool([meta], jobs=1, seed=0) as pool,
    ):
        pool.score(0, episodes(), tasks=2, journal=journal, label="")


def test_ctrl_c_does_not_wait_for_the_tasks_that_are_being_learned(
    make_meta: MakeMeta, make_classes: Any, tmp_path: Path
) -> None:
    meta = make_meta(architecture_steps=10_000)  # minutes
    tasks = sample_tasks(make_classes(), n_way=2, n_shot=1, n_query=1, tasks=1, seed=0)
    file = RunFile("seed 0", "meta.pt", "0" * 64, meta)

    def episodes() -> Iterator[Episode]:
        yield tasks[0]
        raise KeyboardInterrupt

    started = time.monotonic()
    with (
        Journal(tmp_path, file, data="made-up", settings={}) as journal,
        pytest.raises(KeyboardInterrupt),
        EvaluationPool([meta], jobs=1, seed=0) as pool,
    ):
        pool.score(0, episodes(), tasks=1, journal=journal, label="")
    assert time.monotonic() - started < 60
