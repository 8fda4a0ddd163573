"""torchmeta 1.8.0, of 2021, on today's torch.

Its pins (torch below 1.10) can never be met beside a current torch, so it is installed without
them, and three things are put right while it is imported:

1. torchvision missing or broken: stand-in modules are in ``sys.modules`` during the import only.
2. torchvision there, but without the helpers for Google Drive: they are there during the import only.
3. ``SubsetTask`` overrides ``__getitem__`` of torch's ``Subset`` without ``__getitems__``, which torch
   refuses by now: it gets one, for good.

It does not know what torchmeta is used for.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from metanas_training.datasets.torchvision_stand_in import GOOGLE_DRIVE, stand_in_modules
from metanas_training.errors import DatasetError

INSTALL = 'pip install --no-deps torchmeta==1.8.0 && pip install "metanas-edge[torchmeta]"'


def import_torchmeta() -> ModuleType:
    """The package torchmeta, ready to use.

    Raises:
        DatasetError: torchmeta or a package that it needs is not installed.
    """
    if sys.modules.get("torchmeta") is None:
        with _old_torchvision():
            try:
                importlib.import_module("torchmeta")
            except ModuleNotFoundError as error:
                raise DatasetError(
                    f"torchmeta cannot be imported ({error}); its own requirements cannot be met beside this torch, so "
                    f"install it without them: {INSTALL}"
                ) from error
    task = importlib.import_module("torchmeta.utils.data.task")
    task.SubsetTask.__getitems__ = _getitems
    return sys.modules["torchmeta"]


def _getitems(self: Any, indices: list[int]) -> list[Any]:
    return [self[index] for index in indices]


@contextmanager
def _old_torchvision() -> Iterator[None]:
    """As much of torchvision as torchmeta wants; afterwards everything is as it was."""
    before = _torchvision_modules()
    try:
        utilities = importlib.import_module("torchvision.datasets.utils")
        importlib.import_module("torchvision.transforms.functional")
    except Exception:  # built for another torch it fails with anything: RuntimeError, OSError, AttributeError, ...
        for name in _torchvision_modules():
            del sys.modules[name]
        sys.modules.update(stand_in_modules())
        try:
            yield
        finally:
            for name in _torchvision_modules():
                del sys.modules[name]
            sys.modules.update(before)
        return
    removed = {name: function for name, function in GOOGLE_DRIVE.items() if not hasattr(utilities, name)}
    vars(utilities).update(removed)
    try:
        yield
    finally:
        for name in removed:
            delattr(utilities, name)


def _torchvision_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
