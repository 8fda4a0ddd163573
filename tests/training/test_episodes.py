"""Tasks drawn from memory: repeatable, disjoint, and with rotations as classes of their own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from metanas_training.datasets import ImageClasses
from metanas_training.episodes import Episode, generator_for, sample_episode, sample_images, sample_pairs
from metanas_training.errors import DatasetError


def _episode(classes: ImageClasses, *place: int, **sizes: int) -> Episode:
    return sample_episode(
        classes, **{"n_way": 4, "n_shot": 2, "n_query": 3, **sizes}, generator=generator_for(7, *place)
    )


def test_an_episode_repeats_by_seed_and_place_and_differs_elsewhere(make_classes: Any) -> None:
    classes = make_classes()
    torch.manual_seed(1)
    one = _episode(classes, 1, 2)
    torch.manual_seed(2)
    other, elsewhere = _episode(classes, 1, 2), _episode(classes, 1, 3)
    assert torch.equal(one.support.images, other.support.images)
    assert torch.equal(one.query_images, other.query_images)
    assert one.support.class_names == other.support.class_names
    assert not torch.equal(one.support.images, elsewhere.support.images)


def test_generators_of_different_seeds_and_places_of_one_length_differ() -> None:
    drawn = {
        int(torch.randint(0, 2**62, (), generator=generator_for(*place)))
        for place in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (1, 0, 1)]
    }
    assert len(drawn) == 7


def test_support_and_query_have_no_image_in_common_and_the_right_labels(make_classes: Any) -> None:
    classes = make_classes()
    for place in range(20):
        episode = _episode(classes, place)
        support = {image.numpy().tobytes() for image in episode.support.images}
        query = {image.numpy().tobytes() for image in episode.query_images}
        assert len(support) == 8
        assert len(query) == 12
        assert not support & query
        assert episode.support.shots == (2, 2, 2, 2)
        assert torch.bincount(episode.query_labels).tolist() == [3, 3, 3, 3]
        for images, labels in (
            (episode.support.images, episode.support.labels), (episode.query_images, episode.query_labels),
        ):  # fmt: skip
            for image, label in zip(images, labels.tolist(), strict=True):
                origin = classes.images[classes.class_names.index(episode.support.class_names[label])]
                assert any(torch.equal(image, one) for one in origin)


def test_rotated_classes_are_true_turns_of_their_base(make_classes: Any) -> None:
    classes = make_classes(count=3, rotations=4)
    assert len(classes) == 12
    episode = _episode(classes, 0, n_way=12)
    assert len(set(episode.support.class_names)) == 12
    for label, name in enumerate(episode.support.class_names):
        base, _, angle = name.partition("@")
        origin = classes.images[classes.class_names.index(base)]
        turned = torch.rot90(origin, int(angle or 0) // 90, dims=(2, 3))
        if angle:
            by_hand = origin[0, 0].tolist()
            for _ in range(int(angle) // 90):  # counter-clockwise: the last column becomes the first row
                by_hand = [[row[-1 - place] for row in by_hand] for place in range(len(by_hand))]
            assert turned[0, 0].tolist() == by_hand
        for image in episode.support.images[episode.support.labels == label]:
            assert any(torch.equal(image, one) for one in turned)


def test_too_many_ways_or_shots_are_refused_with_the_numbers(make_classes: Any) -> None:
    classes = make_classes(count=3, images=5)
    with pytest.raises(DatasetError, match="made-up-0 has 3 classes, too few for 4 ways"):
        _episode(classes)
    with pytest.raises(DatasetError, match="smallest class of made-up-0 has 5 images: 5 shots leave none to classify"):
        _episode(classes, n_way=3, n_shot=5)
    assert len(_episode(classes, n_way=3, n_shot=5, n_query=0).support.labels) == 15
    assert len(_episode(classes, n_way=3, n_shot=4, n_query=9).query_labels) == 3


def test_pairs_are_two_different_images_of_each_class_in_two_halves(make_classes: Any) -> None:
    classes = make_classes(count=5)
    pairs = sample_pairs(classes, count=4, generator=generator_for(0))
    assert pairs.shape == (8, 1, 8, 8)
    origins = []
    for first, second in zip(pairs[:4], pairs[4:], strict=True):
        assert not torch.equal(first, second)
        (origin,) = [
            number for number, images in enumerate(classes.images) if any(torch.equal(first, i) for i in images)
        ]
        assert any(torch.equal(second, image) for image in classes.images[origin])
        origins.append(origin)
    assert len(set(origins)) == 4
    assert torch.equal(pairs, sample_pairs(classes, count=4, generator=generator_for(0)))
    assert len(sample_pairs(classes, count=64, generator=generator_for(0))) == 10


def test_classes_that_no_task_can_be_made_of_are_refused(make_classes: Any) -> None:
    with pytest.raises(DatasetError, match="made-up-0 has 1 classes; meta-learning needs at least two"):
        make_classes(count=1)
    with pytest.raises(
        DatasetError, match="class 'class 0' of made-up-0 has 1 image; it needs one for the support set"
    ):
        make_classes(images=1)


def test_images_of_any_class_are_those_of_their_label_turned_and_mirrored(make_classes: Any) -> None:
    classes = replace(make_classes(count=3, rotations=4), mirrored=True)
    images, labels = sample_images(classes, count=400, generator=generator_for(0))
    assert images.shape == (400, *classes.images[0].shape[1:])
    assert set(labels.tolist()) == set(range(24))
    seen = set()
    for image, label in zip(images, labels.tolist(), strict=True):
        version, base = divmod(label, 3)
        mirrored, turn = divmod(version, 4)
        straight = torch.rot90(image.flip(2) if mirrored else image, -turn, dims=(1, 2))
        found = [number for number, one in enumerate(classes.images[base]) if torch.equal(one, straight)]
        assert found
        seen.add((base, found[0]))
    assert len(seen) == sum(map(len, classes.images)), "each image is drawn sometimes"


def test_tasks_turn_the_images_that_they_draw(make_classes: Any) -> None:
    classes = make_classes(count=3, rotations=4)
    episode = _episode(classes, 3, n_way=12)
    for image, label in zip(episode.query_images, episode.query_labels.tolist(), strict=True):
        name, _, degrees = episode.support.class_names[label].partition("@")
        straight = torch.rot90(image, -int(degrees or 0) // 90, dims=(1, 2))
        assert any(torch.equal(one, straight) for one in classes.images[classes.class_names.index(name)])
