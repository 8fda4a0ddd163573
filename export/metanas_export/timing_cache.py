"""TensorRT's timings of kernels, kept from build to build: one file for each version and GPU.

    location   TensorRT, GPU  ->  where its file lies
    attach     a builder's config, that file  ->  the cache, ready for a build
    keep       the cache after the build  ->  the file, with what other builds have added meanwhile

Most of a TensorRT build is timing kernels; layers that were timed before are looked up. TensorRT-RTX
times nothing: its timing cache does nothing and forces a GPU onto builds that need none (NVIDIA's
migration guide says to remove it), so there is none for it.

Two processes may build at once: each reads what lies there before it writes, and the file is replaced
whole. At worst timings are lost and taken again.
"""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from metanas.artifact import write_atomically
from metanas.native.library import cache_folder
from metanas_export.device import Device

logger = logging.getLogger(__name__)


def used_by(trt: ModuleType) -> bool:
    """Whether this TensorRT times kernels."""
    return trt.__name__ != "tensorrt_rtx"


def location(trt: ModuleType, device: Device | None) -> Path:
    """The file of a version and GPU, in ``METANAS_CACHE`` or ``~/.cache/metanas-edge``."""
    gpu = "unknown-gpu" if device is None else device.slug
    return cache_folder() / "timing" / f"{trt.__name__}-{trt.__version__}-{gpu}.bin"


def attach(config: Any, path: Path) -> Any:
    """Give a builder's config what is known so far; returns the cache, which must outlive the build.

    A file that is damaged or of another device is left unused, with a warning.
    """
    data = _read(path)
    cache = config.create_timing_cache(data)
    # False: timings of another GPU would choose kernels that are slow on this one.
    if not config.set_timing_cache(cache, False) and data:
        logger.warning("the timing cache %s is of another GPU or damaged, and is begun anew", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def keep(config: Any, cache: Any, *, path: Path) -> int:
    """Write what is known after a build; returns the size of the file in bytes.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    others = _read(path)
    if others:
        cache.combine(config.create_timing_cache(others), False)
    data = bytes(cache.serialize())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return len(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
