"""ONNX to a TensorRT plan: the only file that imports TensorRT.

    find_tensorrt    ->  ``tensorrt``, else ``tensorrt_rtx``
    build_plan       TensorRT, ONNX bytes, profile  ->  Plan
    sidecar          Plan, task                     ->  what stands in ``<name>.plan.json``

A plan file holds the plan and nothing else: a header in front of it breaks trtexec, Triton and
DeepStream. What a device must know (names, preprocessing, versions) goes into the sidecar.

The network is strongly typed: its types are those of the ONNX graph, which is where fp16 comes
from; TensorRT 11 and TensorRT-RTX know nothing else. TensorRT builds for the GPU of this
machine and needs it. TensorRT-RTX builds for the architectures in ``RTX_TARGETS`` on any
machine, and finishes the kernels on the device. No plan is ever run here: what is checked is the
ONNX graph it was built from.

Plans of the same network are not the same bytes from build to build.
"""

import hashlib
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from metanas.model import TaskModel
from metanas_export.builder import Precision
from metanas_export.errors import TensorRTBuildError, TensorRTMissingError
from metanas_export.graph import INPUT_NAME, OUTPUT_NAME

FLAVOURS = ("tensorrt", "tensorrt_rtx")

# TensorRT-RTX 1.7 names SM75 too, but builds no float32 matrix product for it.
RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120", "SM121")


@dataclass(frozen=True, slots=True)
class Profile:
    """The batch sizes that a plan takes: 1 to ``max_batch``, fastest at ``opt_batch``.

    The default is tuned for one picture at a time, which is what a device at the edge sees.
    """

    max_batch: int = 32
    opt_batch: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"a profile needs 1 <= opt_batch <= max_batch, got opt_batch {self.opt_batch} "
                f"and max_batch {self.max_batch}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine, and what it was built with."""

    data: bytes
    flavour: str
    """"tensorrt" or "tensorrt_rtx": neither runs the plans of the other."""
    version: str
    """Of TensorRT; another version may refuse the plan."""
    compute_capabilities: tuple[str, ...] | None
    """Target architectures such as "8.6"; None: the GPU of the machine that built it."""
    profile: Profile
    onnx_sha256: str


def find_tensorrt() -> ModuleType:
    """Import ``tensorrt``, else ``tensorrt_rtx``.

    Raises:
        TensorRTMissingError: neither is installed with its libraries. The ``tensorrt`` of PyPI
            alone is a stub, and counts as missing.
    """
    seen = []
    for flavour in FLAVOURS:
        try:
            module = importlib.import_module(flavour)
        except ModuleNotFoundError as error:
            seen.append(f"{flavour} is not installed" if error.name == flavour else f"{flavour} lacks {error.name}")
        except Exception as error:  # a stub, or libraries that do not load, raise what they like
            seen.append(f"{flavour} does not import ({error})")
        else:
            if hasattr(module, "Builder") and hasattr(module, "OnnxParser"):
                return module
            seen.append(f"{flavour} is a stub without Builder and OnnxParser")
    raise TensorRTMissingError(
        f"no TensorRT: {'; '.join(seen)}. Install one: pip install tensorrt-rtx (RTX GPUs, builds without one), "
        "or on a machine with an NVIDIA GPU: pip install tensorrt --extra-index-url https://pypi.nvidia.com"
    )


def sha256(data: bytes) -> str:
    """What names a file's content in the sidecar, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def describe(trt: ModuleType) -> str:
    """The TensorRT that was found, for people."""
    return f"{'TensorRT-RTX' if trt.__name__ == 'tensorrt_rtx' else 'TensorRT'} {trt.__version__}"


def build_plan(trt: ModuleType, onnx_model: bytes, *, profile: Profile) -> Plan:
    """Build a plan.

    Args:
        trt: what ``find_tensorrt`` returned.
        onnx_model: content of an ``.onnx`` file with the input ``images``, batch size free.

    Raises:
        TensorRTBuildError: TensorRT refused the network or had no GPU; holds what it logged.
    """
    log = _log(trt)
    try:
        return _build(trt, onnx_model, profile=profile, log=log)
    except TensorRTBuildError:
        raise
    except Exception as error:  # TensorRT raises TypeError for a builder that it could not create
        raise _failure(trt, "stopped", problems=[*log.errors, str(error)]) from error


def _build(trt: ModuleType, onnx_model: bytes, *, profile: Profile, log: Any) -> Plan:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # The parser keeps only a reference: the network must live until it has been built.
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_model):
        problems = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise _failure(trt, "cannot read the ONNX graph", problems=problems or log.errors)
    config = builder.create_builder_config()
    shape = tuple(network.get_input(0).shape)[1:]
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(
        INPUT_NAME, min=(1, *shape), opt=(profile.opt_batch, *shape), max=(profile.max_batch, *shape)
    )
    config.add_optimization_profile(optimisation)
    targets = _set_targets(trt, config)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise _failure(trt, "cannot build the network", problems=log.errors)
    return Plan(
        data=bytes(data),
        flavour=trt.__name__,
        version=trt.__version__,
        compute_capabilities=targets,
        profile=profile,
        onnx_sha256=sha256(onnx_model),
    )


def _set_targets(trt: ModuleType, config: Any) -> tuple[str, ...] | None:
    """Name the target architectures, where a build is not simply for the GPU at hand."""
    if trt.__name__ != "tensorrt_rtx":
        return None
    names = [name for name in RTX_TARGETS if name in trt.ComputeCapability.__members__]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise _failure(trt, f"refuses the target {name}", problems=[])
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)


def _log(trt: ModuleType) -> Any:
    """A logger that keeps errors for the message instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _failure(trt: ModuleType, what: str, *, problems: list[str]) -> TensorRTBuildError:
    seen = "; ".join(problems) or "no reason was logged"
    advice = "use the ONNX file"
    if trt.__name__ == "tensorrt":
        advice += ", or check that this machine has an NVIDIA GPU and driver"
    return TensorRTBuildError(f"{describe(trt)} {what}: {seen}. You can {advice}")


def sidecar(plan: Plan, task: TaskModel, *, precision: Precision) -> dict[str, Any]:
    """What a device must know beside the plan, as plain values for JSON."""
    preprocessing = task.preprocessing
    return {
        "plan_sha256": sha256(plan.data),
        "plan_bytes": len(plan.data),
        "plan_was_run": False,
        "onnx_sha256": plan.onnx_sha256,
        "tensorrt": {"flavour": plan.flavour, "version": plan.version},
        "compute_capabilities": list(plan.compute_capabilities) if plan.compute_capabilities is not None else None,
        "precision": precision,
        "profile": {"min_batch": 1, "opt_batch": plan.profile.opt_batch, "max_batch": plan.profile.max_batch},
        "input": {
            "name": INPUT_NAME,
            "type": "float32",
            "shape": ["batch", preprocessing.channels, preprocessing.height, preprocessing.width],
        },
        "output": {"name": OUTPUT_NAME, "type": "float32", "shape": ["batch", len(task.class_names)]},
        "class_names": list(task.class_names),
        "preprocessing": preprocessing.to_dict(),
        "preprocessing_steps": preprocessing.steps(),
    }
