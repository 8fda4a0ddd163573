"""Both protocols on data that are easy to tell apart, and intervals by hand."""

import json
from typing import Any

import pytest
import torch

from metanas.model import MetaModel, Schedule
from metanas.space import SearchSpace
from metanas_training.evaluate import TaskScore, estimate, evaluate, sample_tasks, summarise
from metanas_training.state import new_state, to_meta_model


@pytest.fixture
def meta(make_config: Any, make_classes: Any, small_space: SearchSpace) -> MetaModel:
    return to_meta_model(
        new_state(make_config(), small_space),
        preprocessing=make_classes().preprocessing,
        schedule=Schedule(architecture_steps=6, weight_steps=6),
        provenance={},
    )


def test_a_mean_and_its_95_percent_interval_by_hand() -> None:
    # Deviations -0.1, 0, 0.1: standard deviation 0.1 with n - 1, standard error 0.1 / sqrt 3.
    found = estimate([0.4, 0.5, 0.6])
    assert found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(1.96 * 0.1 / 3**0.5)
    assert str(found) == "50.00 % ± 11.32"
    assert estimate([0.25]).half_width == 0.0


def test_both_protocols_are_far_above_chance_on_data_that_are_easy_to_tell_apart(
    meta: MetaModel, make_classes: Any
) -> None:
    seen: list[TaskScore] = []
    scores = evaluate(meta, make_classes(noise=60), n_way=4, n_shot=2, n_query=3, tasks=3, seed=0, on_task=seen.append)
    assert scores.tasks == len(seen) == 3
    assert scores.inductive.mean > 0.6  # chance is 0.25
    assert scores.transductive.mean > 0.6
    assert scores.prototype.mean > 0.5
    assert scores.inductive.mean == pytest.approx(sum(one.inductive for one in seen) / 3)
    assert json.loads(json.dumps(scores.to_dict()))["inductive"]["mean"] == scores.inductive.mean


def test_every_meta_model_is_measured_on_the_same_tasks(make_classes: Any) -> None:
    one, other = (sample_tasks(make_classes(), n_way=3, n_shot=1, n_query=2, tasks=2, seed=5) for _ in range(2))
    assert all(torch.equal(a.query_images, b.query_images) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0].query_images, one[1].query_images)


def test_a_summary_counts_architectures_by_hand() -> None:
    scores = [
        TaskScore(
            inductive=value, transductive=1.0, prototype=0.5, pruning_loss=0.0, parameter_count=count,
            adapt_seconds=2.0, structure=structure,
        )
        for value, count, structure in [(0.5, 10, "a"), (0.7, 20, "b"), (0.9, 30, "a")]
    ]  # fmt: skip
    summary = summarise("data", 5, 1, scores)
    assert summary.structures == 2
    assert summary.most_common_share == pytest.approx(2 / 3)
    assert summary.parameter_count == 20
    assert summary.inductive.mean == pytest.approx(0.7)
