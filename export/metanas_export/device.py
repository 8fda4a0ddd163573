"""The GPU of this machine, asked of NVIDIA's driver: what a plan is built for and must fit.

    Device        name, compute capability, memory
    find_device   ->  the first GPU, or None

``libcuda`` comes with the driver, so asking takes neither TensorRT nor a CUDA build of torch.
"""

import ctypes
import re
from dataclasses import dataclass
from typing import Any

from metanas_export import targets

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU."""

    name: str
    compute_capability: str
    """Such as "8.6"."""
    memory_bytes: int
    driver_cuda: str
    """The latest CUDA that its driver runs, such as "13.0"."""

    def __str__(self) -> str:
        return f"{self.name} ({targets.flag(self.compute_capability)})"

    @property
    def slug(self) -> str:
        """Its name and compute capability, for names of files."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{name}-{targets.flag(self.compute_capability)}"


def find_device() -> Device | None:
    """The first GPU; None where there is no driver or it shows no GPU."""
    cuda = _load()
    device, count = ctypes.c_int(), ctypes.c_int()
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    if cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(256)
    memory, driver, major, minor = ctypes.c_size_t(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    answers = (
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        cuda.cuDriverGetVersion(ctypes.byref(driver)),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    if any(answers):
        return None
    return Device(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
        driver_cuda=f"{driver.value // 1000}.{driver.value % 1000 // 10}",
    )


def _load() -> Any:
    for library in _LIBRARIES:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
