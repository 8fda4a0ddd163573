"""The comparison with ONNX Runtime: it sees what differs, and says it in numbers."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from metanas_export import onnx_bytes
from metanas_export.check import agreement, compare, judge, require, support_set, table
from metanas_export.errors import DisagreementError, ExportError


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def with_head_weight_changed(model: bytes, factor: float) -> bytes:
    proto = onnx.load_from_string(model)
    (weight,) = [value for value in proto.graph.initializer if value.name == "head/weight"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), "head/weight"))
    return proto.SerializeToString()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_honest_export_agrees_on_every_support_image(adapted_task, precision) -> None:
    found = compare(adapted_task, onnx_bytes(adapted_task, precision=precision), precision=precision)
    assert [(row.images, row.same_class) for row in found] == [(12, 12), (12, 12)]
    for row in found:
        require(row, precision=precision)
    assert found[0].what == f"torch / ONNX Runtime {precision}"
    assert 0 < found[0].mean_difference < found[0].largest_difference


def test_agreement_by_hand() -> None:
    found = agreement(scores([1, 0], [0, 2]), scores([1, 1.5], [0, 1]), what="by hand")
    assert (found.images, found.same_class) == (2, 1)
    assert found.largest_difference == 1.5
    assert found.mean_difference == (0 + 1.5 + 0 + 1) / 4
    assert found.largest_score == 2


def test_a_tie_may_go_either_way_and_a_hair_more_may_not() -> None:
    assert agreement(scores([1, 0.99995]), scores([0.9, 1]), what="tie").same_class == 1
    assert agreement(scores([1, 0.9998]), scores([0.9, 1]), what="no tie").same_class == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_score_that_is_not_a_number_agrees_with_nothing(precision) -> None:
    for reference, other in (([1, 0], [np.nan, 0]), ([np.nan, 0], [1, 0]), ([1, 0], [np.inf, 0])):
        found = agreement(scores(reference), scores(other), what="NaN")
        assert found.same_class == 0
        with pytest.raises(DisagreementError):
            require(found, precision=precision)


def test_a_task_model_that_gives_no_numbers_is_called_broken(build_task) -> None:
    task = build_task()
    task.network.head.bias[1] = float("nan")
    with pytest.raises(ExportError, match="torch itself gives NaN or infinity for 10 of 10 support images"):
        compare(task, onnx_bytes(task))


def test_turned_answers_are_refused_with_numbers(adapted_task) -> None:
    model = with_head_weight_changed(onnx_bytes(adapted_task), -1)
    with pytest.raises(DisagreementError, match=r"\d+ of 12 images get the same class, at least 99.5% must"):
        require(compare(adapted_task, model)[0], precision="fp32")


def test_the_right_answers_with_other_scores_are_refused_in_fp32(adapted_task) -> None:
    model = with_head_weight_changed(onnx_bytes(adapted_task), 1.01)
    found = compare(adapted_task, model)[0]
    assert found.same_class == found.images
    with pytest.raises(DisagreementError, match=r"a score differs by 0\.\d+, at most 0\.\d+ may"):
        require(found, precision="fp32")


def test_fp16_may_miss_one_image_in_two_hundred_and_no_more() -> None:
    reference = np.tile(scores([1, 0]), (200, 1))
    one, two = reference.copy(), reference.copy()
    one[:1], two[:2] = [0, 1], [0, 1]
    require(agreement(reference, one, what="one"), precision="fp16")
    with pytest.raises(
        DisagreementError,
        match=r"198 of 200 .* at least 99.5% must; export with --precision fp32, or lower --min-agreement",
    ):
        require(agreement(reference, two, what="two"), precision="fp16")
    require(agreement(reference, two, what="two"), precision="int8")
    with pytest.raises(DisagreementError, match=r"199 of 200 .* at least 100\.0% must"):
        require(agreement(reference, one, what="one"), precision="fp16", least=1.0)


def test_accuracy_is_of_the_second_of_the_two() -> None:
    found = agreement(scores([1, 0], [0, 2]), scores([1, 0], [2, 1]), what="by hand", labels=np.array([0, 1]))
    assert (found.accuracy, found.same_class) == (0.5, 1)


def test_a_set_is_scored_in_batches_that_the_way_takes(adapted_task) -> None:
    images, seen = support_set(adapted_task), []

    def run(batch):
        seen.append(len(batch))
        return images.reference[sum(seen[:-1]) : sum(seen)]

    found = judge(run, images, what="itself", max_batch=5)
    assert seen == [5, 5, 2]
    assert (found.same_class, found.largest_difference) == (12, 0.0)


def test_the_table_is_aligned(adapted_task) -> None:
    lines = table(compare(adapted_task, onnx_bytes(adapted_task))).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert "100.0%" in lines[1]
