"""What is measured with: meta-models and tasks.

    BUNDLED             the meta-model that comes with the server
    untrained           random weights and equal architecture parameters: nothing is pruned, the worst case
    in_large            the bundled architecture in the paper's space on untrained weights, at 84 x 84 x 3
    bundled_in_large    the same in the bundled meta-model's own space, as a colour meta-model of its kind would be
    omniglot_episode    an Omniglot-shaped task; glyphs where there is no Omniglot
    colour_episode      a made-up task of 84 x 84 colour pictures

Times depend on the sizes and on which operations run, not on what the pictures show.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from metanas.artifact import load_meta
from metanas.backbone import build_backbone
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas.tasks import SupportSet
from metanas_training.datasets import ImageClasses, data_root, load_classes
from metanas_training.episodes import Episode, generator_for, sample_episode

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "serving" / "metanas_serving" / "models" / "omniglot.pt"
HEAD_SCALE = 10.0
LARGE = 84
PLACE = 7
"""Of benchmark episodes among the generators of a seed."""

Pixels = NDArray[np.uint8]


def untrained(space: SearchSpace | None = None, schedule: Schedule | None = None) -> MetaModel:
    """Random weights (seed 0), architecture parameters all equal, Adam's moments from zero.

    Args:
        space: 28 x 28 x 1 with C = 28 by default.
    """
    space = space or SearchSpace()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_backbone(space, None)
    grey = space.in_channels == 1
    return MetaModel(
        space=space,
        weights={name: value.detach() for name, value in network.named_parameters()},
        architecture=initial_architecture(space),
        head_scale=HEAD_SCALE,
        preprocessing=Preprocessing(
            channels=space.in_channels,
            height=space.image_size,
            width=space.image_size,
            invert=grey,
            mean=(0.0,) if grey else (0.5, 0.5, 0.5),
            deviation=(1.0,) if grey else (0.25, 0.25, 0.25),
        ),
        schedule=schedule or Schedule(),
        provenance={"data": "nothing: random weights, for measuring"},
    )


def large_space() -> SearchSpace:
    """Of 84 x 84 colour pictures."""
    return SearchSpace(in_channels=3, image_size=LARGE)


def in_large(schedule: Schedule) -> MetaModel:
    """Untrained weights at 84 x 84 x 3 with the bundled architecture, so that tasks are pruned as usual."""
    return replace(untrained(large_space(), schedule), architecture=load_meta(BUNDLED).architecture)


def bundled_in_large(schedule: Schedule) -> MetaModel:
    """The bundled meta-model's own space and architecture on untrained weights, for images of 84 x 84 x 3."""
    bundled = load_meta(BUNDLED)
    assert isinstance(bundled.space, SearchSpace)
    space = replace(bundled.space, in_channels=3, image_size=LARGE)
    return replace(untrained(space, schedule), architecture=bundled.architecture)


def named_meta(name: str) -> MetaModel:
    """ "bundled", "untrained", "untrained_large", "untrained_with_moments", or the path of a ``meta.pt``."""
    match name:
        case "bundled":
            return load_meta(BUNDLED)
        case "untrained":
            return untrained()
        case "untrained_with_moments":
            # Adam then starts with steps of usual size; from zero its first steps are the sign of each gradient.
            return replace(untrained(), moments=load_meta(BUNDLED).moments)
        case "untrained_large":
            return untrained(large_space())
    return load_meta(name)


def omniglot_classes(split: str = "test") -> ImageClasses:
    """Omniglot where METANAS_DATA holds it, else the embedded glyphs; prepared as the bundled model asks."""
    data = "omniglot" if (data_root() / "omniglot").is_dir() else "glyphs"
    return load_classes(data, split, preprocessing=untrained().preprocessing, root=data_root())


def omniglot_episode(classes: ImageClasses, number: int, *, n_query: int = 1) -> Episode:
    """One 20-way 1-shot task of unseen classes."""
    return sample_episode(classes, n_way=20, n_shot=1, n_query=n_query, generator=generator_for(0, PLACE, number))


def colour_episode(number: int, *, n_way: int = 5, n_shot: int = 5, n_query: int = 1) -> Episode:
    """A made-up task: each class has a texture of its own, each picture some noise on it."""
    random = np.random.default_rng(number)

    def pictures(count: int) -> torch.Tensor:
        pixels = [colour_picture(random, hue=label) for label in range(n_way) for _ in range(count)]
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()

    def labels(count: int) -> torch.Tensor:
        return torch.arange(n_way).repeat_interleave(count)

    names = tuple(f"texture {label}" for label in range(n_way))
    support = SupportSet(pictures(n_shot), labels(n_shot), names)
    return Episode(support=support, query_images=pictures(n_query), query_labels=labels(n_query))


def colour_picture(random: np.random.Generator, *, hue: int = 0) -> Pixels:
    """84 x 84 x 3: waves whose direction is the class's, and noise."""
    down, right = np.mgrid[0:LARGE, 0:LARGE] / LARGE
    waves = np.sin(6.0 * np.pi * (down * np.cos(hue) + right * np.sin(hue)) + random.uniform(0, 6.3))
    pixels = 128 + 80 * waves[:, :, None] * np.cos(hue + np.arange(3)) + random.normal(0, 10, (LARGE, LARGE, 3))
    rounded: Pixels = pixels.clip(0, 255).astype(np.uint8)
    return rounded


def jpeg(pixels: Pixels) -> bytes:
    """The bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def picture(image: torch.Tensor, preprocessing: Preprocessing) -> Pixels:
    """A prepared image as a user would send it."""
    pixels: Pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
    return 255 - pixels if preprocessing.invert else pixels


def support_of(episode: Episode, preprocessing: Preprocessing) -> dict[str, list[Any]]:
    """A support set as the client takes it: pictures by class name."""
    support: dict[str, list[Any]] = {name: [] for name in episode.support.class_names}
    for image, label in zip(episode.support.images, episode.support.labels.tolist(), strict=True):
        support[episode.support.class_names[label]].append(picture(image, preprocessing))
    return support
