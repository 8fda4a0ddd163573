"""Random distortions: the same thing, drawn or photographed once more.

    distort    images, strength  ->  each image turned, stretched, slanted, moved and bent a little
    mirror     images            ->  half of them, drawn at random, mirrored
    recolour   images, strength  ->  each image lighter or darker, of more or less contrast and colour

One number says how much, so that it can be tuned. A single shot of a class then stands for the
many ways in which it may be drawn. Pure functions: the same generator state gives the same bits.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

TURN_DEGREES = 12.0
STRETCH = 0.15
"""Of each side, as the logarithm of a factor."""
SLANT = 0.2
MOVE = 0.12
"""Of half a side."""
BEND = 0.05
"""Standard deviation of the bending at each of 4 x 4 places, of half a side."""
CONTRAST, COLOUR = 0.3, 0.5
"""As the logarithm of a factor."""
LIGHT = 0.4
"""In units of the scaled pixels, whose deviation is about 1."""


def distort(images: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Distort every image in a way of its own.

    Args:
        images: float32 ``(batch, channels, height, width)``.
        strength: 1: turned by up to ``TURN_DEGREES`` and so on; 0: nothing. What comes in at the
            border is the border's pixel.

    Returns:
        float32, of the shape, device and memory layout of ``images``.
    """
    if strength == 0.0:
        return images
    count, _, height, width = images.shape

    def uniform(limit: float) -> Tensor:
        return (2.0 * torch.rand(count, generator=generator) - 1.0) * limit * strength

    angle, slant = uniform(math.radians(TURN_DEGREES)), uniform(SLANT)
    wide, high = uniform(STRETCH).exp(), uniform(STRETCH).exp()
    right, down = uniform(MOVE), uniform(MOVE)
    cosine, sine = angle.cos(), angle.sin()
    rows = torch.stack(
        [wide * cosine, slant * cosine - high * sine, right, wide * sine, slant * sine + high * cosine, down], dim=1
    )
    bend = BEND * strength * torch.randn((count, 2, 4, 4), generator=generator)
    # Drawn on the CPU, the same for every device; the work is done where the images are.
    rows, bend = rows.view(count, 2, 3).to(images.device), bend.to(images.device)
    grid = functional.affine_grid(rows, [count, 1, height, width], align_corners=False)
    bend = functional.interpolate(bend, size=(height, width), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    distorted = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return distorted.contiguous(memory_format=layout)


def mirror(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror each image, left to right, with probability one half.

    Args:
        images: float32 ``(batch, channels, height, width)``.
    """
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


def recolour(images: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Give every image a light, a contrast and, if it has colours, a saturation of its own.

    Args:
        images: float32 ``(batch, channels, height, width)``, scaled as the network takes them.
        strength: 1: contrast by factors up to ``exp(CONTRAST)`` and so on; 0: nothing.

    Returns:
        float32, of the shape, device and memory layout of ``images``.
    """
    if strength == 0.0:
        return images

    def uniform(limit: float) -> Tensor:
        drawn = (2.0 * torch.rand(len(images), generator=generator) - 1.0) * limit * strength
        return drawn.to(images.device)[:, None, None, None]

    contrast, colour, light = uniform(CONTRAST).exp(), uniform(COLOUR).exp(), uniform(LIGHT)
    grey = images.mean(dim=1, keepdim=True)
    middle = grey.mean(dim=(2, 3), keepdim=True)
    return (grey + colour * (images - grey) - middle) * contrast + middle + light
