"""A ``.plan`` file on TensorRT or TensorRT-RTX.

    PlanModel   the plan and its sidecar ``<name>.plan.json``  ->  its Card, and scores of images

The sidecar says which TensorRT, which version and which GPUs a plan is for, and by the plan's hash
that it belongs to it. All of that is checked before TensorRT sees the plan: what TensorRT itself
says of a plan that does not fit is "rebuild the engine" at best.

Only this module of the client imports TensorRT, and only when a plan is opened.
"""

import hashlib
import importlib
import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanas_client.errors import InvalidRequestError, ModelFileError, RuntimeMissingError
from metanas_client.local_card import read_card
from metanas_client.local_cuda import Device

_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Flavours as sidecars and Python name them, and as pip does."""
RTX_TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for; for others, Jetson's too, TensorRT does on their machine."""


class PlanModel:
    """An opened plan on the first GPU; threads take turns."""

    takes_pictures = False

    def __init__(self, path: Path, *, allow_code: bool = False) -> None:
        """Open a plan.

        Args:
            allow_code: whether code for the processor that a version-compatible plan brings may run.

        Raises:
            InvalidRequestError: it brings some, and it may not.
            ModelFileError: sidecar or plan are damaged, do not belong together, or are for another
                TensorRT or GPU.
            RuntimeMissingError: that TensorRT is not installed, or there is no GPU.
            OSError: the plan cannot be read.
        """
        data = path.read_bytes()
        sidecar = _read_sidecar(path)
        _refuse_foreign(data, sidecar, path=path)
        self.card = read_card(sidecar, name=str(path.with_name(f"{path.name}.json")))
        try:
            flavour, version = sidecar["tensorrt"]["flavour"], sidecar["tensorrt"]["version"]
            self._smallest, self.batch_limit = sidecar["profile"]["min_batch"], sidecar["profile"]["max_batch"]
            self._input, self._output = sidecar["input"]["name"], sidecar["output"]["name"]
            shapes = sidecar["input"]["shape"][1:], sidecar["output"]["shape"][1:]
            targets, movable = sidecar["compute_capabilities"], bool(sidecar.get("version_compatible", False))
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"the sidecar of {path} lacks {error}; {_rebuild(sidecar)}") from error
        recipe = self.card.recipe
        self._image, classes = (recipe.channels, recipe.height, recipe.width), len(self.card.class_names)
        if shapes != ([*self._image], [classes]):
            raise ModelFileError(
                f"the sidecar of {path} contradicts itself: the plan takes images of {shapes[0]} and gives {shapes[1]} "
                f"scores, but preprocessing and names make {[*self._image]} and {[classes]}; {_rebuild(sidecar)}"
            )
        if movable and not allow_code:
            raise InvalidRequestError(
                f"{path} is version-compatible: it brings code for this machine's processor, which would run; if you "
                "trust where it comes from, allow it: TaskRunner(..., allow_code=True), or --allow-code"
            )
        trt = _find(flavour, path=path)
        if trt.__version__ != version and not movable:
            raise ModelFileError(
                f"{path} was built by {_PACKAGES[flavour]} {version}, here is {trt.__version__}; {_rebuild(sidecar)}, "
                f"or install {_PACKAGES[flavour]}=={version}"
            )
        self._device = Device()
        here = self._device.compute_capability
        if targets is not None and here not in targets:
            raise ModelFileError(
                f"{path} is for GPUs of compute capability {', '.join(targets)}, this one has {here}; "
                f"{_rebuild(sidecar, here)}"
            )
        self._lock = threading.Lock()
        # All three live as long as the context does: it refers to them without holding them.
        self._log = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = movable
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise ModelFileError(
                f"{_PACKAGES[flavour]} {trt.__version__} refuses {path} on this GPU; {_rebuild(sidecar)}"
            )
        self._context = self._engine.create_execution_context()
        self._images = self._device.buffer(4 * self.batch_limit * int(np.prod(self._image)))
        self._scores = self._device.buffer(4 * self.batch_limit * classes)

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score network inputs ``(batch, channels, height, width)``; returns ``(batch, classes)``.

        Raises:
            InvalidRequestError: more images than the plan takes at once.
            RuntimeMissingError: TensorRT or CUDA failed.
        """
        count = len(images)
        if count > self.batch_limit:
            raise InvalidRequestError(f"a batch of {count} images, this plan takes at most {self.batch_limit}")
        batch = max(count, self._smallest)
        padded = np.zeros((batch, *self._image), dtype=np.float32)
        padded[:count] = images
        with self._lock:
            self._device.enter()
            self._images.write(padded)
            self._context.set_input_shape(self._input, padded.shape)
            self._context.set_tensor_address(self._input, self._images.address)
            self._context.set_tensor_address(self._output, self._scores.address)
            if not self._context.execute_async_v3(self._device.stream):
                raise RuntimeMissingError("TensorRT did not run the plan; check the GPU's memory with nvidia-smi")
            self._device.wait()
            return self._scores.read((batch, len(self.card.class_names)))[:count]

    def close(self) -> None:
        """Give the GPU's memory back."""
        with self._lock:
            self._device.enter()
            self._context = self._engine = self._runtime = None
            self._images.free()
            self._scores.free()
            self._device.close()


def _read_sidecar(path: Path) -> dict[str, Any]:
    sidecar = path.with_name(f"{path.name}.json")
    try:
        values = json.loads(sidecar.read_bytes())
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{sidecar} is missing: it names the classes and says what the plan needs; copy it beside {path.name}"
        ) from error
    except ValueError as error:
        raise ModelFileError(f"{sidecar} is damaged ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{sidecar} is no sidecar of a plan; copy it again")
    return values


def _refuse_foreign(data: bytes, sidecar: dict[str, Any], *, path: Path) -> None:
    expected = sidecar.get("plan_bytes")
    if len(data) != expected:
        raise ModelFileError(
            f"{path} has {len(data)} bytes, its sidecar says {expected}: it is truncated, or the sidecar is another "
            f"plan's; copy both again, or {_rebuild(sidecar)}"
        )
    if hashlib.sha256(data).hexdigest() != sidecar.get("plan_sha256"):
        raise ModelFileError(
            f"{path} is not the plan that its sidecar describes (another SHA-256); copy both again, "
            f"or {_rebuild(sidecar)}"
        )


def _rebuild(sidecar: dict[str, Any], compute_capability: str | None = None) -> str:
    """What to do about a plan that does not fit: the command, for the machine where the task model lies."""
    flavour = sidecar["tensorrt"].get("flavour") if isinstance(sidecar.get("tensorrt"), dict) else None
    command = "build it again: metanas-export task_model.pt --format "
    if flavour != "tensorrt_rtx":
        return f"{command}tensorrt"
    if compute_capability is not None and compute_capability not in RTX_TARGETS:
        return f"{command}tensorrt, here and with TensorRT: TensorRT-RTX does not build for this GPU"
    target = "" if compute_capability is None else f" --target sm_{compute_capability.replace('.', '')}"
    return f"{command}tensorrt-rtx{target}"


def _find(flavour: object, *, path: Path) -> ModuleType:
    if not isinstance(flavour, str) or flavour not in _PACKAGES:
        raise ModelFileError(f"{path} is for {flavour!r}, this package knows {', '.join(_PACKAGES)}; upgrade it")
    package = _PACKAGES[flavour]
    try:
        module = importlib.import_module(flavour)
    except Exception as error:  # a stub, or libraries that do not load, raise what they like
        raise RuntimeMissingError(
            f"{path} was built by {package}, which does not import here ({error}); "
            f"install it with: pip install {package}"
        ) from error
    if not hasattr(module, "Runtime"):
        raise RuntimeMissingError(
            f"the {package} that is installed here is a stub without Runtime; install the whole: pip install {package} "
            "--extra-index-url https://pypi.nvidia.com"
        )
    return module
