"""Distortions: of a size that one number sets, each image its own, repeatable, labels kept by staying close."""

import math

import pytest
import torch

from metanas import augmentation
from metanas.augmentation import distort, mirror, recolour
from metanas.errors import InvalidConfigError
from metanas.schedule import Schedule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(size: int = 29, *, row: int = 14, column: int = 14) -> torch.Tensor:
    """One bright disc of radius 3 on black, ``(1, 1, size, size)``."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (((rows - row) ** 2 + (columns - column) ** 2) <= 9).float()[None, None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in image.shape), indexing="ij")
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


def test_strength_zero_gives_the_very_images() -> None:
    images = torch.rand(3, 1, 8, 8)
    assert distort(images, strength=0.0, generator=generator()) is images


def test_the_same_generator_gives_the_same_bits_and_another_gives_others() -> None:
    images = torch.rand(4, 3, 12, 12)
    first = distort(images, strength=1.0, generator=generator())
    assert torch.equal(first, distort(images, strength=1.0, generator=generator()))
    assert not torch.equal(first, distort(images, strength=1.0, generator=generator(1)))


def test_each_image_is_distorted_in_a_way_of_its_own() -> None:
    images = disc(row=10, column=8).repeat(2, 1, 1, 1)
    first, second = distort(images, strength=1.0, generator=generator())
    assert (first - second).abs().max() > 0.1


def test_channels_of_one_image_move_together() -> None:
    images = disc(row=9).repeat(2, 3, 1, 1)
    distorted = distort(images, strength=1.0, generator=generator())
    assert torch.equal(distorted[:, 0], distorted[:, 2])


def test_a_disc_in_the_middle_moves_no_farther_than_the_limits_say() -> None:
    images = disc().repeat(200, 1, 1, 1)
    distorted = distort(images, strength=1.0, generator=generator())
    # In the middle only the move and the bending act: half a side is 14.5 pixels; bending has a tail.
    farthest = 14.5 * math.sqrt(2) * (augmentation.MOVE + 4 * augmentation.BEND)
    moved = [math.dist(centre(image[0]), (14.0, 14.0)) for image in distorted]
    assert 0.5 < max(moved) < farthest
    assert sum(moved) / len(moved) > 0.25 * 14.5 * augmentation.MOVE


def test_a_turned_line_has_turned_by_at_most_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STRETCH", "SLANT", "MOVE", "BEND"):
        monkeypatch.setattr(augmentation, name, 0.0)
    monkeypatch.setattr(augmentation, "TURN_DEGREES", 45.0)
    line = torch.zeros(64, 1, 41, 41)
    line[:, :, 20, 5:36] = 1.0
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    angles = []
    for image in distort(line, strength=1.0, generator=generator()):
        weight = image[0]
        across = float((weight * rows * columns).sum())
        spread = float((weight * (columns**2 - rows**2)).sum())
        angles.append(abs(math.degrees(0.5 * math.atan2(2 * across, spread))))
    assert 35 < max(angles) < 46


def test_the_border_is_continued_so_white_paper_stays_white() -> None:
    white = torch.ones(8, 1, 20, 20)
    assert torch.allclose(distort(white, strength=2.0, generator=generator()), white)


def test_layout_is_kept() -> None:
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert distort(images, strength=1.0, generator=generator()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("strength", [-0.1, 11.0, float("nan")])
def test_a_schedule_refuses_a_senseless_strength(strength: float) -> None:
    with pytest.raises(InvalidConfigError, match=r"augmentation must be 0\.\.10, got"):
        Schedule(augmentation=strength)


def test_half_of_the_images_are_mirrored_whole_and_the_others_left() -> None:
    images = torch.rand(400, 3, 4, 6)
    mirrored = mirror(images, generator=generator())
    turned = (mirrored == images.flip(3)).flatten(1).all(1)
    assert (turned | (mirrored == images).flatten(1).all(1)).all()
    assert 160 < int(turned.sum()) < 240
    assert torch.equal(mirrored, mirror(images, generator=generator()))
    assert not torch.equal(mirrored, mirror(images, generator=generator(1)))


def test_recolouring_by_hand_keeps_within_its_limits_and_differs_by_image() -> None:
    flat = torch.zeros(300, 3, 2, 2)
    light = recolour(flat, strength=2.0, generator=generator())[:, 0, 0, 0]
    assert 0.7 < light.abs().max() / (2 * augmentation.LIGHT) <= 1.0
    assert len(light.unique()) == 300

    grey = torch.tensor([-1.0, 1.0]).repeat(300, 3, 2, 1)  # no colours, mean 0: contrast and light alone
    changed = recolour(grey, strength=1.0, generator=generator())
    spread = (changed[:, 0, 0, 1] - changed[:, 0, 0, 0]) / 2
    assert torch.allclose(changed[:, 0], changed[:, 2])
    assert (
        math.exp(-augmentation.CONTRAST) <= spread.min() < 0.85 < 1.15 < spread.max() <= math.exp(augmentation.CONTRAST)
    )

    red = torch.tensor([2.0, -1.0, -1.0])[None, :, None, None].repeat(300, 1, 2, 2)  # grey 0 everywhere: colour, light
    changed = recolour(red, strength=1.0, generator=generator())
    assert torch.allclose(changed[:, 1], changed[:, 2])
    tint = (changed[:, 0] - changed[:, 1])[:, 0, 0] / 3
    limit = augmentation.COLOUR + augmentation.CONTRAST
    assert math.exp(-limit) <= tint.min() < 0.8 < 1.2 < tint.max() <= math.exp(limit)


def test_recolouring_of_strength_zero_gives_the_very_images_and_layout_is_kept() -> None:
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert recolour(images, strength=0.0, generator=generator()) is images
    for changed in (recolour(images, strength=1.0, generator=generator()), mirror(images, generator=generator())):
        assert changed.is_contiguous(memory_format=torch.channels_last)
        assert changed.dtype is torch.float32
