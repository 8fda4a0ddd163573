"""A TensorRT plan and all that is decided about one before it is built: values only.

    Profile        the batch sizes that a plan takes
    PlanOptions    refittable, version-compatible, hardware-compatible
    BuildLimits    how long a build may take, and how much memory
    BuildProgress  how far a build is
    TensorInfo     name, type and shape of an input or output
    Plan           the bytes of a plan, and what it was built with

Knows no TensorRT, no file and no task.
"""

import hashlib
from dataclasses import dataclass

SIDECAR_VERSION = 1
"""Format of the sidecar; raised when a reader of today would misread it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The batch sizes that a plan takes: ``min_batch`` to ``max_batch``, fastest at ``opt_batch``.

    The default is tuned for one picture at a time, which is what a device at the edge sees.
    """

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"a profile needs 1 <= min_batch <= opt_batch <= max_batch, got min_batch {self.min_batch}, "
                f"opt_batch {self.opt_batch} and max_batch {self.max_batch}"
            )

    def to_dict(self) -> dict[str, int]:
        """Plain values, for files."""
        return {"min_batch": self.min_batch, "opt_batch": self.opt_batch, "max_batch": self.max_batch}

    def __str__(self) -> str:
        """As the command line takes it."""
        return f"{self.min_batch},{self.opt_batch},{self.max_batch}"


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan can do beyond running on the GPU that it was built for."""

    refittable: bool = False
    """Whether the weights of another task can replace its own."""
    version_compatible: bool = False
    """Whether later versions of TensorRT run it. TensorRT only."""
    hardware_compatible: bool = False
    """Whether every GPU from Ampere on runs it. TensorRT only: plans of TensorRT-RTX run on all their targets."""

    def __post_init__(self) -> None:
        if self.refittable and self.version_compatible:
            raise ValueError(
                "a version-compatible plan runs on TensorRT's lean runtime, which cannot refit; take one of the two"
            )


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What a build may take; None is no limit.

    Time and memory are looked at between the steps of a build, so a long step overruns them by its length.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    """Of the whole process, resident."""
    workspace_bytes: int | None = None
    """Of the GPU's memory, for one layer's scratch: kernels that need more are not taken."""

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_bytes", "workspace_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, or None for no limit, got {value}")


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: TensorRT's innermost phase at the moment."""

    phase: str
    """As TensorRT calls it; names change between versions."""
    done: int
    """Steps of the phase that are done."""
    steps: int
    layers: int
    """Of the network that is built."""
    seconds: float
    """Since the build began."""

    def __str__(self) -> str:
        return f"{self.phase}: {self.done} of {self.steps} ({self.layers} layers, {self.seconds:.1f} s)"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a plan."""

    name: str
    type: str
    """As numpy names it."""
    shape: tuple[int, ...]
    """-1 is the batch."""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for files."""
        shape = ["batch" if size == -1 else size for size in self.shape]
        return {"name": self.name, "type": self.type, "shape": shape}


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine, and what it was built with."""

    data: bytes
    flavour: str
    """"tensorrt" or "tensorrt_rtx": neither runs the plans of the other."""
    version: str
    """Of TensorRT; another version may refuse the plan."""
    compute_capabilities: tuple[str, ...] | None
    """GPUs that it is for, such as "8.6"; None: of the GPU that built it, which could not be asked, or of
    all from Ampere on where ``options.hardware_compatible``."""
    profile: Profile
    onnx_sha256: str
    input: TensorInfo
    output: TensorInfo
    options: PlanOptions
    built_on: str | None
    """Name of the GPU that built it; None: there was none."""
    layers: int
    """Of the network that it was built from."""
    seconds: float
    """That the build took."""
    timing_cache: str
    """What the timing cache did: for people."""


def sha256(data: bytes) -> str:
    """What names a file's content, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
