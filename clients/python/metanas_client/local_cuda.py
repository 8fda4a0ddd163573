"""The little of CUDA that running a plan takes, through the driver's own library.

    Device         the first GPU: its compute capability, memory, a stream
    Device.buffer  memory on it, of a given number of bytes
    Buffer         write, read

``libcuda`` comes with the NVIDIA driver, so a device needs no further Python package. Every call's
status is checked. Knows nothing of TensorRT and images.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanas_client.errors import RuntimeMissingError

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class Device:
    """The first GPU, with its primary context; used by one thread at a time."""

    def __init__(self) -> None:
        """Find the driver and the GPU.

        Raises:
            RuntimeMissingError: there is no driver, or no GPU.
        """
        self._cuda = _load()
        self.check("cuInit", 0)
        self._device = ctypes.c_int()
        self.check("cuDeviceGet", ctypes.byref(self._device), 0)
        self._context = ctypes.c_void_p()
        self.check("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.enter()
        self._stream = ctypes.c_void_p()
        self.check("cuStreamCreate", ctypes.byref(self._stream), 0)

    def enter(self) -> None:
        """Make this the GPU of the calling thread."""
        self.check("cuCtxSetCurrent", self._context)

    @property
    def compute_capability(self) -> str:
        """Such as "8.6"."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check("cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, self._device)
        self.check("cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, self._device)
        return f"{major.value}.{minor.value}"

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return self._stream.value or 0

    def wait(self) -> None:
        """Until all that was put on the stream is done."""
        self.check("cuStreamSynchronize", self._stream)

    def buffer(self, byte_count: int) -> "Buffer":
        """Memory on the GPU."""
        return Buffer(self, byte_count)

    def close(self) -> None:
        """Give stream and context back; buffers come before."""
        self.enter()
        self.check("cuStreamDestroy_v2", self._stream)
        self.check("cuDevicePrimaryCtxRelease_v2", self._device)

    def check(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            RuntimeMissingError: it gave another status than success.
        """
        status = getattr(self._cuda, function)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(text))
            said = text.value.decode() if text.value else "no reason given"
            raise RuntimeMissingError(
                f"CUDA's {function} failed with status {status} ({said}); check the GPU with nvidia-smi, "
                "or run the .onnx file in place of the plan"
            )


class Buffer:
    """Memory on the GPU; ``free`` it before the device is closed."""

    def __init__(self, device: Device, byte_count: int) -> None:
        self._device = device
        self.byte_count = byte_count
        self._address = ctypes.c_uint64()
        device.check("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(byte_count))

    @property
    def address(self) -> int:
        """Where it lies, as TensorRT takes it."""
        return self._address.value

    def write(self, values: NDArray[np.float32]) -> None:
        """Copy contiguous values to its beginning."""
        size = ctypes.c_size_t(values.nbytes)
        self._device.check("cuMemcpyHtoD_v2", self._address, ctypes.c_void_p(values.ctypes.data), size)

    def read(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Copy float32 values from its beginning."""
        values = np.empty(shape, dtype=np.float32)
        size = ctypes.c_size_t(values.nbytes)
        self._device.check("cuMemcpyDtoH_v2", ctypes.c_void_p(values.ctypes.data), self._address, size)
        return values

    def free(self) -> None:
        """Give the memory back."""
        self._device.check("cuMemFree_v2", self._address)


def _load() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeMissingError(
        f"running a plan needs an NVIDIA GPU with its driver, and this machine has no {_LIBRARIES[0]}; "
        "run the .onnx file of the same task here, which needs no GPU"
    )
