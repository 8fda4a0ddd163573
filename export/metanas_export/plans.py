"""The part of an export that TensorRT and Triton have: plans with their sidecars, model repositories.

    write            task, ONNX content, order  ->  the files; returns what went wrong
    warn_of_stale    says so where a plan of an earlier export lies beside a new ONNX file
    kept_parts       ONNX model  ->  what stayed in float32

A plan is built, not run, where there is no GPU. What is checked then is the ONNX graph it was built from.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from metanas.artifact import write_atomically
from metanas.errors import MetaNASError
from metanas.model import TaskModel
from metanas_export import card, engine
from metanas_export.errors import TensorRTMissingError
from metanas_export.flavour import title
from metanas_export.obtaining import obtain
from metanas_export.plan import BuildProgress, Plan, sha256
from metanas_export.plan_cache import PlanCache
from metanas_export.sidecar import sidecar, sidecar_path

if TYPE_CHECKING:
    from metanas_export.exporting import Order

Say = Callable[[str], None]


def write(task: TaskModel, model: bytes, *, order: "Order", written: dict[str, Path], say: Say) -> list[MetaNASError]:
    """Write the plan and the repository that ``order`` names.

    Args:
        model: content of the ONNX file, without optional ends.
        written: gets the paths, by format.
    """
    failures: list[MetaNASError] = []
    plan: Plan | None = None
    for kind in (one for one in ("tensorrt", "tensorrt-rtx") if one in order.formats):
        try:
            plan = _plan(task, model, order=order, flavour="tensorrt_rtx" if kind == "tensorrt-rtx" else None, say=say)
            written[kind] = order.folder / f"{order.name}.plan"
        except TensorRTMissingError as error:
            complete = f". {written['onnx']} is complete without it" if "onnx" in written else ""
            failures.append(TensorRTMissingError(f"{error}{complete}"))
        except MetaNASError as error:
            failures.append(error)
    if "triton" in order.formats:
        from metanas_export import triton

        # Triton's backend knows TensorRT alone.
        fitting = plan if plan is not None and plan.flavour == "tensorrt" else None
        try:
            folder = order.folder / "triton"
            paths = triton.write_repository(
                folder, task, onnx_model=model, plan=fitting, name=order.name, profile=order.profile
            )
            written["triton"] = folder
            say(f"wrote {folder}: {len(paths)} files")
            if plan is not None and fitting is None:
                say(f"The plan of {title(plan.flavour)} is not among them: Triton runs plans of TensorRT alone.")
        except MetaNASError as error:
            failures.append(error)
    return failures


def _plan(task: TaskModel, model: bytes, *, order: "Order", flavour: str | None, say: Say) -> Plan:
    trt = engine.find_tensorrt(flavour)
    patience = "seconds" if trt.__name__ == "tensorrt_rtx" else "up to minutes on a small device"
    say(f"getting a plan from {engine.describe(trt)} for batches {order.profile}; takes {patience} ...")
    told = 0.0

    def on_progress(progress: BuildProgress) -> None:
        nonlocal told
        if progress.seconds >= told + 1.0:
            told = progress.seconds
            say(f"    {progress}")

    found = obtain(
        trt,
        task,
        onnx_model=model,
        precision=order.precision,
        profile=order.profile,
        cache=PlanCache(),
        targets=order.targets,
        options=order.plan_options,
        limits=order.limits,
        on_progress=on_progress,
    )
    plan, path = found.plan, order.folder / f"{order.name}.plan"
    content = json.dumps(sidecar(plan, task, precision=order.precision), indent=2, ensure_ascii=False)
    # The sidecar first: it names the plan's hash, so a plan without its own sidecar is found out.
    write_atomically(sidecar_path(path), content.encode() + b"\n")
    write_atomically(path, plan.data)
    targets = ", ".join(plan.compute_capabilities) if plan.compute_capabilities else "of this machine's GPU"
    say(
        f"wrote {path} ({len(plan.data):,} bytes, {plan.layers} layers, {found.way} in {found.seconds:.1f} s, "
        f"compute capability {targets})"
    )
    say(f"wrote {sidecar_path(path)}")
    for reason in found.tried:
        say(f"    {reason}")
    if plan.built_on is None:
        say("The plan was built, not run: what is checked above is the ONNX graph it was built from.")
    return plan


def warn_of_stale(plan_path: Path, model: bytes, *, say: Say) -> None:
    """Say so if the plan that lies beside the new ONNX file was built from another one."""
    if not plan_path.exists():
        return
    try:
        built_from = json.loads(sidecar_path(plan_path).read_bytes())["onnx_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        built_from = None
    if built_from != sha256(model):
        say(f"warning: {plan_path} is from an earlier export, not of this ONNX file; delete it")


def kept_parts(model: onnx.ModelProto) -> list[str]:
    """The parts besides the head that ``model.build_onnx`` left in float32."""
    return list(card.read(model)["kept_in_float32"])
