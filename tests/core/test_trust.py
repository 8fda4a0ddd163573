"""Leave-one-out accuracy, temperature, similarity: worked out by hand, then on learnt tasks."""

import math

import pytest
import torch
from torch.nn import functional

from metanas import trust
from metanas.errors import InvalidConfigError
from metanas.head import Head
from metanas.trust import Trust, calibrate, leave_one_out, length_of_rows, measure, similarity


def direction(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def test_an_image_is_scored_by_prototypes_made_without_it() -> None:
    # Class 0 at 0 and 40 degrees, class 1 at 50 and 90. Without the one at 40, class 0 is at 0 and
    # class 1 at 70: cosines 40 and 30 degrees off, so it is taken for class 1.
    features = torch.tensor([direction(angle) for angle in (0, 40, 50, 90)])
    logits, labels = leave_one_out(features, torch.tensor([0, 0, 1, 1]), n_way=2, scale=10.0)
    assert labels.tolist() == [0, 0, 1, 1]
    expected = [10 * math.cos(math.radians(40)), 10 * math.cos(math.radians(30))]
    assert logits[1].tolist() == pytest.approx(expected, abs=1e-4)
    assert logits.argmax(dim=1).tolist() == [0, 1, 0, 1]


def test_lengths_of_features_do_not_count() -> None:
    features = torch.randn(8, 5)
    labels = torch.arange(8) % 3
    once, _ = leave_one_out(features, labels, n_way=3, scale=4.0)
    again, _ = leave_one_out(features * torch.rand(8, 1).add(0.1), labels, n_way=3, scale=4.0)
    assert torch.allclose(once, again, atol=1e-5)


def test_classes_of_one_shot_are_not_left_out_but_stand_against_the_others() -> None:
    features = torch.randn(4, 5)
    logits, labels = leave_one_out(features, torch.tensor([0, 1, 1, 2]), n_way=3, scale=1.0)
    assert labels.tolist() == [1, 1]
    unit = functional.normalize(features, dim=1)
    assert logits[0, 2] == pytest.approx(float(unit[1] @ unit[3]), abs=1e-6)


def test_scores_that_are_right_about_half_the_time_get_the_temperature_that_says_so() -> None:
    # Of 400 images, all scored 1 to 0, 60 % are right: softmax is honest at 1 / ln(0.6 / 0.4).
    logits = torch.tensor([[1.0, 0.0]]).repeat(400, 1)
    labels = torch.tensor([0] * 240 + [1] * 160)
    assert calibrate(logits, labels) == pytest.approx(1 / math.log(1.5), rel=0.2)


def test_a_few_right_answers_do_not_make_it_certain() -> None:
    logits = torch.tensor([[4.0, 0.0]]).repeat(4, 1)
    assert 0.8 < calibrate(logits, torch.zeros(4, dtype=torch.int64)) <= 1.0
    assert calibrate(logits[:0], torch.zeros(0, dtype=torch.int64)) == 1.0


def test_a_temperature_changes_no_answer() -> None:
    logits, labels = torch.randn(50, 4), torch.randint(4, (50,))
    temperature = calibrate(logits, labels)
    assert torch.equal((logits / temperature).argmax(dim=1), logits.argmax(dim=1))


def two_class_head() -> Head:
    head = Head(2, 2)
    with torch.no_grad():
        head.weight.copy_(10 * torch.tensor([direction(0), direction(90)]))
    return head


def test_similarity_is_the_cosine_to_the_nearest_class() -> None:
    head = two_class_head()
    logits = head(torch.tensor([direction(30), direction(45), direction(225)]))
    assert length_of_rows(head) == pytest.approx(10.0)
    assert similarity(logits, 10.0).tolist() == pytest.approx(
        [math.cos(math.radians(angle)) for angle in (30, 45, 135)], abs=1e-5
    )


def test_the_threshold_lets_most_left_out_images_pass() -> None:
    torch.manual_seed(0)
    features = torch.cat([torch.tensor(direction(base)) + 0.2 * torch.randn(50, 2) for base in (0, 90)])
    labels = torch.tensor([0] * 50 + [1] * 50)
    found = measure(features, labels, two_class_head())
    assert found.leave_one_out_accuracy is not None
    assert 0.9 < found.leave_one_out_accuracy <= 1.0
    logits, _ = leave_one_out(features, labels, n_way=2, scale=10.0)
    passing = (similarity(logits, 10.0) >= found.least_similarity).double().mean()
    assert 1 - trust.KNOWN_QUANTILE <= passing <= 1 - trust.KNOWN_QUANTILE + 0.02


def test_single_shots_have_no_accuracy_and_the_threshold_of_the_meta_model() -> None:
    features = torch.tensor([direction(0), direction(90)])
    assert measure(features, torch.tensor([0, 1]), two_class_head()) == Trust(head_scale=10.0)
    known = measure(features, torch.tensor([0, 1]), two_class_head(), known_similarity=0.5)
    assert known == Trust(least_similarity=0.5, head_scale=10.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_senseless_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidConfigError, match="temperature must be above 0 and finite"):
        Trust(temperature=temperature)
