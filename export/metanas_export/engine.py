"""ONNX to a TensorRT plan: the only file that imports TensorRT.

    find_tensorrt    ->  ``tensorrt``, else ``tensorrt_rtx``
    build_plan       TensorRT, ONNX bytes, profile  ->  Plan
    sidecar          Plan, task                     ->  what stands in ``<name>.plan.json``

A plan file holds the plan and nothing else: a header in front of it breaks trtexec, Triton and
DeepStream. What a device must know (names, preprocessing, versions) goes into the sidecar.

The network is strongly typed: its types are those of the ONNX graph, which is where fp16 and int8
come from; TensorRT 11 and TensorRT-RTX know nothing else. TensorRT builds for the GPU of this
machine and needs it. TensorRT-RTX builds for its targets on any machine, and finishes the kernels on
the device. Plans of the same network are not the same bytes from build to build.

    engine ── building ── monitoring, targets, timing_cache       build
           └─ sidecar ── plan_loading                             does it fit here?
              plan_cache ── plan_running, refitting               one genotype, many tasks
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from metanas_export.building import Building
from metanas_export.device import find_device
from metanas_export.errors import TensorRTBuildError, TensorRTMissingError
from metanas_export.flavour import describe, failure, new_log
from metanas_export.plan import BuildLimits, BuildProgress, Plan, PlanOptions, Profile, sha256
from metanas_export.sidecar import sidecar

__all__ = [
    "FLAVOURS",
    "BuildLimits",
    "BuildProgress",
    "Plan",
    "PlanOptions",
    "Profile",
    "build_plan",
    "describe",
    "find_tensorrt",
    "sha256",
    "sidecar",
]

FLAVOURS = ("tensorrt", "tensorrt_rtx")


def find_tensorrt(flavour: str | None = None) -> ModuleType:
    """Import ``tensorrt``, else ``tensorrt_rtx``; or only the one of ``FLAVOURS`` that is named.

    Raises:
        TensorRTMissingError: none of them is installed with its libraries. The ``tensorrt`` of PyPI
            alone is a stub, and counts as missing.
    """
    seen = []
    for name in FLAVOURS if flavour is None else (flavour,):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            seen.append(f"{name} is not installed" if error.name == name else f"{name} lacks {error.name}")
        except Exception as error:  # a stub, or libraries that do not load, raise what they like
            seen.append(f"{name} does not import ({error})")
        else:
            if hasattr(module, "Builder") and hasattr(module, "OnnxParser"):
                return module
            seen.append(f"{name} is a stub without Builder and OnnxParser")
    raise TensorRTMissingError(
        f"no TensorRT: {'; '.join(seen)}. Install one: pip install tensorrt-rtx (RTX GPUs, builds without one), "
        "or on a machine with an NVIDIA GPU: pip install tensorrt --extra-index-url https://pypi.nvidia.com"
    )


def build_plan(
    trt: ModuleType,
    onnx_model: bytes,
    *,
    profile: Profile,
    targets: tuple[str, ...] | None = None,
    options: PlanOptions | None = None,
    timing_cache: Path | None = None,
    limits: BuildLimits | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Plan:
    """Build a plan.

    Args:
        trt: what ``find_tensorrt`` returned.
        onnx_model: content of an ``.onnx`` file with one input and one output, batch size free.
        targets: GPUs such as "sm_86", for TensorRT-RTX; None: all that it builds for. TensorRT takes only
            the GPU of this machine.
        options: what the plan must be able to do; None: nothing besides running.
        timing_cache: the file to read and write; None: the one of this version and GPU in the cache
            folder. TensorRT-RTX has none.
        limits: of time and memory; None: none.
        on_progress: called often, from TensorRT's threads.

    Raises:
        BuildLimitError: the build was stopped at a limit.
        UnsupportedTargetError: this TensorRT does not build for a target.
        TensorRTBuildError: TensorRT refused the network or had no GPU; holds what it logged.
    """
    log = new_log(trt)
    building = Building(
        trt=trt,
        log=log,
        profile=profile,
        targets=targets,
        options=options or PlanOptions(),
        timing_cache=timing_cache,
        limits=limits or BuildLimits(),
        on_progress=on_progress,
        device=find_device(),
    )
    try:
        return building.run(onnx_model)
    except TensorRTBuildError:
        raise
    except (TypeError, RuntimeError) as error:  # TypeError: of a builder that could not be created
        raise failure(trt, "stopped", problems=[*log.errors, str(error)]) from error
