"""The part of torchvision that torchmeta 1.8.0 uses, for where torchvision is missing or broken.

    stand_in_modules    torchvision's module names  ->  modules with these functions

torchmeta keeps what it imports, so these functions do at run time what torchvision's do to
pictures. Files come over http(s) with their MD5 checked; from Google Drive nothing comes: its
protocol has changed, and torchmeta would open what came with pickle.

Knows Pillow and torch; nothing of ours but the errors.
Source: torchvision 0.10 (BSD-3-Clause), for the behaviour.
"""

import hashlib
import os
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from metanas_training.errors import DatasetError


class Compose:
    """One transform after another."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


class Resize:
    """To ``(height, width)``; a single number is the length of the shorter side."""

    def __init__(self, size: int | Sequence[int], interpolation: Image.Resampling = Image.Resampling.BILINEAR) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, picture: Image.Image) -> Image.Image:
        if isinstance(self.size, int):
            shorter = min(picture.size)
            width, height = (self.size * side // shorter for side in picture.size)
        else:
            height, width = self.size
        return picture.resize((width, height), self.interpolation)

    def __repr__(self) -> str:
        return f"Resize({self.size})"


class CenterCrop:
    """The middle of ``size`` (one number: a square); black where the picture is smaller."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.height, self.width = (size, size) if isinstance(size, int) else size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left = round((picture.width - self.width) / 2)
        top = round((picture.height - self.height) / 2)
        return picture.crop((left, top, left + self.width, top + self.height))

    def __repr__(self) -> str:
        return f"CenterCrop({self.height}, {self.width})"


class ToTensor:
    """A picture as float32 ``(channels, height, width)`` in 0..1; pictures of more than 8 bits keep their values."""

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = np.array(picture)
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        values = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()
        return values.to(torch.float32) / 255 if pixels.dtype == np.uint8 else values

    def __repr__(self) -> str:
        return "ToTensor()"


def rotate(
    picture: Image.Image,
    angle: float,
    resample: int = 0,
    expand: bool = False,
    center: tuple[float, float] | None = None,
    fill: Any = None,
) -> Image.Image:
    """Turn counter-clockwise by ``angle`` degrees; multiples of 90 move pixels and change none."""
    # False, torchmeta's default, is torchvision's old word for "nearest", which has the number 0.
    return picture.rotate(angle, Image.Resampling(int(resample)), expand=expand, center=center, fillcolor=fill)


def list_dir(root: str, prefix: bool = False) -> list[str]:
    """The folders in a folder."""
    folders = [name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name))]
    return [os.path.join(root, name) for name in folders] if prefix else folders


def check_integrity(path: str, md5: str | None = None) -> bool:
    """Whether the file is there, with that MD5 if one is given."""
    file = Path(path)
    return file.is_file() and (md5 is None or hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == md5)


def download_url(url: str, root: str, filename: str | None = None, md5: str | None = None) -> None:
    """Fetch a file into a folder, unless it is there already.

    Raises:
        DatasetError: what came has another MD5; it is deleted.
        OSError: nothing came.
    """
    file = Path(root).expanduser() / (filename or url.rsplit("/", 1)[-1])
    if check_integrity(str(file), md5):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    urllib.request.urlretrieve(url, file)
    if not check_integrity(str(file), md5):
        file.unlink()
        raise DatasetError(f"{url} gave a file with another MD5 than {md5}; put the right one at {file} by hand")


def refuse_google_drive(*_: Any, **__: Any) -> None:
    """Stands where torchvision had its helpers for Google Drive."""
    raise DatasetError(
        "torchmeta can no longer fetch from Google Drive: torchvision removed the functions for it; put torchmeta's "
        "HDF5 and label files into its folder by hand, or use a reader of this project"
    )


GOOGLE_DRIVE = {"_get_confirm_token": refuse_google_drive, "_save_response_content": refuse_google_drive}
"""Gone from today's torchvision too."""


def stand_in_modules() -> dict[str, ModuleType]:
    """Modules to be put into ``sys.modules`` while torchmeta is imported."""
    contents: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.transforms": {
            "Compose": Compose, "Resize": Resize, "CenterCrop": CenterCrop, "ToTensor": ToTensor,
        },
        "torchvision.transforms.functional": {
            "rotate": rotate, "hflip": ImageOps.mirror, "vflip": ImageOps.flip,
        },
        "torchvision.datasets": {},
        "torchvision.datasets.utils": {
            "list_dir": list_dir, "check_integrity": check_integrity, "download_url": download_url, **GOOGLE_DRIVE,
        },
    }  # fmt: skip
    modules = {}
    for name, content in contents.items():
        module = ModuleType(name, "Stands in for torchvision while torchmeta is imported.")
        vars(module).update(content)
        modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    return modules
