"""What computes an adaptation in this process: the native engine where there is one, else PyTorch.

    name          "native" or "plain"
    set_threads   of whichever it is

The native engine is ``metanas.native``; METANAS_NATIVE=0 switches it off. Measuring works without it.
"""

import importlib
import os
from functools import cache
from types import ModuleType
from typing import Literal

import torch

Path = Literal["native", "plain"]
"""The compiled engine where there is one, or PyTorch alone."""

NATIVE = "metanas.native"


def name() -> Path:
    """What adapts in this process."""
    return "plain" if _native() is None else "native"


def set_threads(count: int) -> None:
    """Let the engine use so many threads, or PyTorch where there is none; what is left to PyTorch uses one."""
    module = _native()
    torch.set_num_threads(count if module is None else 1)
    if module is not None:
        module.set_threads(count)


def settings(path: Path) -> dict[str, str]:
    """The environment of a process on that path; a METANAS_NATIVE that is set stays for the native one."""
    native = "0" if path == "plain" else os.environ.get("METANAS_NATIVE", "1")
    return {"METANAS_NATIVE": native, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@cache
def _native() -> ModuleType | None:
    """The engine's module; None where there is none, or where it is switched off or cannot be built."""
    if os.environ.get("METANAS_NATIVE") == "0":
        return None
    try:
        module = importlib.import_module(NATIVE)
    except ModuleNotFoundError as error:
        if error.name != NATIVE:
            raise
        return None
    return module if hasattr(module, "state") and module.state().used else None
