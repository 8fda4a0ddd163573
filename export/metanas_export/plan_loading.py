"""Does this plan fit this machine? Said before TensorRT sees it, with the command that makes one that does.

    Machine      the TensorRT and the GPU that are here
    Wanted       what the caller needs of the plan
    this_machine TensorRT  ->  Machine
    mismatches   Sidecar, Machine, Wanted  ->  all that does not fit, in sentences
    rebuild      Sidecar, Machine, Wanted  ->  the command that builds a plan that fits
    check_plan   path, Machine, Wanted     ->  Sidecar and bytes of a plan that fits, or an error with all of that
    load_plan    TensorRT, path            ->  a checked plan, opened
    open_plan    TensorRT, bytes           ->  OpenedPlan, unchecked

TensorRT itself says "rebuild the engine" at best. All but the last two work from values, so a
machine without a GPU can say whether a plan fits another one.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from metanas_export import targets
from metanas_export.builder import Precision
from metanas_export.device import Device, find_device
from metanas_export.errors import PlanMismatchError
from metanas_export.flavour import describe, new_log, title
from metanas_export.plan import Profile, sha256
from metanas_export.sidecar import Sidecar, read_sidecar, sidecar_path


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan would run on."""

    flavour: str
    """Of the TensorRT that is installed: "tensorrt" or "tensorrt_rtx"."""
    version: str
    device: Device | None
    """None: there is no GPU."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan is needed for; None: anything is right."""

    precision: Precision | None = None
    profile: Profile | None = None
    """Batch sizes that it must take; which of them is fastest does not matter."""
    class_names: tuple[str, ...] | None = None
    onnx_sha256: str | None = None
    """Of the ONNX file that it must have been built from."""
    refittable: bool = False


def this_machine(trt: ModuleType) -> Machine:
    """The machine that this runs on."""
    return Machine(flavour=trt.__name__, version=trt.__version__, device=find_device())


def mismatches(found: Sidecar, machine: Machine, *, wanted: Wanted | None = None) -> list[str]:
    """All that keeps a plan from being used; empty where it fits."""
    return [*_of_the_machine(found, machine), *_of_the_use(found, wanted or Wanted())]


def _of_the_machine(found: Sidecar, machine: Machine) -> list[str]:
    seen = []
    if found.flavour != machine.flavour:
        seen.append(
            f"it was built by {title(found.flavour)}, here is {title(machine.flavour)}: neither runs the other's plans"
        )
    elif found.version != machine.version and not (found.options.version_compatible and _later(machine, found)):
        seen.append(f"it was built by {title(found.flavour)} {found.version}, here is {machine.version}")
    if machine.device is None:
        seen.append("this machine has no NVIDIA GPU that its driver shows")
        return seen
    here = machine.device.compute_capability
    if found.options.hardware_compatible:
        if targets.generation(here) < targets.generation(targets.AMPERE):
            seen.append(f"it is for GPUs from compute capability {targets.AMPERE} on, {machine.device} has {here}")
    elif found.compute_capabilities is None:
        seen.append(f"it does not say which GPU it was built for, so not whether {machine.device} runs it")
    elif here not in found.compute_capabilities:
        other = "" if _builds_for(machine) else ", for which TensorRT-RTX does not build: TensorRT does, there"
        seen.append(
            f"it is for compute capability {', '.join(found.compute_capabilities)}, {machine.device.name} has "
            f"{here}{other}"
        )
    return seen


def _builds_for(machine: Machine) -> bool:
    """Whether the TensorRT of the machine builds plans for its GPU: TensorRT-RTX leaves out Jetson and data centres."""
    return (
        machine.flavour != "tensorrt_rtx"
        or machine.device is None
        or machine.device.compute_capability in targets.RTX_TARGETS
    )


def _later(machine: Machine, found: Sidecar) -> bool:
    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".") if part.isdigit()]

    return numbers(machine.version) >= numbers(found.version)


def _of_the_use(found: Sidecar, wanted: Wanted) -> list[str]:
    seen = []
    if wanted.precision is not None and found.precision != wanted.precision:
        seen.append(f"its precision is {found.precision}, {wanted.precision} is wanted")
    profile = wanted.profile
    if profile is not None and not (
        found.profile.min_batch <= profile.min_batch and profile.max_batch <= found.profile.max_batch
    ):
        seen.append(
            f"it takes batches of {found.profile.min_batch} to {found.profile.max_batch}, "
            f"{profile.min_batch} to {profile.max_batch} are wanted"
        )
    if wanted.class_names is not None and found.class_names != wanted.class_names:
        seen.append(_labels(found.class_names, wanted.class_names))
    if wanted.onnx_sha256 is not None and found.onnx_sha256 != wanted.onnx_sha256:
        seen.append(f"it was built from another ONNX file ({found.onnx_sha256[:12]}, not {wanted.onnx_sha256[:12]})")
    if wanted.refittable and not found.options.refittable:
        seen.append("it is not refittable")
    return seen


def _labels(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    if len(found) != len(wanted):
        return f"it has {len(found)} classes, {len(wanted)} are wanted"
    index = next(index for index, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    if sorted(found) == sorted(wanted):
        return f"its classes are in another order: class {index} is {found[index]!r}, not {wanted[index]!r}"
    return f"its class {index} is {found[index]!r}, {wanted[index]!r} is wanted"


def rebuild(found: Sidecar, machine: Machine, *, wanted: Wanted | None = None) -> str:
    """The command that builds a plan that fits, to be run where the task model lies."""
    wanted = wanted or Wanted()
    rtx = machine.flavour == "tensorrt_rtx" and _builds_for(machine)
    profile = wanted.profile or found.profile
    parts = [
        "metanas-export task_model.pt",
        f"--format {'tensorrt-rtx' if rtx else 'tensorrt'}",
        f"--precision {wanted.precision or found.precision}",
        f"--profile {profile}",
    ]
    if rtx and machine.device is not None:
        parts.append(f"--target {targets.flag(machine.device.compute_capability)}")
    return " ".join(parts)


def check_plan(path: Path, machine: Machine, *, wanted: Wanted | None = None) -> tuple[Sidecar, bytes]:
    """Read a plan and make sure that it fits.

    Returns:
        Its sidecar and its bytes.

    Raises:
        PlanMismatchError: the files do not belong together, or the plan does not fit; says all that
            does not, and the command that builds one that does.
        OSError: the plan cannot be read.
    """
    data = path.read_bytes()
    found = read_sidecar(path)
    command = rebuild(found, machine, wanted=wanted)
    if len(data) != found.plan_bytes:
        what = "truncated" if len(data) < found.plan_bytes else "another one"
        raise PlanMismatchError(
            f"{path} has {len(data):,} bytes, {sidecar_path(path).name} says {found.plan_bytes:,}: the plan is {what}; "
            f"copy both again, or build it:\n  {command}"
        )
    if sha256(data) != found.plan_sha256:
        raise PlanMismatchError(
            f"{path} is not the plan that {sidecar_path(path).name} describes (its SHA-256 is another); copy both "
            f"again, or build it:\n  {command}"
        )
    seen = mismatches(found, machine, wanted=wanted)
    if seen:
        raise PlanMismatchError(f"{path} cannot be used here: {'; '.join(seen)}. Build one that can:\n  {command}")
    return found, data


@dataclass(frozen=True, slots=True)
class OpenedPlan:
    """TensorRT's engine, with what must live as long as it."""

    engine: Any
    runtime: Any
    log: Any


def load_plan(trt: ModuleType, path: Path, *, wanted: Wanted | None = None, allow_code: bool = False) -> OpenedPlan:
    """Check a plan and let TensorRT open it.

    Args:
        allow_code: as for ``open_plan``; a version-compatible plan needs it.

    Raises:
        PlanMismatchError: as ``check_plan``, or TensorRT refuses what seemed to fit.
        OSError: the plan cannot be read.
    """
    machine = this_machine(trt)
    found, data = check_plan(path, machine, wanted=wanted)
    try:
        return open_plan(trt, data, allow_code=allow_code)
    except PlanMismatchError as error:
        raise PlanMismatchError(f"{path}: {error}\n  {rebuild(found, machine, wanted=wanted)}") from error


def open_plan(trt: ModuleType, data: bytes, *, allow_code: bool = False) -> OpenedPlan:
    """Let TensorRT open a plan.

    Args:
        allow_code: whether code for the processor that the plan brings may run; only for plans of one's own.

    Raises:
        PlanMismatchError: TensorRT refuses it; holds what it logged.
    """
    log = new_log(trt)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = allow_code
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        seen = "; ".join(log.errors) or "no reason was logged"
        raise PlanMismatchError(f"{describe(trt)} refuses the plan: {seen}. Build it on this machine:")
    return OpenedPlan(engine, runtime, log)
