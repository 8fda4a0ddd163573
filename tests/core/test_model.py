"""Schedules and meta-models: what they refuse, and the way to plain values and back."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from metanas.errors import InvalidConfigError
from metanas.model import MetaModel, total_parameters
from metanas.network import Network
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas.space import SearchSpace

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture_steps": -1}, r"architecture_steps must be 0\.\.10000, got -1"),
        ({"weight_steps": 10_001}, r"weight_steps must be 0\.\.10000, got 10001"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and at most 100, got 0.0"),
        ({"architecture_learning_rate": NAN}, "architecture_learning_rate must be above 0 and at most 100, got nan"),
        ({"temperature_start": -1.0}, "temperature_start must be above 0 and at most 100, got -1.0"),
        ({"temperature_end": NAN}, "temperature_end must be above 0 and at most 100, got nan"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1.0"),
        ({"skip_below": 0.01}, "skip_below must be at least 0 and under the threshold 0.01, got 0.01"),
        ({"strategy": "darts"}, "unknown strategy 'darts'; known are none, operations, operations_and_inputs"),
        ({"relaxation": "gdas"}, "unknown relaxation 'gdas'; known are softmax, gumbel, gumbel_hard"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        Schedule(**values)


def test_a_schedule_survives_json_and_refuses_what_it_does_not_know() -> None:
    schedule = Schedule(architecture_steps=7, strategy="operations", temperature_end=0.1, relaxation="gumbel")
    values = json.loads(json.dumps(schedule.to_dict()))
    assert Schedule.from_dict(values) == schedule
    with pytest.raises(InvalidConfigError, match="Schedule has no setting momentum"):
        Schedule.from_dict({**values, "momentum": 0.9})


def test_the_default_schedule_is_the_papers_for_omniglot() -> None:
    schedule = Schedule()
    assert (schedule.architecture_steps, schedule.weight_steps, schedule.batch_size) == (50, 50, 20)
    assert (schedule.learning_rate, schedule.architecture_learning_rate) == (1e-3, 5e-4)
    assert (schedule.temperature_start, schedule.temperature_end, schedule.threshold) == (1.0, 0.05, 0.01)


def test_a_meta_model_without_a_weight_or_with_one_of_another_shape_is_refused(make_meta: Any) -> None:
    meta: MetaModel = make_meta()
    weights = dict(meta.weights)
    stem = weights.pop("stem.weight")
    with pytest.raises(InvalidConfigError, match=r"weights do not fit the search space: stem.weight \(and 0 more\)"):
        replace(meta, weights=weights)
    with pytest.raises(
        InvalidConfigError, match=r"weights: stem.weight is \(12, 1, 9\), the search space needs \(12, 1, 3, 3\)"
    ):
        replace(meta, weights={**weights, "stem.weight": stem.reshape(12, 1, 9)})
    with pytest.raises(
        InvalidConfigError, match=r"architecture: normal.beta.0 is \(2,\), the search space needs \(1,\)"
    ):
        replace(meta, architecture={**meta.architecture, "normal.beta.0": torch.zeros(2)})


def test_a_meta_model_whose_preprocessing_makes_other_images_is_refused(make_meta: Any) -> None:
    with pytest.raises(
        InvalidConfigError, match=r"images of \(channels, height, width\) \(1, 12, 13\), the search space"
    ):
        replace(make_meta(), preprocessing=Preprocessing(height=12, width=13))


def test_every_network_built_from_a_meta_model_is_a_copy(make_meta: Any) -> None:
    meta: MetaModel = make_meta()
    one, other = meta.build_network(), meta.build_network()
    with torch.no_grad():
        one.stem.weight.zero_()
    assert torch.equal(other.stem.weight, meta.weights["stem.weight"])
    assert meta.weights["stem.weight"].any()


def test_total_parameters_count_the_head_of_the_task() -> None:
    assert total_parameters(Network(SearchSpace()), 20) == 462_272
