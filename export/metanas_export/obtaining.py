"""A task's plan by the shortest way: found, refitted from another task of its genotype, or built.

    obtain     TensorRT, task, ONNX bytes, PlanCache  ->  Obtained
    Obtained   the plan, which way it came, and what was tried before

A plan that was refitted, or can be, is used only after it has answered as ONNX Runtime does. Where no
plan can run (no GPU, no CUDA build of torch, another GPU than is built for), nothing is refitted, and
the way is found or built.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from metanas.model import TaskModel
from metanas_export.builder import Precision
from metanas_export.engine import build_plan
from metanas_export.errors import RefitError
from metanas_export.plan import BuildLimits, BuildProgress, Plan, PlanOptions, Profile
from metanas_export.plan_cache import PlanCache, make_key
from metanas_export.plan_loading import Machine, this_machine
from metanas_export.refitting import refit, verify
from metanas_export.targets import RTX_TARGETS, capability

Way = Literal["found", "refitted", "built"]


@dataclass(frozen=True, slots=True)
class Obtained:
    """A plan that is ready to be used."""

    plan: Plan
    way: Way
    seconds: float
    """That it took, with its check."""
    tried: tuple[str, ...]
    """Why shorter ways were not taken."""


def obtain(
    trt: ModuleType,
    task: TaskModel,
    *,
    onnx_model: bytes,
    precision: Precision,
    profile: Profile,
    cache: PlanCache,
    targets: tuple[str, ...] | None = None,
    options: PlanOptions | None = None,
    limits: BuildLimits | None = None,
    timing_cache: Path | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Obtained:
    """Get the plan of a task, and keep it in the cache.

    Args:
        options: which GPUs and versions run the plan; whether it is refittable is decided here: where it can
            run and be checked. None: neither others.

    Other arguments are as for ``engine.build_plan``.

    Raises:
        TensorRTBuildError: it cannot be built either.
    """
    started = time.perf_counter()
    machine = this_machine(trt)
    fixed = replace(options or PlanOptions(), refittable=False)
    options = replace(fixed, refittable=_can_run(machine, targets) and not fixed.version_compatible)
    key = make_key(onnx_model, machine, precision=precision, profile=profile, targets=targets, options=options)
    rigid = replace(key, options=fixed)
    tried: list[str] = []

    def done(plan: Plan, way: Way) -> Obtained:
        return Obtained(plan, way, time.perf_counter() - started, tuple(tried))

    for one in dict.fromkeys((key, rigid)):
        plan = cache.look_up(one)
        if plan is not None:
            return done(plan, "found")
    # One donor: where its structure does not take these weights, another's takes them no better.
    donor = next(cache.refittable(key), None) if options.refittable else None
    if donor is not None:
        try:
            plan = refit(trt, donor, onnx_model=onnx_model)
            verify(trt, plan, task=task, onnx_model=onnx_model, precision=precision)
            cache.store(key, plan)
            return done(plan, "refitted")
        except RefitError as error:
            tried.append(str(error))

    def build(options: PlanOptions) -> Plan:
        return build_plan(
            trt,
            onnx_model,
            profile=profile,
            targets=targets,
            options=options,
            timing_cache=timing_cache,
            limits=limits,
            on_progress=on_progress,
        )

    plan = build(options)
    if options.refittable:
        try:
            verify(trt, plan, task=task, onnx_model=onnx_model, precision=precision)
        except RefitError as error:
            tried.append(str(error))
            plan, key = build(rigid.options), rigid
    cache.store(key, plan)
    return done(plan, "built")


def _can_run(machine: Machine, targets: tuple[str, ...] | None) -> bool:
    """Whether a plan can answer here, which a refittable one must before it is used."""
    if machine.device is None or not torch.cuda.is_available():
        return False
    here = machine.device.compute_capability
    return machine.flavour != "tensorrt_rtx" or here in (capability(one) for one in targets or RTX_TARGETS)
